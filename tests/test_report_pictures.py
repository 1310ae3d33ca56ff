"""The report's pictures as files of their own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import type_in

from replaykit.data.record import TARGET
from replaykit.errors import RunError
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.report.html.standalone import as_png, pictures, write_pictures

sys.path.insert(0, str(Path(__file__).parent))
import tiny

EVIL = '</text><script>alert(1)</script>\x1b\x00"'
HAS_RESVG = importlib.util.find_spec("resvg_py") is not None


def items(skill: str, right: int) -> list[Item]:
    return [Item(skill, row, float(row < right), answer="?") for row in range(40)]


def drawn(name: str = "tuned") -> dict[str, str]:
    """The pictures of an evaluation with a model of this name."""
    tests = {skill: Scored(path="t.jsonl") for skill in ("json", EVIL, TARGET)}
    found = compare(
        tests,
        {
            "base": {skill: items(skill, 38) for skill in tests},
            name: {skill: items(skill, 20) for skill in tests},
        },
        {},
    )
    return pictures({"eval": found})


def test_each_picture_is_an_svg_that_needs_nothing_else() -> None:
    found = drawn(EVIL)
    assert list(found) == ["learned-against-kept", "base-against-tuned"]
    for picture in found.values():
        root = ElementTree.fromstring(picture)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not [one for one in root.iter() if one.tag.endswith("script")]
        assert "var(" not in picture
        assert "href" not in picture


def test_the_picture_of_skills_has_a_key_of_its_own() -> None:
    texts = [one.text for one in ElementTree.fromstring(drawn("mine")["base-against-tuned"]).iter()]
    assert {"base", "mine", "json"} <= set(texts)


def test_what_is_no_longer_drawn_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a": "<svg/>", "b": "<svg/>"}, png=False)
    assert write_pictures(tmp_path, {"b": "<svg></svg>"}, png=False) == [tmp_path / "b.svg"]
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["b.svg"]
    (tmp_path / "c.svg").write_text("mine")
    with pytest.raises(RunError, match="not what replaykit wrote"):
        write_pictures(tmp_path, {"c": "<svg/>"}, png=False)
    assert (tmp_path / "c.svg").read_text() == "mine"


@pytest.mark.skipif(HAS_RESVG, reason="resvg-py is installed")
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_png_asks_for_the_extra(tmp_path: Path) -> None:
    run = tiny.Run(tmp_path, generate=None)
    run.do("select")
    (tmp_path / "recipe.yaml").write_text(run.recipe.to_yaml())
    type_in("report", "-r", tmp_path / "recipe.yaml", "--png")  # which has no picture of this run
    run.do("mix", "train")
    said = type_in("report", "-r", tmp_path / "recipe.yaml", "--png", code=1)
    assert "replaykit-llm[plots]" in said
    type_in("report", "-r", tmp_path / "recipe.yaml")
    assert [path.name for path in (run.folder / "pictures").glob("*.svg")] == ["loss-train.svg"]


@pytest.mark.skipif(not HAS_RESVG, reason="resvg-py is not installed")
def test_a_png_is_twice_as_large_and_has_its_words() -> None:
    picture = drawn()["learned-against-kept"]
    content = as_png(picture)
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == 1280
    assert content != as_png(picture.replace("new skill learned", ""))
