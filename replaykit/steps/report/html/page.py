"""The page: its head with the verdict, then one section after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from replaykit.recipe.evaluate import MEMORY
from replaykit.result import Result
from replaykit.runs import Manifest
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.matrix.result import MatrixResult
from replaykit.steps.report.html.blocks import card, colours_of, grid
from replaykit.steps.report.html.browse import HASH, SCRIPT
from replaykit.steps.report.html.decisions import decisions
from replaykit.steps.report.html.matrix import accuracy_matrix, figures
from replaykit.steps.report.html.pictures import dumbbells, losses, scatter
from replaykit.steps.report.html.rows import flipped, replay_rows, rewritten_rows
from replaykit.steps.report.html.samples import replay_cards
from replaykit.steps.report.html.style import STYLE
from replaykit.steps.report.html.sweep import sweeps
from replaykit.steps.report.html.tables import (
    by_label,
    by_model,
    by_rate,
    by_skill,
    by_thought,
    made,
    mixtures,
    perplexities,
)
from replaykit.steps.report.rows import Rows
from replaykit.steps.report.sequence import last_matrix, old_verdict, tasks_verdict
from replaykit.steps.report.verdict import caution, verdict
from replaykit.steps.results import result_of
from replaykit.steps.swept import SweepResult
from replaykit.text import printable

STEPS = ("select", "generate", "rewrite", "augment", "buffer", "mix", "train", "eval", "matrix")

MARK = "· replaykit</title>"  # by which a page is known to be ours
# The policy forbids the page to fetch, to send or to run anything, whatever stands in it, but for
# the one script of ours where there is one.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">\
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title} · replaykit</title><style>{style}</style></head><body><main>
<header><h1>{title}</h1><p class="verdict">{verdict}</p>
<p>{caution}</p>{notes}</header>
{body}
</main>{script}</body></html>
"""


def results_of(manifests: Mapping[str, Manifest]) -> dict[str, Result]:
    """The results of steps by folder name. Raises RunError as ``result_of`` does."""
    return {name: result_of(manifest, Path(name)) for name, manifest in manifests.items()}


def write_report(
    path: Path,
    *,
    title: str,
    manifests: Mapping[str, Manifest],
    recipe_yaml: str,
    private: Mapping[str, str] | None = None,
    rows: Rows | None = None,
    price_per_hour: float | None = None,
) -> Path:
    """Writes the page and returns its path.

    ``manifests`` are the finished steps' by folder name; ``private`` are texts that notes and rows
    may hold and the page must not, each with what stands in its place; ``rows`` are to be browsed.
    With the price of a device the page says what the steps cost.
    Raises RunError for a result that another version of replaykit wrote.
    """
    results = results_of(manifests)
    rows = rows or Rows()
    evaluation = EvalResult(skills=[], models=[])
    for result in results.values():  # a run has one evaluation at most
        if isinstance(result, EvalResult):
            evaluation = result
    matrix = last_matrix(results.values())
    # Folders come in the order of the alphabet; the page has the order of the work.
    models = [model.model for model in evaluation.models]
    said = (verdict(evaluation), caution(evaluation))
    notes = evaluation.notes
    swept = [result for result in results.values() if isinstance(result, SweepResult)]
    if swept and not evaluation.models:
        said = (swept[0].words, "")
    if matrix is not None:
        models = matrix.tasks
        said = (tasks_verdict(matrix), old_verdict(matrix))
        notes = matrix.notes
    order = sorted(manifests, key=lambda name: _place(manifests[name], name, models))
    body = _body(
        evaluation,
        matrix,
        {name: results[name] for name in order},
        {name: manifests[name] for name in order},
        recipe_yaml,
        rows,
        price_per_hour,
    )
    policy = POLICY
    script = ""
    if 'class="card browse"' in body:
        policy += f"; script-src 'sha256-{HASH}'"
        script = f"<script>{SCRIPT}</script>"
    page = PAGE.format(
        title=escape(title),
        policy=policy,
        script=script,
        style=STYLE,
        verdict=escape(said[0]),
        caution=escape(said[1]),
        notes="".join(f"<p>Note: {escape(note)}</p>" for note in notes),
        body=body,
    )
    for text, instead in (private or {}).items():
        page = page.replace(escape(text), escape(instead))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may hold half of a surrogate pair, which UTF-8 cannot write.
    path.write_bytes(printable(page).encode("utf-8", "replace"))
    return path


def _place(manifest: Manifest, name: str, models: Sequence[str]) -> tuple[int, int, str]:
    """Where a step stands: steps as they run, arms as they were evaluated, others before them."""
    step = STEPS.index(manifest.step) if manifest.step in STEPS else -1
    arm = models.index(manifest.arm) if manifest.arm in models else -1
    return step, arm, name


def _body(
    evaluation: EvalResult,
    matrix: MatrixResult | None,
    results: Mapping[str, Result],
    manifests: Mapping[str, Manifest],
    recipe_yaml: str,
    rows: Rows,
    price_per_hour: float | None,
) -> str:
    """All sections that have something to show, steps in order."""
    colours = colours_of(evaluation)
    recipe = ""
    if recipe_yaml.strip():
        recipe = card("Recipe", f"<pre>{escape(recipe_yaml)}</pre>")
    replay = [
        made
        for name, result in results.items()
        if manifests[name].step != MEMORY  # whose rows are tests
        for made in replay_cards(name, result)
    ]
    pictures = grid([scatter(evaluation, colours), dumbbells(evaluation, colours)])
    sections = {
        "Accuracy matrix": "" if matrix is None else accuracy_matrix(matrix),
        "Transfer and forgetting": "" if matrix is None else figures(matrix),
        "What was learned, what was kept": pictures,
        "How much replay is enough": sweeps(results),
        "Model by model": by_model(evaluation, colours),
        "Skill by skill": by_skill(evaluation, colours),
        "Which items flipped": flipped(rows.flips),
        "Label by label": by_label(evaluation, colours),
        "Thoughts before the answers": by_thought(evaluation, colours),
        "Answers that decline or repeat themselves": by_rate(evaluation, colours),
        "Training loss": grid(losses(results), "grid three"),
        "What the controller decided": grid(decisions(results)),
        "The replay data": grid(replay),
        "The replay rows that were used": replay_rows(rows.replayed),
        "The rows that were rewritten": perplexities(results) + rewritten_rows(rows.rewritten),
        "The mix": mixtures(results),
        "How it was made": grid([recipe, made(manifests, results, price_per_hour)]),
    }
    return "\n".join(
        f"<section><h2>{heading}</h2>\n{content}</section>"
        for heading, content in sections.items()
        if content
    )
