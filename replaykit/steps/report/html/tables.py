"""The tables: models, skills, mixtures, and how the run was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from replaykit.recipe.remedies import StmSettings
from replaykit.result import Result
from replaykit.runs import Manifest
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult, ModelScores, Rate, SkillFacts, Thoughts
from replaykit.steps.mix.result import MixResult
from replaykit.steps.report.cost import cost, hashes, money, seeds
from replaykit.steps.report.html.blocks import Colours, Lost, card, label, table
from replaykit.steps.report.numbers import (
    NOTHING,
    Unit,
    interval,
    known,
    mean,
    number,
    percent,
    unit_of,
)
from replaykit.steps.report.verdict import new_side, old_side, share_of
from replaykit.steps.rewrite.result import RewriteResult


def by_model(evaluation: EvalResult, colours: Colours) -> str:
    """A row a model: its share of replay, and the new skill against the old ones."""
    old = old_side(evaluation)
    new = new_side(evaluation)
    # Retention is of skills that are scored right or wrong; without one there is no such column.
    head = ["Model", "Replay", "Steps", new.title.capitalize(), old.title.capitalize()]
    retained = any(model.retention is not None for model in evaluation.models)
    if retained:
        head += ["Retention", "Worst old skill"]
    rows = []
    for model in evaluation.models:
        name = model.model
        steps = NOTHING if model.steps is None else f"{model.steps:,}"
        cells = [label(name, colours), percent(share_of(model)), steps]
        cells += [_estimate(side.of.get(name), side.unit) for side in (new, old)]
        if retained:
            cells += [_estimate(model.retention), _worst(model)]
        rows.append(cells)
    note = (
        "Below a mean: its 95 % interval. Replay: its share, in the mixture's unit. Retention: "
        "tuned over base, on old skills."
    )
    return table(head, rows, note)


def _estimate(estimate: Interval | None, unit: Unit = "score") -> str:
    """A mean with its interval below."""
    if not known(estimate):
        return mean(estimate, unit)
    return f"{mean(estimate, unit)}<small>{interval(estimate, unit)}</small>"


def _worst(model: ModelScores) -> str:
    if model.worst is None:
        return NOTHING
    return f"{number(model.worst.retention)}<small>{escape(model.worst.skill)}</small>"


def by_skill(evaluation: EvalResult, colours: Colours) -> str:
    """A row a skill, a column a model: the score, and of old skills the drop or rise."""
    head = ["Skill", *(label(model.model, colours) for model in evaluation.models)]
    rows = [
        [_skill(skill), *(_score(model, skill) for model in evaluation.models)]
        for skill in evaluation.skills
    ]
    note = (
        "Drop, rise: the change for the worse against base, on the same rows; below, how many of "
        "them went from right to wrong and from wrong to right. Tinted: a loss is measurable, "
        "corrected for the number of old skills (Holm)."
    )
    return table(head, rows, escape(" ".join([note, *evaluation.notes])))


def _skill(skill: SkillFacts) -> str:
    """A skill's name; below it how it is scored, and on how many rows."""
    facts = [f"{skill.n:,} rows"]
    if unit_of(skill) == "nats":
        facts.insert(0, "nats, fewer are better")
    else:
        facts.insert(0, escape(skill.score))
    if skill.role == "target":
        facts.insert(0, "new skill")
    if skill.role == "memory":
        facts.insert(0, "the base's own rows: the rise is the drift")
    if skill.unscored:
        why = "too long for the model"
        if skill.score == "judge":
            why = "that the judge did not grade"
        facts.append(f"{skill.unscored:,} more {why}")
    return f"{escape(skill.skill)}<small>{', '.join(facts)}</small>"


def _score(model: ModelScores, skill: SkillFacts) -> str:
    unit = unit_of(skill)
    text = _estimate(model.scores.get(skill.skill), unit)
    drop = model.drop.get(skill.skill)
    if drop is None or skill.role == "target":
        return text
    change = "rise" if unit == "nats" else "drop"
    shown = f"{change} {number(drop.mean, unit)}"
    around = f"<span>({interval(drop, unit)})</span>"
    claim = model.claims.get(skill.skill)
    turned = ""
    if claim is not None and claim.lost is not None:
        turned = f"<small>{claim.lost:,} went wrong, {claim.gained:,} right</small>"
    if claim is not None and claim.state == "lost":
        return Lost(f"{text}<small><b>{shown}</b> {around}</small>{turned}")
    return f"{text}<small><span>{shown}</span> {around}</small>{turned}"


def by_thought(evaluation: EvalResult, colours: Colours) -> str:
    """A row a skill that was thought about, a column a model: the part of valid thoughts."""
    head = ["Skill", *(label(model.model, colours) for model in evaluation.models)]
    skills = [name for model in evaluation.models[:1] for name in model.thoughts]
    rows = [
        [escape(skill), *(_thoughts(model.thoughts[skill]) for model in evaluation.models)]
        for skill in skills
    ]
    note = (
        "The part of answers with a valid thought before them; below, what became of the others. "
        "A thought that was cut has no answer. Tinted: all of the interval of the drop is a loss."
    )
    return table(head, rows, note)


def by_rate(evaluation: EvalResult, colours: Colours) -> str:
    """A row a rate of answers that some model has changed, a column a model."""
    head = ["Answers that", *(label(model.model, colours) for model in evaluation.models)]
    rows = []
    for skill, name in evaluation.changed_rates:
        found = [model.rates[skill][name] for model in evaluation.models]
        what = {"declines": "decline to help", "repeats": "repeat themselves"}[name]
        rows.append([f"{what}<small>{escape(skill)}</small>", *map(_rate, found)])
    note = (
        "The part of answers, whatever they are scored by; below, by how much it has fallen or "
        "risen against base. Bold: the 95 % interval of the change leaves out 0."
    )
    return table(head, rows, note)


def _rate(found: Rate) -> str:
    text = _estimate(found.rate)
    if found.drop is None:
        return text
    rise = -found.drop
    shown = f"rise {number(rise.mean)}"
    if rise.mean < 0:
        rise = found.drop
        shown = f"fall {number(rise.mean)}"
    if found.changed:
        shown = f"<b>{shown}</b>"
    return f"{text}<small>{shown} <span>({interval(rise)})</span></small>"


def by_label(evaluation: EvalResult, colours: Colours) -> str:
    """A row a figure of each skill whose answers are labels, a column a model."""
    head = ["Figure", *(label(model.model, colours) for model in evaluation.models)]
    skills = [item for model in evaluation.models[:1] for item in model.classes.items()]
    rows = []
    for skill, classes in skills:
        for name in classes.figures:
            cells = [f"{escape(name)}<small>{escape(skill)}</small>"]
            for model in evaluation.models:
                found = model.classes[skill].figures.get(name, (None, None))
                cells.append(_figure(*found))
            rows.append(cells)
    note = (
        "Macro F1: the mean of the labels' F1. Recall: the part of a label's rows that are given "
        "it. Label that no row has: the part of rows that are given one, such as one of the new "
        "task. Below a mean: its 95 % interval. Tinted: all of the interval of the drop is a loss."
    )
    return table(head, rows, note)


def _figure(estimate: Interval | None, drop: Interval | None) -> str:
    text = _estimate(estimate)
    if drop is None:
        return text
    shown = f"drop {number(drop.mean)}"
    around = f"<span>({interval(drop)})</span>"
    if drop.low > 0:
        return Lost(f"{text}<small><b>{shown}</b> {around}</small>")
    return f"{text}<small><span>{shown}</span> {around}</small>"


def _thoughts(found: Thoughts) -> str:
    counts = {"empty": found.empty, "missing": found.missing, "cut": found.cut}
    others = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    text = percent(round(found.share, 3))
    if others:
        text += f"<small>{others}</small>"
    if found.drop is None:
        return text
    shown = f"drop {number(found.drop.mean)}"
    around = f"<span>({interval(found.drop)})</span>"
    if found.drop.low > 0:
        return Lost(f"{text}<small><b>{shown}</b> {around}</small>")
    return f"{text}<small><span>{shown}</span> {around}</small>"


def mixtures(results: Mapping[str, Result]) -> str:
    """A row a mixture: what was asked for, what came out, and of how many rows it is made."""
    mixes = {name: found for name, found in results.items() if isinstance(found, MixResult)}
    head = [
        "Mix",
        "Asked for",
        "Of loss tokens",
        "Of tokens",
        "Of rows",
        "Last fifth",
        "Furthest step",
        "Target rows",
        "Replay rows",
        "Each row seen",
        "Cost",
    ]
    legend = (
        "Furthest step: how far a step is from its share, in rows. Cost: all tokens over "
        "those of the target alone."
    )
    notes = [note for name, mix in mixes.items() for note in _notes(name, mix)]
    rows = [_mixture(name, mix) for name, mix in mixes.items()]
    return table(head, rows, escape(" ".join([legend, *notes])))


def perplexities(results: Mapping[str, Result]) -> str:
    """How probable the base finds the references and the new answers of a rewritten target."""
    found = [result for result in results.values() if isinstance(result, RewriteResult)]
    limit = StmSettings().max_perplexity or 0.0
    head = ["Answers", "Rows", "Tokens", "Perplexity", "Median of rows", f"Above {limit:g}"]
    rows = [
        [
            escape(path),
            f"{one.rows:,}",
            f"{one.tokens:,}",
            f"{one.perplexity:,.2f}",
            f"{one.quantiles['0.5']:,.2f}",
            percent(one.above),
        ]
        for result in found
        for path, one in result.perplexity.items()
    ]
    note = (
        "Under the base, the least probable first. The last column is the part of the tokens that "
        "selective token masking would mask."
    )
    return table(head, rows, note)


def _mixture(name: str, mix: MixResult) -> list[str]:
    repeats = [f"{escape(source)} {times:.2f}×" for source, times in mix.repeats.items()]
    return [
        escape(name),
        escape(mix.description),
        percent(mix.share["loss_tokens"]),
        percent(mix.share["tokens"]),
        percent(mix.share["rows"]),
        percent(mix.last_share.get(mix.unit)),
        f"{mix.furthest_step.rows:.2f}",
        f"{mix.target_rows:,}",
        f"{mix.replay_rows:,}",
        ", ".join(repeats),
        f"{mix.cost:.3f}×",
    ]


def _notes(name: str, mix: MixResult) -> Iterator[str]:
    for note in mix.notes:
        yield f"{name}: {note}."


def made(
    manifests: Mapping[str, Manifest],
    results: Mapping[str, Result],
    price_per_hour: float | None = None,
) -> str:
    """When, how long and with what: the cost of each step, hashes, versions and the machines."""
    rows = []
    for name, manifest in manifests.items():
        finished = manifest.finished[: len("2025-06-03T14:04")].replace("T", " ")
        if manifest.seconds is not None:  # a program that calls a step's function has no time
            rows.append((name, f"{cost(manifest, results[name]).words}; {finished}"))
    timed = [manifest.seconds for manifest in manifests.values() if manifest.seconds is not None]
    if len(timed) > 1:
        whole = f"{sum(timed):,.1f} s"
        if price_per_hour is not None:
            whole += f", {money(sum(timed), price_per_hour)}"
        rows.append(("together", whole))
    found = [manifest.versions.items() for manifest in manifests.values()]
    versions = {f"{package} {version}" for items in found for package, version in items}
    machines = {manifest.machine for manifest in manifests.values()}
    hashed = hashes(manifests).items()
    rows += [
        ("seed", ", ".join(map(str, seeds(manifests.values())))),
        ("read", ", ".join(f"{name} {digest}" for name, digest in hashed)),
        ("versions", ", ".join(sorted(versions))),
        ("machine", "; ".join(sorted(machines))),
    ]
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows if text
    )
    if not items:
        return ""
    return card("Steps", f"<dl>{items}</dl>")
