"""The report says what the numbers say, on a terminal and as a page that needs nothing else."""

from __future__ import annotations

import io
import re
import sys
import time
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from replaykit.chat import Chat
from replaykit.checks.fidelity import RawSample
from replaykit.engines import Engine
from replaykit.report.html import write_report
from replaykit.report.terminal import progress, show
from replaykit.report.verdict import caution, interval, number, percent, verdict
from replaykit.sources.probe import describe, draw


def around(mean: float, by: float = 0.03, n: int = 50) -> dict[str, float]:
    return {"mean": mean, "low": mean - by, "high": mean + by, "n": n}


def evaluation(
    arms: dict[str, tuple[float, float, float]],
    *,
    base: tuple[float, float] = (0.98, 0.01),
    by: float = 0.03,
) -> dict[str, Any]:
    """Arms by name: replay share, old score, new score. Two old skills of the same score."""
    skills = [{"skill": name, "role": "old", "score": "exact", "n": 50} for name in ("nli", "json")]
    skills.append({"skill": "target", "role": "target", "score": "numeric", "n": 100})
    models: list[dict[str, Any]] = []
    for name, (share, old, new) in {"base": (0.0, *base), **arms}.items():
        scores = {"nli": around(old, by), "json": around(old, by), "target": around(new, by)}
        models.append(
            {"model": name, "scores": scores, "old": around(old, by), "target": around(new, by)}
        )
        if name != "base":
            models[-1] |= {
                "ratio": share,
                "share": share,
                "steps": 400,
                "retention": around(old / base[0], by),
            }
            models[-1] |= {"worst": {"skill": "json", "retention": old / base[0]}}
            models[-1] |= {"drop": {skill: around(base[0] - old, by) for skill in ("nli", "json")}}
    return {"skills": skills, "models": models}


def in_nats(rises: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    """Arms by name: replay share, rise of the pool's cross-entropy, the target's cross-entropy."""
    skills = [
        {"skill": name, "role": role, "score": "cross_entropy", "n": 90}
        for name, role in (("pool", "old"), ("target", "target"))
    ]
    models: list[dict[str, Any]] = []
    for name, (share, rise, new) in {"base": (0.0, 0.0, 3.0), **rises}.items():
        scores = {"pool": around(2 + rise), "target": around(new)}
        models.append({"model": name, "scores": scores, "old": None, "target": around(new)})
        if name != "base":
            models[-1] |= {
                "ratio": share,
                "share": share,
                "steps": 400,
                "retention": None,
                "worst": None,
            }
            models[-1] |= {"drop": {"pool": around(rise), "target": around(new - 3)}}
    return {"skills": skills, "models": models}


HELPED = evaluation({"no-replay": (0, 0.10, 0.96), "generated": (0.05, 0.94, 0.97)})
NATS = in_nats({"no-replay": (0, 0.9, 0.5), "generated": (0.05, 0.05, 0.51)})
FUNNEL = {"made": 1712, "dropped": {"too_short": 120, "near_duplicate": 92}, "kept": 1500}
FIDELITY = {
    "drawn": 1712,
    "rows": 1712,
    "kept": 1500,
    "answer_chars": 40,
    "note": None,
    "items": {
        "language": {
            "words": ["en", "de", "other"],
            "raw": [0.9, 0.06, 0.04],
            "kept": [0.92, 0.08, 0.0],
            "distance": 0.04,
            "expected": 0.004,
            "chance": 0.011,
        },
        "category": {
            "words": ["capital, city, france", "word, reverse", "#, sum"],
            "raw": [0.5, 0.3, 0.2],
            "kept": [0.51, 0.3, 0.19],
            "distance": 0.01,
            "expected": 0.009,
            "chance": 0.0164,
        },
    },
}
TAGS = {
    "category": {"Math": 1200, "Planning": 290, "unparsed": 10},
    "quality": {"good": 1490, "unparsed": 10},
}
GENERATED = {
    "asked": 1500,
    "rows": 1500,
    "funnel": FUNNEL,
    "kind": "magpie",
    "fidelity": FIDELITY,
    "tags": TAGS,
}
PROBE: dict[str, Any] = {
    "model": "nano",
    "template": {
        "pre_query": {"text": "<|start|>user\n\n", "ids": [0, 4, 12]},
        "end_of_question": {"text": "<|end|>", "ids": [2]},
        "answer_header": {"text": "<|end|><|start|>assistant\n\n", "ids": list(range(100, 160))},
        "end_of_answer": {"text": "<|end|>", "ids": [2]},
        "joint": None,
    },
    "stop": {"text": ["<|end|>", "<|start|>"], "ids": [2, 4]},
    "system": "folded into the user's turn",
    "default_system": "You are [bold]nano[/].",
    "date": "2025-01-01",
    "bos": 1,
    "thinking": "<think>\n\n</think>",
    "defaults": {"temperature": 0.6, "top_p": 0.9, "top_k": None},
    "samples": ["Name the capital of Peru.", "A list:\n- one\n- two"],
    "verdict": "the template is usable; 2 of 2 questions came to an end by themselves",
}
MIX = {
    "requested": 0.05,
    "share": {"loss_tokens": 0.0499, "tokens": 0.06, "rows": 0.07},
    "target_rows": 12800,
    "replay_rows": 830,
    "repeats": {"generate": 0.55},
}
LOSSES = [
    {"step": step, "loss": 2 / step, "loss/target": 2 / step, "loss/generate": 0.5}
    for step in range(1, 900)
]
MANIFESTS = {
    "generate": {
        "step": "generate",
        "result": {"funnel": FUNNEL},
        "seconds": 12.4,
        "machine": "a machine, 2 CPUs",
    },
    "mix-generated": {"step": "mix-generated", "result": MIX, "seconds": 0.4},
    "train-generated": {
        "step": "train-generated",
        "result": {"steps": 899, "loss": 0.1, "losses": LOSSES},
        "seconds": 71.3,
        "versions": {"torch": "2.13.0"},
        "finished": "2025-06-03T14:04:00+00:00",
    },
}


def page_of(tmp_path: Path, found: dict[str, Any], **changes: Any) -> str:
    given: dict[str, Any] = {
        "title": "my-task",
        "evaluation": found,
        "manifests": MANIFESTS,
        "recipe_yaml": "model: nano\n",
    }
    return write_report(tmp_path / "run" / "report.html", **given | changes).read_text(
        encoding="utf-8"
    )


def shown(step: str, result: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(step, result, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.addresses: list[str | None] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [
            value
            for key, value in attrs
            if key in ("src", "href", "srcset", "data", "action", "xlink:href")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- the verdict ----------------------------------------------------------------------------------------------------


def test_the_verdict_says_that_replay_helped_and_the_new_skill_was_learned() -> None:
    assert verdict(HELPED) == (
        "Without replay the old skills fell from 0.98 to 0.10; with 5 % replay (generated) they stayed at 0.94, "
        "and the new skill was learned equally well (0.97 against 0.96)."
    )


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (
            {"no": (0, 0.30, 0.96), "yes": (0.05, 0.29, 0.95)},
            "they came to 0.29: replay did not help",
        ),
        (
            {"no": (0, 0.30, 0.96), "yes": (0.05, 0.33, 0.95)},
            "they came to 0.33, too near for this test to tell",
        ),
        (
            {"no": (0, 0.30, 0.96), "yes": (0.05, 0.10, 0.95)},
            "they came to 0.10: replay made it worse",
        ),
        ({"no": (0, 0.10, 0.96), "yes": (0.05, 0.20, 0.95)}, "they came to 0.20, a smaller loss"),
        ({"no": (0, 0.10, 0.96), "yes": (0.05, 0.70, 0.95)}, "they fell only to 0.70"),
        ({"no": (0, 0.98, 0.96), "yes": (0.05, 0.98, 0.95)}, "so there was little to protect"),
        (
            {"no": (0, 0.10, 0.96), "yes": (0.05, 0.94, 0.80)},
            "but the new skill was learned less well (0.80 against 0.96)",
        ),
        (
            {"no": (0, 0.10, 0.80), "yes": (0.05, 0.94, 0.96)},
            "and the new skill was learned better (0.96 against 0.80)",
        ),
        (
            {"no": (0, 0.10, 0.96), "yes": (0.05, 0.94, 0.92)},
            "learned with no clear difference (0.92 against 0.96)",
        ),
        (
            {"no": (0, 0.10, 0.02), "yes": (0.05, 0.94, 0.03)},
            "but the new skill shows no measurable gain (0.03, base 0.01)",
        ),
        (
            {"no": (0, 0.10, 0.96), "a": (0.05, 0.94, 0.97), "b": (0.1, 0.8, 0.9)},
            "with 5 % replay (a, the best of 2)",
        ),
    ],
)
def test_the_verdict_is_honest_about(
    arms: dict[str, tuple[float, float, float]], words: str
) -> None:
    assert words in verdict(evaluation(arms))


def test_without_a_control_the_verdict_claims_nothing_for_replay() -> None:
    found = verdict(evaluation({"tuned": (0.05, 0.94, 0.97)}))
    assert found.startswith(
        "With 5 % replay (tuned) the old skills fell from 0.98 to 0.94 and the new skill went from 0.01 to 0.97;"
    )
    assert "no run without replay was evaluated" in found
    assert "no run with replay was evaluated" in verdict(evaluation({"no-replay": (0, 0.1, 0.97)}))


def test_without_arms_the_verdict_says_that_nothing_is_known() -> None:
    assert verdict(evaluation({})) == "Only the base model was evaluated: forgetting is not known."
    assert caution(evaluation({})) == ""


def test_the_verdict_speaks_of_nats_where_nothing_is_right_or_wrong() -> None:
    assert verdict(NATS) == (
        "Without replay the cross-entropy of old data rose by 0.900 nats; with 5 % replay (generated) it rose by only "
        "0.050 nats, and the new skill was learned equally well (0.510 nats against 0.500 nats)."
    )
    worse = verdict(in_nats({"no-replay": (0, 0.1, 0.5), "generated": (0.05, 0.9, 0.5)}))
    assert "it changed by 0.900 nats: replay made it worse" in worse


def test_a_model_that_diverged_is_not_the_best() -> None:
    found = in_nats(
        {
            "no-replay": (0, 0.9, 0.5),
            "good": (0.05, 0.05, 0.51),
            "broken": (0.1, float("nan"), float("nan")),
        }
    )
    assert "(good, the best of 2)" in verdict(found)


def test_an_evaluation_without_old_skills_says_so() -> None:
    found = evaluation({"no": (0, 0.1, 0.9), "yes": (0.05, 0.9, 0.9)})
    found["skills"] = found["skills"][2:]
    for model in found["models"]:
        model |= {"old": None, "retention": None, "worst": None, "drop": {}}
    assert verdict(found).startswith(
        "What became of the old skills is not known, and the new skill was learned"
    )


def test_no_forgetting_is_claimed_only_below_the_margin_for_every_skill() -> None:
    arms = {"no-replay": (0.0, 0.10, 0.96), "generated": (0.05, 0.98, 0.97)}
    found = evaluation(arms, by=0.019)
    assert "no forgetting; every old skill's drop is below 0.02" in caution(found)
    found["models"][2]["drop"]["json"]["high"] = 0.021
    assert "no forgetting" not in caution(found)
    assert "json may have lost up to 0.02" in caution(found)
    del found["models"][2]["drop"]["json"]  # not measured is not below the margin
    assert "no forgetting" not in caution(found)
    assert "no forgetting" not in caution(HELPED) + verdict(HELPED)
    assert "some forgetting is measurable: retention 0.96" in caution(HELPED)


# --- the terminal ---------------------------------------------------------------------------------------------------


def test_numbers_have_one_form() -> None:
    assert [number(0.976), number(-0.001), number(-0.1), number(None), number(float("nan"))] == [
        "0.98",
        "0.00",
        "−0.10",
        "–",
        "–",
    ]
    assert number(2.3449, "nats") == "2.345"
    assert interval({"mean": 0.98, "low": 0.93, "high": 1.0}) == "0.93–1.00"
    assert interval({"mean": 0.04, "low": -0.01, "high": 0.09}) == "−0.01 to 0.09"
    assert [percent(0.05), percent(0.0498), percent(0), percent(None)] == [
        "5 %",
        "4.98 %",
        "0 %",
        "–",
    ]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_tables_fit_the_terminal_and_name_every_model_and_skill(width: int) -> None:
    arms = {f"ratio-{share}": (share, 0.9, 0.9) for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)}
    text = shown("eval", evaluation(arms), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(name in text for name in ["base", *arms, "nli", "json", "target (new)"])
    assert "\x1b" not in text


def test_the_comparison_has_scores_with_intervals_and_the_worst_skill() -> None:
    row = next(line for line in shown("eval", HELPED).splitlines() if line.startswith(" generated"))
    assert row.split() == ["generated", "5", "%", "0.97", "0.94", "0.96", "json", "0.96"]
    assert "0.91–0.97" in shown("eval", HELPED)
    assert "0.94 −0.04" in shown("eval", HELPED)


def test_nats_have_three_digits_and_no_retention() -> None:
    text = shown("eval", NATS)
    assert "2.900 +0.900" in text
    assert "pool, nats" in text
    assert "retention" not in text


def test_each_step_shows_its_own_facts() -> None:
    assert re.findall(r"\S+", shown("generate", {"funnel": FUNNEL}))[1:4] == [
        "made",
        "1,712",
        "100",
    ]
    assert "- near_duplicate     92    5 %" in shown("select", {"funnel": FUNNEL})
    assert "4.99 % of loss tokens, 6 % of tokens, 7 % of rows" in shown("mix-generated", MIX)
    assert "generate 0.55 times" in shown("mix", MIX)
    assert "830 replay, 3 dropped as held_out" in shown(
        "mix", MIX | {"funnel": {"made": 9, "dropped": {"held_out": 3}, "kept": 6}}
    )
    assert "0.100" in shown("train-generated", {"steps": 899, "loss": 0.1, "losses": LOSSES})
    assert "repo  me/my-replay" in shown("push", {"repo": "me/my-replay", "rows": 3})


def test_what_the_checks_did_to_the_sample_is_a_line_an_item() -> None:
    text = shown(
        "generate",
        GENERATED | {"tokens": {"questions": 20_500, "answers": 61_000}, "seconds": 12.4},
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "language 0.040 from the raw sample (chance: 0.011): more than chance" in lines
    assert "category 0.010 from the raw sample (chance: 0.016)" in lines
    assert "tag category Math 1,200, Planning 290, unparsed 10" in lines
    assert "tokens 20,500 of questions, 61,000 of answers, in 12.4 s" in lines
    assert "made 1,712 100 %" in lines
    few = FIDELITY | {"items": {}, "note": "9 rows are too few to compare; 50 are needed"}
    assert "9 rows are too few to compare" in shown("generate", GENERATED | {"fidelity": few})


def test_a_dry_run_shows_its_lines() -> None:
    found = shown(
        "generate", {"rows": 2000, "text": ["2,000 rows: about 2,500 to draw", "about 8 minutes"]}
    )
    assert [line.strip() for line in found.splitlines()] == [
        "generate",
        "2,000 rows: about 2,500 to draw",
        "about 8 minutes",
    ]


def test_a_summary_of_a_real_sample_is_shown(tmp_path: Path) -> None:
    sample = RawSample()
    for row in range(300):
        sample.add(
            row,
            f"What is {row} + {row}?" if row % 3 else f"Name a river near place {row}.",
            9,
            row % 3 > 0,
        )
    result = GENERATED | {"fidelity": sample.summary()}
    assert "length " in shown("generate", result)
    assert "category " in shown("generate", result)
    page = page_of(tmp_path, HELPED, manifests={"generate": {"result": result}})
    assert page.count("distance 0.") == 3
    assert "more than chance" in page
    Balanced(page)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_probe_shows_each_part_as_text_and_as_token_ids(width: int) -> None:
    text = shown("probe", PROBE, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert (
        r"pre-query '<|start|>user\n\n' 0 4 12 end of question '<|end|>' 2 answer header" in words
    )
    assert "joint none: one question only stop '<|end|>' '<|start|>' 2 4" in words
    assert (
        "system prompt folded into the user's turn default system 'You are [bold]nano[/].'" in words
    )
    assert (
        r"date frozen at 2025-01-01 BOS 1 in the pre-query thinking '<think>\n\n</think>'" in words
    )
    assert "defaults temperature 0.6, top_p 0.9 samples 1 'Name the capital of Peru.'" in words
    assert r"2 'A list:\n- one\n- two'" in words
    assert words.endswith(PROBE["verdict"])
    assert all(str(token) in words for token in range(100, 160))


def test_a_probe_of_a_model_without_specials_says_none() -> None:
    bare = {"default_system": None, "date": None, "thinking": None, "defaults": None, "samples": []}
    words = " ".join(shown("probe", PROBE | bare).split())
    assert "default system none date not asked for BOS 1 in the pre-query thinking none" in words
    assert "defaults none in generation_config the template is usable" in words
    start = {
        "model": "base",
        "template": {"start": {"text": "<s>", "ids": [1]}},
        "stop": PROBE["stop"],
    }
    words = " ".join(shown("probe", start | {"defaults": None, "verdict": "a base model"}).split())
    assert "start '<s>' 1 stop" in words
    assert words.endswith("a base model")


def test_token_ids_of_a_probe_are_dimmed_on_a_terminal() -> None:
    console = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system="standard", highlight=False
    )
    show("probe", PROBE, console)
    assert "\x1b[2m0 4 12" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_probe_finds_is_shown(chat: Chat, transformers_engine: Engine) -> None:
    found = {"model": "nano", **describe(chat), **draw(transformers_engine, chat, 3, seed=1)}
    words = " ".join(shown("probe", found, 200).split())
    assert repr(chat.template.pre_query)[1:-1] in words
    assert all(f" {place} " in words for place in (1, 2, 3))


def test_a_name_is_never_read_as_markup() -> None:
    assert "[bold]nli[/]" in shown("push", {"[bold]nli[/]": "[red]x"})


def test_show_prints_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show("eval", HELPED)
    out, err = capsys.readouterr()
    assert "no-replay" in out
    assert err == ""


def test_progress_off_a_terminal_is_a_line_at_the_start_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as watch:
        for done in range(101):
            watch("generate: questions", done, 100)
        watch("generate: questions", 100, 100)
        watch("select", 5, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"generate: questions \.\.\.\ngenerate: questions: 100 in \d+\.\d s\nselect \.\.\.\n", err
    )


def test_progress_off_a_terminal_tells_its_note_every_half_minute_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress() as watch:
        for done in range(0, 3001, 25):
            now = done / 25
            watch("rows", done, 3000, f"{done} tokens/s, yield 87 %")
            watch("silent", done, 3000)
        watch("endless", 1, None)
        now += 31
        watch("endless", 7, None, "2 rows/s")
        watch("rows", 3000, 3000, "again")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("silent")]
    assert lines == [
        "rows ...",
        "rows: 750/3,000, 750 tokens/s, yield 87 %",
        "rows: 1,500/3,000, 1500 tokens/s, yield 87 %",
        "rows: 2,250/3,000, 2250 tokens/s, yield 87 %",
        "rows: 3,000 in 120.0 s, 3000 tokens/s, yield 87 %",
        "endless ...",
        "endless: 7, 2 rows/s",
    ]


def test_progress_on_a_terminal_draws_a_bar_a_piece_of_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress() as watch:
        watch("ask [red]", 0, 1000)
        watch("ask [red]", 1000, 1000, "412 rows/s [b]")
        watch("read", 7, None)
    final = screen.getvalue()
    assert "1,000/1,000" in final
    assert "ask [red]" in final
    assert "412 rows/s [b]" in final
    assert "read" in final


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    for found in (HELPED, NATS, evaluation({"tuned": (0.05, 0.9, 0.9)}), evaluation({})):
        parsed = Balanced(page_of(tmp_path, found))
        assert parsed.addresses == []
        assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(parsed.names)
        assert "url(" not in page_of(tmp_path, found)
        assert "@import" not in page_of(tmp_path, found)


def test_the_page_has_the_verdict_every_model_every_skill_and_the_recipe(tmp_path: Path) -> None:
    page = page_of(tmp_path, HELPED)
    assert escape(verdict(HELPED)) in page
    assert all(
        f">{name}" in page for name in ("base", "no-replay", "generated", "nli", "json", "target")
    )
    for fact in (
        "model: nano",
        "torch 2.13.0",
        "71.3 s",
        "a machine, 2 CPUs",
        "near_duplicate",
        "4.99 %",
        "0.91–0.97",
    ):
        assert fact in page
    assert "drop 0.88" in page


def test_the_page_has_pictures_with_titles(tmp_path: Path) -> None:
    pictures = re.findall(
        r"<svg [^>]*role=\"img\"><title>([^<]+)</title>", page_of(tmp_path, HELPED)
    )
    assert len(pictures) == 3
    assert any(
        "nats" in title for title in re.findall(r"<title>([^<]+)</title>", page_of(tmp_path, NATS))
    )


def test_the_page_sets_the_drawn_rows_against_the_kept(tmp_path: Path) -> None:
    page = page_of(tmp_path, HELPED, manifests={"generate": {"result": GENERATED}})
    for words in (
        "1,712 of 1,712 rows drawn were compared, 1,500 of them kept",
        'distance 0.040, by chance up to 0.011 <span class="far">more than chance</span>',
        "distance 0.010, by chance up to 0.016</p>",
        "capital, city, france",
        "90.0 → 92.0 %",
        "<span>Planning</span>",
        "<span>1,490</span>",
    ):
        assert words in page
    assert page.count('class="pair"') == 6
    Balanced(page)


def test_the_page_says_why_nothing_was_compared(tmp_path: Path) -> None:
    few = FIDELITY | {"items": {}, "note": "no row was kept"}
    page = page_of(
        tmp_path, HELPED, manifests={"generate": {"result": {"funnel": FUNNEL, "fidelity": few}}}
    )
    assert "No comparison: no row was kept." in page
    assert "what a judge says" not in page
    Balanced(page)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>&\ud800'
    found = evaluation({"no-replay": (0, 0.1, 0.9), evil: (0.05, 0.9, 0.9)})
    found["skills"][0]["skill"] = evil
    for model in found["models"]:
        model["scores"][evil] = model["scores"].pop("nli")
    item = {
        "words": [evil],
        "raw": [1.0],
        "kept": [1.0],
        "distance": 0.0,
        "expected": 0.0,
        "chance": 0.0,
    }
    result: dict[str, Any] = {
        "funnel": {"made": 1, "dropped": {evil: 1}, "kept": 0},
        "tags": {evil: {evil: 1}},
    }
    result["fidelity"] = FIDELITY | {"items": {evil: item}}
    manifest = {"result": result, "machine": evil, "seconds": 1.0}
    page = page_of(tmp_path, found, title=evil, manifests={evil: manifest}, recipe_yaml=evil)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10
    Balanced(page)


def test_steps_stand_as_they_run_and_arms_as_they_were_evaluated(tmp_path: Path) -> None:
    names = [
        "eval",
        "generate",
        "mix-generated",
        "mix-no-replay",
        "select",
        "train-generated",
        "train-no-replay",
    ]
    page = page_of(tmp_path, HELPED, manifests={name: {"seconds": 1.0} for name in names})
    shown = re.findall("<dt>([^<]+)</dt>", page)
    assert shown == [
        "select",
        "generate",
        "mix-no-replay",
        "mix-generated",
        "train-no-replay",
        "train-generated",
        "eval",
    ]


def test_the_same_input_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    assert page_of(tmp_path, HELPED) == page_of(tmp_path, HELPED)


def test_a_diverged_model_is_in_the_tables_and_not_in_the_pictures(tmp_path: Path) -> None:
    nothing = float("nan")
    page = page_of(
        tmp_path, in_nats({"no-replay": (0, 0.9, 0.5), "broken": (0.05, nothing, nothing)})
    )
    assert "nan" not in page.replace("nano", "")
    Balanced(page)


def test_losses_that_are_not_numbers_are_left_out_of_the_picture(tmp_path: Path) -> None:
    losses = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}]
    page = page_of(
        tmp_path, HELPED, manifests={"train": {"step": "train", "result": {"losses": losses}}}
    )
    points = re.findall(r'<polyline points="([^"]+)"', page)
    assert [len(line.split()) for line in points] == [2]


def test_a_long_training_is_thinned(tmp_path: Path) -> None:
    points = re.findall(r'<polyline points="([^"]+)"', page_of(tmp_path, HELPED))
    assert len(points) == 2
    assert all(len(line.split()) <= 600 for line in points)


def test_a_run_without_an_evaluation_still_shows_its_data_and_training(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"skills": [], "models": []})
    assert "No model was evaluated" in page
    assert "Model by model" not in page
    assert "near_duplicate" in page
    assert "<polyline" in page
    Balanced(page)


def test_a_report_without_manifests_or_recipe_is_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, evaluation({"tuned": (0.05, 0.9, 0.9)}), manifests={}, recipe_yaml="")
    assert "How it was made" not in page
    Balanced(page)
