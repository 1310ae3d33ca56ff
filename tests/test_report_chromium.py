"""The page in a real Chromium: nothing of a row runs, the filters work, it fits a phone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replaykit.data.record import Record, dialogue
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.report.flips import Flip, Flips
from replaykit.steps.report.html import write_report
from replaykit.steps.report.replayed import Replayed, Used
from replaykit.steps.report.rows import Rows

sys.path.insert(0, str(Path(__file__).parent))
from browser import CHROMIUM, Browser, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]
HOSTILE = [
    "<script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 1'>",
    "</script><script>window.owned = 1</script>",
    "</div></details></main><svg onload='window.owned = 1'>",
    "<a href='javascript:window.owned = 1'>click</a>",
    "<iframe srcdoc='<script>parent.owned = 1</script>'></iframe>",
    '" onmouseover="window.owned = 1" autofocus onfocus="window.owned = 1',
    "\x00\u2028\u2029\u202e\x1b]0;owned\x07 `${window.owned = 1}`",
    "<meta http-equiv=refresh content='0;url=https://example.org/'>",
    "<link rel=stylesheet href=https://example.org/x.css><base href=https://example.org/>",
    "long " + "x" * 5_000,
]
SKILLS = ("facts", HOSTILE[0])
MODELS = ("tuned", HOSTILE[6])


def hostile_rows() -> Rows:
    """Each text as a question, a reference, both answers, a thought and a call of two skills and
    two models, and as replay.
    """
    flips = []
    for place, text in enumerate(HOSTILE):
        call = {"name": text, "arguments": {text: text}}
        base = Item("x", place, 1.0, answer=text, reasoning=text, calls=[call])
        tuned = Item("x", place, 0.0, answer=text, finish="length")
        asked = Record(dialogue(text, text), "target")
        way: Any = "lost" if place % 3 else "gained"
        flips.append(Flip(SKILLS[place % 2], place, MODELS[place % 2], way, asked, base, tuned))
    used = [Used(Record(dialogue(text, text), "select"), text, 2, text) for text in HOSTILE]
    counts: Any = {(SKILLS[0], MODELS[0], "lost"): 7, (SKILLS[1], MODELS[1], "gained"): 4}
    return Rows(Flips(flips, counts), [Replayed(HOSTILE[0], 50, 90, used)])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    yaml = "".join(HOSTILE)
    return write_report(
        folder / "report.html",
        title=HOSTILE[0],
        manifests={},
        recipe_yaml=yaml,
        rows=hostile_rows(),
    )


def of(page: Page, place: int, what: str) -> Any:
    """What an expression gives of a block of rows, which it calls ``block``."""
    return page.ask(f"(block => {what})(document.querySelectorAll('.browse')[{place}])")


def choose(page: Page, place: int, name: str, value: str) -> None:
    """Types into the search or chooses in a list, and lets the page hear of it."""
    page.ask(
        f"(block => {{ const one = block.querySelector('{name}'); one.value = '{value}'; "
        "one.dispatchEvent(new Event('input', {bubbles: true})) })"
        f"(document.querySelectorAll('.browse')[{place}])"
    )


def visible(page: Page, place: int) -> int:
    return int(of(page, place, "block.querySelectorAll('.case:not([hidden])').length"))


def test_nothing_of_a_row_runs_and_nothing_is_fetched(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.ask(
        "document.querySelectorAll('*').forEach(one => { for (const kind of ['mouseover', "
        "'focus', 'click']) one.dispatchEvent(new Event(kind)) })"
    )
    page.ask("new Promise(done => setTimeout(done, 300))")
    assert page.ask("window.owned === undefined")
    assert page.said == []
    assert page.fetched == [path.resolve().as_uri()]
    wanted = "'main script, img, iframe, main a, link, base, main meta'"
    assert page.ask(f"document.querySelectorAll({wanted}).length") == 0
    said = page.ask("document.querySelector('.browse').textContent")
    assert all(text in said for text in HOSTILE[:7])


def test_the_filters_show_what_fits_and_count_it(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    count = "block.querySelector('output').textContent"
    assert visible(page, 0) == 11
    assert of(page, 0, count) == "11 of 11"
    choose(page, 0, "select[name=skill]", "1")
    assert visible(page, 0) == 5
    choose(page, 0, "select[name=direction]", "1")
    both = visible(page, 0)
    assert 0 < both < 5
    assert of(page, 0, count) == f"{both} of 11"
    assert visible(page, 1) == 11  # a list of its own
    choose(page, 0, "select[name=skill]", "")
    choose(page, 0, "select[name=direction]", "")
    choose(page, 0, "input", "IFRAME")
    assert visible(page, 0) == 1
    choose(page, 0, "input", "no row says this")
    assert of(page, 0, count) == "0 of 11"
    assert page.said == []


def test_without_scripts_the_rows_open_and_no_filter_is_shown(browser: Browser, path: Path) -> None:
    page = browser.open(path, scripts=False)
    assert visible(page, 0) == 11
    assert of(page, 0, "block.querySelector('.filters').offsetHeight") == 0
    assert of(page, 0, "block.querySelector('summary').click() || true")
    assert of(page, 0, "block.querySelector('.side').offsetHeight") > 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_is_as_wide_as_the_screen(
    browser: Browser, path: Path, width: int, dark: bool
) -> None:
    page = browser.open(path, width=width, dark=dark)
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.ask("document.documentElement.scrollWidth <= window.innerWidth")
    ground = page.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(19, 22, 25)" if dark else "rgb(247, 246, 243)")
    sides = page.ask(
        "[...document.querySelectorAll('.side')].slice(0, 2).map(one => one.offsetTop)"
    )
    assert (sides[0] == sides[1]) == (width > 600)
    assert page.picture().startswith(b"\x89PNG")
