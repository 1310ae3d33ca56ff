"""Publishing: what lies in the folder, what the card says, what reaches the Hub, and that the token
stays secret.

The Hub is ``loopback_hub``, over real HTTP with the real client; the data are read back by
``datasets.load_dataset``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from replaykit.checks.funnel import FunnelCounts
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError, HubError, RecipeError, RunError
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.push import Push
from replaykit.runs import Manifest
from replaykit.steps.mix.result import MixResult
from replaykit.steps.public.settings import named, public_recipe
from replaykit.steps.push.card import Recorded, dataset_card
from replaykit.steps.push.hub import prepare, upload
from replaykit.steps.push.licence import Licence, licence_of
from replaykit.steps.push.refusal import WAITS
from replaykit.steps.push.result import PushResult
from replaykit.steps.report.numbers import percent
from replaykit.steps.results import result_of

sys.path.insert(0, str(Path(__file__).parent))
import tiny
from loopback_hub import READ, WRITE, LoopbackHub

REPO = "me/my-replay"
GENERATED = [
    Record(dialogue("2 + 2?", "4"), "generate", {"row": 0, "temperature": 0.9, "finish": "stop"}),
    Record(
        dialogue("Zürich in 日本語?", "チューリッヒ ✓", system="Be brief."),
        "generate",
        {"row": 1, "temperature": 0.9},
    ),
    Record((*dialogue("a", "b"), *dialogue("```c```", "```\n---\nd\n```")), "generate", {}),
]
SELECTED = [
    Record(dialogue("capital of France?", "Paris"), "select", {"rank": 1, "score": 0.5}),
    Record(({"role": "text", "content": "plain " * 300},), "select", {"rank": 2}),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tiny.Run:
    """Two sources and their mixture, made on the embedded model."""
    made = tiny.Run(
        tmp_path_factory.mktemp("run"),
        name="my-task",
        seed=7,
        select={"n": 2},
        generate={"n": 3, "temperature": 0.9},
        mix={"ratio": 0.1},
        push={"repo": REPO},
    )
    made.do("select", "generate", "mix")
    return made


@dataclass
class Made:
    """A run's two sources as their steps leave them, with rows and counts that are easy to find
    again.
    """

    recipe: Recipe
    sources: dict[str, Path]
    manifests: dict[str, Manifest]

    def prepare(self, folder: Path, repo: str = REPO) -> PushResult:
        return prepare(folder, repo, self.recipe, self.sources, self.manifests)

    def change(self, step: str, **changes: object) -> None:
        """Writes other facts into the result of a step."""
        manifest = self.manifests[step]
        changed = result_of(manifest, Path(step)).model_copy(update=changes)
        self.manifests[step] = manifest.model_copy(update={"result": changed.to_json()})


@pytest.fixture
def made(run: tiny.Run, tmp_path: Path) -> Made:
    sources = {}
    for name, rows in {"generate": GENERATED, "select": SELECTED}.items():
        sources[name] = tmp_path / "runs" / "my-task" / name / "rows.jsonl"
        sources[name].parent.mkdir(parents=True)
        write_jsonl(sources[name], rows)
    found = Made(run.recipe, sources, run.manifests)
    found.change(
        "generate",
        model="qwen2.5-0.5b",
        revision="0a1b2c3d",
        funnel=FunnelCounts(made=1303, dropped={"duplicate": 800, "cut_off": 500}, kept=3),
    )
    share = {"loss_tokens": 0.3, "tokens": 0.2, "rows": 0.0998}
    found.change("mix", share=share)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the client keeps its files: one folder for all tests, since hf_xet opens its log there
    once.
    """
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """The client knows no token of whoever runs this, and can reach nothing but this machine."""
    from huggingface_hub import close_session, constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    lookup = socket.getaddrinfo

    def only_loopback(host: Any, *rest: Any, **more: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a test asked for {host}"
        return lookup(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", only_loopback)
    close_session()  # the client keeps one, made with the environment before


@pytest.fixture(params=["regular", "lfs"])
def hub(
    request: pytest.FixtureRequest, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """A Hub that takes parquet in the commit, for the client with hf_xet; and one with LFS, for the
    client without.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub", lfs=request.param == "lfs") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
    assert running.unknown == []


# --- the folder -----------------------------------------------------------------------------------


def test_the_folder_has_a_parquet_file_for_each_source_a_card_and_the_recipe(
    made: Made, tmp_path: Path
) -> None:
    result = made.prepare(tmp_path / "push")
    files = ["README.md", "replaykit.yaml", "data/generate.parquet", "data/select.parquet"]
    place = str(tmp_path / "push")
    rows = {"generate": 3, "select": 2}
    notes = result.notes
    assert result == PushResult(repo=REPO, folder=place, rows=rows, files=files, notes=notes)
    assert sorted(found_in(tmp_path / "push")) == sorted([".replaykit.json", *files])


def test_the_parquet_files_state_their_features(made: Made, tmp_path: Path) -> None:
    import pyarrow.parquet

    made.prepare(tmp_path / "push")
    schema = pyarrow.parquet.read_schema(tmp_path / "push" / "data" / "generate.parquet")
    assert schema.names == ["id", "messages", "source", "meta"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["messages"]["feature"]["content"] == {"dtype": "string", "_type": "Value"}


def test_the_same_rows_give_the_same_bytes_twice(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "one")
    made.prepare(tmp_path / "two")
    assert found_in(tmp_path / "one") == found_in(tmp_path / "two")


def test_a_source_that_is_no_longer_there_leaves_no_file(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    del made.sources["select"]
    assert made.prepare(tmp_path / "push").files == [
        "README.md",
        "replaykit.yaml",
        "data/generate.parquet",
    ]
    assert "data/select.parquet" not in found_in(tmp_path / "push")


def test_the_published_recipe_is_the_recipe_with_names_for_paths(
    made: Made, tmp_path: Path
) -> None:
    made.recipe = made.recipe.model_copy(
        update={"mix": made.recipe.mix.model_copy(update={"near_duplicate": None})}
    )
    made.prepare(tmp_path / "push")
    found = load_recipe(tmp_path / "push" / "replaykit.yaml")
    same = ("name", "model", "seed", "generate", "mix", "train")
    assert [getattr(found, key) for key in same] == [getattr(made.recipe, key) for key in same]
    assert found.select is not None and found.select.pool.path == "pool.jsonl"
    assert found.select.n == 2
    assert (found.out, found.push.repo, found.engine.name) == (None, None, "auto")


PLACES = {
    "out": "/home/ada/acme/runs/m",
    "model": "/home/ada/models/acme-7b",
    "target": {"path": "/home/ada/acme/tickets.jsonl", "prompt": "title", "answer": "text"},
    "select": {"pool": "clients/acme/pool.jsonl", "against": ["/mnt/acme/bench.jsonl"]},
    "generate": {"systems": {"You work for acme.": 1.0, "code": 2.0}, "tools": "acme/tools.json"},
    "rewrite": {"editor": "/home/ada/models/acme-editor"},
    "mix": {"sources": {"/home/ada/acme/val": 2.0, "generate": 1.0}},
    "eval": {"target": "/home/ada/acme/test.jsonl", "old": {"chat": "~/acme/chat.jsonl"}},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"engine": {"server": "http://user:password@host.internal:8000/v1"}},
            ["password", "host.internal", "server:"],
        ),
        (PLACES, ["/home", "ada", "/acme", "acme/", "/mnt", "clients", "work for"]),
        ({"revision": "hf_abcdefgh12345678"}, ["hf_abcdefgh12345678"]),
        ({"generate": {"tags": {"judge": "http://ada:pw@judge.internal/v1"}}}, ["judge.internal"]),
        ({"select": {"method": "stratified", "column": "ada@acme.example"}}, ["acme.example"]),
        (
            {
                "eval": {
                    "judge": {
                        "model": "/home/ada/judge",
                        "server": "http://ada:pw@judge.internal/v1",
                    }
                }
            },
            ["judge.internal", "/home", "server:"],
        ),
    ],
)
def test_no_server_user_token_or_folder_of_the_recipe_is_published(
    changes: dict[str, Any], words: list[str], made: Made, run: tiny.Run, tmp_path: Path
) -> None:
    made.recipe = run.changed(**changes)
    made.prepare(tmp_path / "push")
    for name in ("README.md", "replaykit.yaml"):
        text = (tmp_path / "push" / name).read_text(encoding="utf-8")
        assert not [word for word in words if word in text]
    load_recipe(tmp_path / "push" / "replaykit.yaml")


def test_what_tells_how_the_rows_were_made_is_published(run: tiny.Run) -> None:
    recipe = run.changed(**PLACES, arms={"few": {"ratio": 0.1}}, revision="main")
    found = yaml.safe_load(public_recipe(recipe))
    assert found["model"] == "acme-7b"
    assert found["target"] == {"path": "tickets.jsonl", "prompt": "title", "answer": "text"}
    assert found["select"]["against"] == ["bench.jsonl"]
    assert found["generate"]["systems"] == {"code": 2.0}
    assert found["rewrite"]["editor"] == {"model": "acme-editor"}
    assert found["mix"] == {"ratio": 0.2, "sources": {"./val": 2.0, "generate": 1.0}}
    assert found["eval"]["old"]["chat"] == {"path": "chat.jsonl"}
    assert found["arms"] == {"few": {"ratio": 0.1}}
    assert found["revision"] == "main"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama3", "llama3"),
        ("owner/name", "owner/name"),
        ("owner/rows.jsonl", "rows.jsonl"),
        ("/srv/models/mine", "mine"),
        ("../mine", "mine"),
        ("https://host/x", "withheld"),
    ],
)
def test_a_name_is_that_of_the_hub_or_the_last_part_of_a_path(name: str, said: str) -> None:
    assert named(name) == said


def test_preparing_sends_no_request(made: Made, tmp_path: Path, hub: LoopbackHub) -> None:
    made.prepare(tmp_path / "push")
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo", ["my-replay", "a/b/c", "me/", "me/my replay", "me/a..b", "me/.hidden", ""]
)
def test_a_name_that_is_no_owner_and_name_is_refused_before_anything_is_written(
    repo: str, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match="give owner/name"):
        made.prepare(tmp_path / "push", repo)
    assert not (tmp_path / "push").exists()


def test_a_name_that_is_no_owner_and_name_is_refused_before_anything_is_sent(
    tmp_path: Path, hub: LoopbackHub
) -> None:
    with pytest.raises(HubError, match="give owner/name"):
        upload(tmp_path, "my-replay", private=True, token=WRITE)
    assert hub.requests == []


def test_a_source_without_rows_is_an_error_that_names_the_file(made: Made, tmp_path: Path) -> None:
    write_jsonl(made.sources["select"], [])
    with pytest.raises(DataError, match=r"select/rows\.jsonl: no rows"):
        made.prepare(tmp_path / "push")
    assert not (tmp_path / "push").exists()


# --- a row's own columns --------------------------------------------------------------------------

USERS = [
    Record(
        dialogue("a?", "b"),
        "select",
        {"rank": 1, "score": 0.5, "customer_email": "ada@acme.example", "internal_path": "/x/y"}
        | {"api": "k", "columns": {"rank": 77}},
    ),
    Record(dialogue("c?", "d"), "select", {"rank": 2, "score": math.nan, "skill": "letters"}),
]
ANSWERED = [
    Record(
        dialogue("e?", "f"),
        "generate",
        {"row": 0, "line": 3, "model": "/home/ada/acme-7b", "system": "You work for acme."}
        | {"prompt": {"finish": "glossy"}, "customer_email": "bob@acme.example"},
    )
]


def published_meta(made: Made, folder: Path, source: str = "select") -> list[dict[str, Any]]:
    """The meta of the rows as the parquet has it."""
    import pyarrow.parquet

    made.prepare(folder)
    texts = pyarrow.parquet.read_table(folder / "data" / f"{source}.parquet")["meta"].to_pylist()
    assert "NaN" not in str(texts)
    return [json.loads(text) for text in texts]


def test_of_a_row_only_what_replaykit_wrote_is_published(made: Made, tmp_path: Path) -> None:
    write_jsonl(made.sources["select"], USERS)
    write_jsonl(made.sources["generate"], ANSWERED)
    found = published_meta(made, tmp_path / "push")
    assert found == [{"rank": 1, "score": 0.5}, {"rank": 2, "score": None}]
    (answered,) = published_meta(made, tmp_path / "push", "generate")
    assert answered == {"row": 0, "line": 3, "model": "acme-7b"}
    card_text = (tmp_path / "push" / "README.md").read_text(encoding="utf-8")
    assert "acme.example" not in card_text


def test_the_result_names_the_columns_that_stay(made: Made, tmp_path: Path) -> None:
    write_jsonl(made.sources["select"], USERS)
    result = made.prepare(tmp_path / "push")
    assert result.left_out == ["customer_email", "internal_path", "api", "rank", "skill"]
    assert any("customer_email, internal_path" in note for note in result.notes)
    assert any("push.columns" in note for note in result.notes)


def test_a_column_that_is_asked_for_is_published(made: Made, tmp_path: Path) -> None:
    write_jsonl(made.sources["select"], USERS)
    write_jsonl(made.sources["generate"], ANSWERED)
    push = made.recipe.push.model_copy(update={"columns": ["skill", "rank", "finish"]})
    made.recipe = made.recipe.model_copy(update={"push": push})
    found = published_meta(made, tmp_path / "push")
    assert found == [
        {"rank": 1, "score": 0.5, "columns": {"rank": 77}},
        {"rank": 2, "score": None, "skill": "letters"},
    ]
    (answered,) = published_meta(made, tmp_path / "push", "generate")
    assert answered["columns"] == {"finish": "glossy"}


def test_a_column_that_no_row_has_is_an_error(made: Made, tmp_path: Path) -> None:
    write_jsonl(made.sources["select"], USERS)
    push = made.recipe.push.model_copy(update={"columns": ["skil"]})
    made.recipe = made.recipe.model_copy(update={"push": push})
    with pytest.raises(DataError, match="no row has a column 'skil'; did you mean 'skill'"):
        made.prepare(tmp_path / "push")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, None),
        ([1.5, math.nan], [1.5, None]),
        ({"a": {"b": math.nan}}, {"a": {"b": None}}),
    ],
)
def test_nan_is_null_in_what_is_published(
    value: Any, said: Any, made: Made, tmp_path: Path
) -> None:
    rows = [Record(dialogue("a?", "b"), "select", {"rank": 1, "mine": value})]
    write_jsonl(made.sources["select"], rows)
    push = made.recipe.push.model_copy(update={"columns": ["mine"]})
    made.recipe = made.recipe.model_copy(update={"push": push})
    assert published_meta(made, tmp_path / "push") == [{"rank": 1, "mine": said}]


# --- what is in the way ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["README.md", "replaykit.yaml", "data/select.parquet", "data/generate.parquet"]
)
def test_nothing_is_published_over_a_file_of_ones_own(
    name: str, made: Made, tmp_path: Path
) -> None:
    own = tmp_path / "mine" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(RunError, match=f"{name}: it is there, and it is not what replaykit wrote"):
        made.prepare(tmp_path / "mine")
    assert found_in(tmp_path / "mine") == {name: digest(b"mine")}


def test_a_card_that_was_edited_is_not_replaced(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    card_file = tmp_path / "push" / "README.md"
    card_file.write_text("My own words.")
    with pytest.raises(RunError, match="move it away"):
        made.prepare(tmp_path / "push")
    assert card_file.read_text() == "My own words."
    card_file.unlink()
    made.prepare(tmp_path / "push")


def test_a_link_in_the_folder_is_not_followed(made: Made, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "push").mkdir()
    (tmp_path / "push" / "README.md").symlink_to(tmp_path / "notes.md")
    with pytest.raises(RunError, match="it is not what replaykit wrote"):
        made.prepare(tmp_path / "push")
    assert (tmp_path / "notes.md").read_text() == "mine"


# --- the licence ----------------------------------------------------------------------------------


def write_card(folder: Path, **settings: Any) -> Path:
    """A folder with a card of these settings; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"---\n{yaml.safe_dump(settings)}---\n# A card\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def licensed(tmp_path: Path, model: Any, data: Any, said: str | None = None) -> Licence:
    """The licence of both sources, with these in the model's and the pool's cards."""
    where = write_card(tmp_path / "m7", license=model, base_model="owner/base")
    pool = write_card(tmp_path / "pool", license=data) / "rows.jsonl"
    pool.touch()
    recipe = Recipe(push=Push(license=said))
    return licence_of(recipe, ["generate", "select"], str(where), str(pool))


def test_the_licence_is_that_of_the_cards(made: Made, tmp_path: Path) -> None:
    found = licensed(tmp_path, "mit", "MIT")
    assert (found.name, found.base_model, found.notes) == ("mit", "owner/base", ())
    text = dataset_card(
        repo=REPO,
        recipe=made.recipe,
        recorded=Recorded.of(made.manifests),
        counts={"generate": 3},
        examples=[],
        licence=found,
    )
    assert front_matter(text)["license"] == "mit"
    assert front_matter(text)["base_model"] == "owner/base"
    assert "which was made from `owner/base`," in text
    assert "## Licence\n\n`mit`." in text


@pytest.mark.parametrize(("model", "data"), [("mit", None), (None, "mit"), (None, None)])
def test_a_licence_that_a_card_does_not_say_is_unknown_and_that_is_said(
    model: Any, data: Any, tmp_path: Path
) -> None:
    found = licensed(tmp_path, model, data)
    assert found.name == "unknown"
    assert "the licence is unknown" in found.notes[0] and "--license" in found.notes[0]
    assert ("the model 'm7'" in found.notes[0]) is (model is None)
    assert ("the data 'rows.jsonl'" in found.notes[0]) is (data is None)


def test_licences_that_conflict_are_both_named_and_a_flag_decides(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'m7' says mit and .*'rows.jsonl' says gpl-3.0.*--lic"):
        licensed(tmp_path, "mit", "gpl-3.0")
    assert licensed(tmp_path, "mit", "gpl-3.0", "cc0-1.0") == Licence("cc0-1.0", "owner/base")


def test_only_the_card_of_what_is_published_counts(tmp_path: Path) -> None:
    where = write_card(tmp_path / "m", license="other", license_name="acme-1")
    found = licence_of(Recipe(), ["generate"], str(where), None)
    assert (found.name, found.notes) == ("acme-1", ())
    assert licence_of(Recipe(), ["select"], "owner/m", str(where)) == Licence("acme-1", "owner/m")


# --- the card -------------------------------------------------------------------------------------


def card(
    made: Made,
    counts: Mapping[str, int] = {"generate": 3, "select": 2},
    examples: Sequence[Record] = GENERATED,
) -> str:
    return dataset_card(
        repo=REPO,
        recipe=made.recipe,
        recorded=Recorded.of(made.manifests),
        counts=counts,
        examples=examples,
        licence=Licence(),
    )


def section(text: str, heading: str) -> str:
    """The part of a card under a heading."""
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_says_model_revision_seed_method_and_settings(made: Made) -> None:
    text = card(made)
    assert "* model: `Qwen/Qwen2.5-0.5B-Instruct`, revision `0a1b2c3d`" in text
    assert "* seed: 7" in text
    assert "(Magpie)" in text
    assert "TF-IDF" in text
    assert "* settings: n 3" in text
    assert "| `generate` | questions and answers of the model itself (Magpie) | 3 |" in text


def test_the_card_counts_what_was_dropped_by_reason(made: Made) -> None:
    text = card(made)
    rows = [
        "| made | 1,303 |",
        "| dropped: duplicate | 800 |",
        "| dropped: cut_off | 500 |",
        "| kept | 3 |",
    ]
    assert "\n".join(rows) in text


def test_the_card_has_the_recipe_that_is_published(made: Made) -> None:
    block = card(made).split("## Recipe\n\n```yaml\n")[1].split("```")[0]
    assert block == public_recipe(made.recipe)
    Recipe.model_validate(yaml.safe_load(block))


def test_the_card_says_which_share_was_asked_for_and_which_came_out(made: Made) -> None:
    assert "Replay was asked to be 10 % of the rows of training; it came out as 9.98 %." in card(
        made
    )
    del made.manifests["mix"]
    assert "asked to be" not in card(made)


def test_the_card_says_how_to_load_the_data_and_its_recipe_is_valid(made: Made) -> None:
    text = card(made)
    assert 'datasets.load_dataset("me/my-replay")  # replay["generate"], replay["select"]' in text
    pool = yaml.safe_load(text.split("in `replaykit.yaml`:\n\n```yaml\n")[1].split("```")[0])
    assert Recipe.model_validate(pool).select is not None


def test_the_front_matter_parses_and_names_files_that_exist(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    data = front_matter((tmp_path / "push" / "README.md").read_text())
    assert data["tags"] == ["replaykit", "replay", "continual-learning", "synthetic"]
    assert data["task_categories"] == ["text-generation"]
    assert data["size_categories"] == ["n<1K"]
    files = data["configs"][0]["data_files"]
    assert [file["split"] for file in files] == ["generate", "select"]
    assert all((tmp_path / "push" / file["path"]).is_file() for file in files)


def test_the_card_invents_no_licence_and_no_language(made: Made) -> None:
    text = card(made)
    data = front_matter(text)
    assert data["license"] == "unknown"
    assert "language" not in data
    assert "the licence of `Qwen/Qwen2.5-0.5B-Instruct` applies" in text
    assert "the licence of that data" in text


def test_selected_rows_alone_are_not_called_synthetic(made: Made) -> None:
    text = card(made, counts={"select": 1500}, examples=SELECTED)
    data = front_matter(text)
    assert "synthetic" not in data["tags"]
    assert data["size_categories"] == ["1K<n<10K"]
    assert "What a model wrote" not in text


def test_an_example_cannot_end_its_own_block_and_a_long_one_is_cut(made: Made) -> None:
    text = card(made, examples=[GENERATED[2], SELECTED[1]])
    block = text.split("````json\n")[1].split("\n````\n")[0]
    assert [message["content"] for message in json.loads(block)] == [
        "a",
        "b",
        "```c```",
        "```\n---\nd\n```",
    ]
    assert "… (1,800 characters)" in text


def test_the_card_shows_three_rows_of_all_sources(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    examples = (tmp_path / "push" / "README.md").read_text().split("## Examples")[1]
    assert [line for line in examples.splitlines() if line.startswith("From")] == [
        "From `generate`:",
        "From `select`:",
        "From `generate`:",
    ]


def test_the_card_says_the_recorded_settings_whatever_the_recipe_says_now(
    made: Made, run: tiny.Run
) -> None:
    made.change("generate", model="nano", revision=None)
    made.recipe = run.changed(seed=8, select={"method": "random"}, generate={"temperature": 0.1})
    text = card(made)
    assert "* model: `nano`\n" in text
    assert "* engine: transformers\n" in text
    assert text.count("* seed: 7\n") == 2
    (settings,) = re.findall(r"\* settings: (.*)", section(text, "How `generate` was made"))
    assert {"n 3", "temperature 0.9", "checks.max_repeat 0.5"} <= set(settings.split(", "))
    assert "None" not in settings and "False" not in settings
    (settings,) = re.findall(r"\* settings: (.*)", section(text, "How `select` was made"))
    assert {"pool `pool.jsonl`", "n 2", "method `tfidf`"} <= set(settings.split(", "))
    assert "TF-IDF" in section(text, "Sources")


def test_of_rows_without_a_manifest_the_card_says_that_nothing_is_known(made: Made) -> None:
    made.manifests = {}
    text = card(made, counts={"rewrite": 3}, examples=[])
    assert source_rows(text)["rewrite"].startswith(
        "rows that were given; how they were made is not"
    )
    assert "was made\n" not in text
    assert "synthetic" in front_matter(text)["tags"]
    assert "What a model wrote" in text
    assert "What was copied" not in text


def test_a_local_model_is_named_without_the_folders_above_it(made: Made, tmp_path: Path) -> None:
    (tmp_path / "secret-place" / "my-model").mkdir(parents=True)
    made.change("generate", model=str(tmp_path / "secret-place" / "my-model"))
    assert "`my-model`" in card(made)
    assert "secret-place" not in card(made)
    made.change("generate", model="nano")
    assert "* model: `nano`" in card(made)


# --- the card says what was done ------------------------------------------------------------------


def card_of(run: tiny.Run) -> str:
    """The card of what the run has made so far."""
    folder = Path(run.path("push"))
    found = run.manifests
    sources = {
        name: run.folder / name / "rows.jsonl" for name in ("select", "generate") if name in found
    }
    prepare(folder, REPO, run.recipe, sources, found)
    return (folder / "README.md").read_text(encoding="utf-8")


def source_rows(text: str) -> dict[str, str]:
    """What the card says of each split."""
    rows = [line.split(" | ") for line in section(text, "Sources").splitlines()[3:]]
    return {row[0].strip("|` "): row[1] for row in rows if len(row) == 3}


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model2vec folder of two words."""
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "[PAD]", "the", "capital"]
    levels = WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(levels)
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path_factory.mktemp("hidden") / "static"
    model = model2vec.StaticModel(np.eye(4, dtype=np.float32), tokenizer)
    model.save_pretrained(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "tfidf"}, "old data whose prompts are nearest to the new task's, by TF-IDF"),
        (
            {"method": "tfidf", "to": "centroid"},
            "old data whose prompts are nearest to the mean of the new task's, by TF-IDF",
        ),
        ({"method": "bm25"}, "old data whose prompts are nearest to the new task's, by BM25"),
        (
            {"method": "near-and-far"},
            "old data: a part with the prompts nearest to the new task's by TF-IDF, the others "
            "drawn at random",
        ),
        (
            {"method": "mmr"},
            "old data whose prompts are near to the new task's by TF-IDF, and unlike one another "
            "(MMR)",
        ),
        ({"method": "random"}, "old data, drawn at random"),
        (
            {"method": "stratified", "column": "skill", "shares": "equal"},
            "old data, drawn at random with equal shares of each `skill`",
        ),
        (
            {"method": "k-centre"},
            "old data whose prompts lie as far from one another as they can (k-centre)",
        ),
        (
            {"method": "herding"},
            "old data whose prompts have, together, about the mean of the pool (herding)",
        ),
    ],
)
def test_the_card_names_the_method_that_selected(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    run = tiny.Run(tmp_path, select=settings)
    run.do("select")
    text = card_of(run)
    assert source_rows(text) == {"select": words}
    assert ("TF-IDF" in text) is ("TF-IDF" in words)
    # Of the settings only those are shown that the method read.
    shown = re.findall(r"\* settings: (.*)", text)[0]
    assert f"method `{settings['method']}`" in shown
    assert ("analyzer" in shown) is ("TF-IDF" in words or "BM25" in words)
    assert ("to `centroid`" in shown) is ("to" in settings)
    assert ("shares" in shown) is ("column" in settings)
    assert ("candidates" in shown) is (settings["method"] in ("mmr", "k-centre", "herding"))


def test_the_card_names_the_embedding_that_selected(tmp_path: Path, embedding_model: str) -> None:
    run = tiny.Run(tmp_path, select={"method": "embedding", "model": embedding_model})
    run.do("select")
    text = card_of(run)
    words = "old data whose prompts are nearest to the new task's, by embeddings of `static`"
    assert source_rows(text) == {"select": words}
    assert "TF-IDF" not in text
    assert "hidden" not in text.split("## Recipe")[0]


def test_answers_to_given_questions_are_called_so(tmp_path: Path) -> None:
    run = tiny.Run(tmp_path)
    run.recipe = run.changed(generate={"n": None, "prompts": run.path("test-capital.jsonl")})
    run.do("generate")
    text = card_of(run)
    assert source_rows(text) == {"generate": "answers of the model to given questions"}
    assert "Magpie" not in text
    shown = re.findall(r"\* settings: (.*)", text)[0].split(", ")
    assert "prompts `test-capital.jsonl`" in shown
    assert not {"temperature 1.0", "max_question_tokens 64"} & set(shown)


def test_texts_of_a_base_model_are_called_so(tmp_path: Path) -> None:
    plain = tiny.base_model(tmp_path)
    run = tiny.Run(tmp_path, model=str(plain), generate={"n": 2, "checks": {"leaks": False}})
    run.do("generate")
    text = card_of(run)
    assert source_rows(text) == {"generate": "texts of the model itself, which is a base model"}
    assert "Magpie" not in text
    assert "answer_temperature" not in text.split("## Recipe")[0]


def test_the_mix_of_each_arm_is_a_row_of_a_table(tmp_path: Path) -> None:
    arms = {
        "no-replay": {"ratio": 0.0},
        "selected": {"sources": ["select"]},
        "both": {"ratio": 0.3, "schedule": {"to": 0.4}},
    }
    run = tiny.Run(tmp_path, arms=arms)
    mixes = run.do("select", "generate", "mix")
    text = card_of(run)
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section(text, "The mix it was made for").splitlines()
        if line.startswith("| `")
    ]
    rows = {row[0]: row[1:] for row in table}
    assert set(rows) == {f"`{arm}`" for arm in arms}
    assert rows["`no-replay`"] == ["0 % of rows", "0 % of rows", "0", "–"]
    for arm, asked, sources in (
        ("selected", "20 % of rows", "`select`"),
        ("both", "30 % of rows, linear to 40 %", "`select`, `generate`"),
    ):
        mix = mixes[f"mix-{arm}"]
        assert isinstance(mix, MixResult)
        came_out = f"{percent(mix.share['rows'])} of rows"
        assert rows[f"`{arm}`"] == [asked, came_out, f"{mix.replay_rows:,}", sources]
    assert not any("not used" in words for words in source_rows(text).values())


def test_replay_of_the_mix_that_is_not_in_the_set_is_named(tmp_path: Path) -> None:
    own = tmp_path / "dpo2.jsonl"
    rows = [{"prompt": f"Old {k}?", "completion": f"Old answer {k}."} for k in range(30)]
    own.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    run = tiny.Run(tmp_path, mix={"ratio": 0.3, "sources": ["select", str(own)]})
    run.do("select", "mix")
    said = section(card_of(run), "The mix it was made for")
    assert "A part of that replay is not in this data set: the rows of `dpo2.jsonl`." in said
    assert str(tmp_path) not in said


def test_a_share_that_moves_is_said_as_it_was_asked_for(tmp_path: Path) -> None:
    run = tiny.Run(tmp_path, mix={"ratio": 0.2, "schedule": {"to": 0.4}})
    run.do("select", "generate", "mix")
    asked = "Replay was asked to be 20 % of rows, linear to 40 %; it came out as "
    assert asked in section(card_of(run), "The mix it was made for")


@pytest.mark.slow
def test_a_source_that_the_mix_did_not_use_is_called_so(tmp_path: Path) -> None:
    run = tiny.Run(tmp_path, mix={"sources": ["generate"]})
    run.do("select", "generate")
    assert "not used" not in card_of(run)  # nothing is known of a mix
    run.do("mix")
    rows = source_rows(card_of(run))
    assert rows["select"].endswith(", by TF-IDF; not used in the mix")
    assert "not used" not in rows["generate"]


# --- the Hub --------------------------------------------------------------------------------------

READ_BACK = """
import json, sys
import datasets
# Without this load_dataset asks the Hub's dataset viewer, a host of another name, before the files.
datasets.config.USE_PARQUET_EXPORT = False

def only_loopback(event, args):
    host = "127.0.0.1"
    if event == "socket.getaddrinfo":
        host = args[0]
    if event == "socket.connect":
        host = args[1][0]
    assert host in ("127.0.0.1", b"127.0.0.1"), f"asked for {host}"

sys.addaudithook(only_loopback)
from replaykit.data.formats import read_records
splits = datasets.load_dataset(sys.argv[1])
streamed = list(read_records(sys.argv[1], "generate", split="generate"))
print(json.dumps({
    "splits": {name: list(split) for name, split in splits.items()},
    "one": list(datasets.load_dataset(sys.argv[1], split="generate")),
    "features": str(splits["generate"].features),
    "streamed": [record.id for record in streamed],
}))
"""


def read_back(hub: LoopbackHub, home: Path) -> dict[str, Any]:
    """What another process, with nothing but the address and a read token, loads from the Hub."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": READ,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "*",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", READ_BACK, REPO]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["lfs"], indirect=True)  # as the real Hub keeps parquet
def test_what_was_uploaded_is_what_load_dataset_gives_back(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    assert (
        upload(tmp_path / "push", REPO, private=True, token=WRITE) == f"{hub.url}/datasets/{REPO}"
    )
    assert hub.repos[REPO].private
    back = read_back(hub, tmp_path / "elsewhere")
    for name, rows in {"generate": GENERATED, "select": SELECTED}.items():
        assert [
            (row["id"], row["messages"], row["source"], json.loads(row["meta"]))
            for row in back["splits"][name]
        ] == [(row.id, [dict(message) for message in row.messages], name, row.meta) for row in rows]
    assert back["one"] == back["splits"]["generate"]
    assert "'meta': Value('string')" in back["features"]
    assert back["streamed"] == [record.id for record in GENERATED]


def test_the_token_of_the_environment_is_used(
    made: Made, tmp_path: Path, hub: LoopbackHub, monkeypatch: Any
) -> None:
    made.prepare(tmp_path / "push")
    monkeypatch.setenv("HF_TOKEN", f"{WRITE}\n")
    upload(tmp_path / "push", REPO, private=False)
    assert not hub.repos[REPO].private


def test_uploading_again_changes_nothing_and_replaces_what_is_new(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    first = upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert upload(tmp_path / "push", REPO, private=True, token=WRITE) == first
    assert hub.repos[REPO].commits == 1
    write_jsonl(made.sources["generate"], GENERATED[:2])
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert hub.repos[REPO].commits == 2
    here = found_in(tmp_path / "push")
    del here[".replaykit.json"]
    assert {name: digest(hub.repos[REPO].files[name].read_bytes()) for name in here} == here


def test_a_split_that_is_no_longer_there_is_removed_and_other_files_stay(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    hub.repos[REPO].files["data/mine.parquet"] = hub.store(b"not ours")
    del made.sources["select"]
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert "data/select.parquet" not in hub.repos[REPO].files
    assert "data/mine.parquet" in hub.repos[REPO].files


def test_only_what_was_prepared_is_uploaded(made: Made, tmp_path: Path, hub: LoopbackHub) -> None:
    made.prepare(tmp_path / "push")
    for name in ("inputs.json", ".env", "data/notes.txt"):
        (tmp_path / "push" / name).write_text("not for others")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    files = ["README.md", "replaykit.yaml", "data/generate.parquet", "data/select.parquet"]
    assert sorted(hub.repos[REPO].files) == sorted([".gitattributes", *files])


def test_private_rows_do_not_land_in_a_repository_that_is_public(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=False, token=WRITE)
    before = hub.repos[REPO].commits
    with pytest.raises(HubError, match="exists and is public"):
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert hub.repos[REPO].commits == before


# --- refusals -------------------------------------------------------------------------------------


def test_without_a_token_the_error_says_how_to_log_in_and_nothing_is_sent(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    with pytest.raises(HubError, match=r"not logged in.*`hf auth login` or set HF_TOKEN"):
        upload(tmp_path / "push", REPO, private=True)
    assert hub.requests == []


def test_a_token_that_the_hub_does_not_know_is_an_error_that_says_how_to_log_in(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    with pytest.raises(
        HubError, match="does not accept the token; log in with `hf auth login` or set HF_TOKEN"
    ):
        upload(tmp_path / "push", REPO, private=True, token="hf_expiredEXPIRED0003")
    assert hub.requests[0][1:] == ("/api/repos/create", 401)


@pytest.mark.parametrize("endpoint", ["known at import", "set later"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_token_that_may_only_read_is_an_error_that_asks_for_write_access(
    exists: bool,
    endpoint: str,
    made: Made,
    tmp_path: Path,
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    if (
        endpoint == "known at import"
    ):  # the client goes on to the upload where the data set exists, and is refused there
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    made.prepare(tmp_path / "push")
    if exists:
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    with pytest.raises(
        HubError, match=r"no right to write there; give one with write access .*hf auth login"
    ):
        upload(tmp_path / "push", REPO, private=True, token=READ)
    assert (REPO in hub.repos) is exists


def test_anothers_name_is_an_error_that_says_so(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push", "someone/else")
    with pytest.raises(HubError, match="check that someone is you or your organisation"):
        upload(tmp_path / "push", "someone/else", private=True, token=WRITE)


def test_a_hub_that_is_down_is_an_error_that_says_what_is_safe(
    made: Made, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.prepare(tmp_path / "push")
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(
        HubError, match="cannot be reached; check the network, and HF_ENDPOINT"
    ) as caught:
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert gone.url.removeprefix("http://") in str(caught.value)
    assert f"The data set is ready in {tmp_path / 'push'}" in str(caught.value)


def test_an_address_that_is_no_hub_is_an_error(
    made: Made, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.prepare(tmp_path / "push")
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/elsewhere/")
        with pytest.raises(HubError, match="has no such place; check the name, and HF_ENDPOINT"):
            upload(tmp_path / "push", REPO, private=True, token=WRITE)


# --- a Hub that is busy, full, or none ------------------------------------------------------------

JSON_TYPE = {"Content-Type": "application/json"}
BUSY = b'{"error": "busy"}'


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting."""
    found: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        # Threads of the client sleep for shorter.
        if seconds < 1:
            sleep(seconds)
        else:
            found.append(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    return found


@pytest.mark.parametrize("hub", ["regular"], indirect=True)
@pytest.mark.parametrize(
    ("place", "status", "headers", "seconds"),
    [
        ("/repos/create", 429, {"Retry-After": "2"}, 2.0),
        ("/repos/create", 503, {}, 1.0),
        ("/commit/", 429, {"Retry-After": "2"}, 2.0),
        ("/commit/", 503, {}, 1.0),
        ("/commit/", 409, {}, 1.0),
    ],
)
def test_a_hub_that_is_busy_is_asked_again(
    place: str,
    status: int,
    headers: dict[str, str],
    seconds: float,
    made: Made,
    tmp_path: Path,
    hub: LoopbackHub,
    slept: list[float],
) -> None:
    made.prepare(tmp_path / "push")
    hub.refusals[place] = [(status, headers | JSON_TYPE, BUSY)]
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert hub.repos[REPO].commits == 1
    assert len(slept) == 1
    assert slept[0] - seconds in (0.0, 1.0)  # the client itself waits a second more


@pytest.mark.parametrize("hub", ["regular"], indirect=True)
@pytest.mark.parametrize("place", ["/repos/create", "/commit/"])
def test_a_hub_that_asks_for_an_hour_is_not_waited_for_and_the_time_is_said(
    place: str, made: Made, tmp_path: Path, hub: LoopbackHub, slept: list[float]
) -> None:
    made.prepare(tmp_path / "push")
    hub.refusals[place] = [(429, {"Retry-After": "3600"} | JSON_TYPE, BUSY)]
    with pytest.raises(HubError, match="answered 429; it asks to wait 60 minutes, and push again"):
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert slept == []


@pytest.mark.parametrize("hub", ["regular"], indirect=True)
def test_a_hub_that_stays_busy_is_given_up(
    made: Made, tmp_path: Path, hub: LoopbackHub, slept: list[float]
) -> None:
    made.prepare(tmp_path / "push")
    hub.refusals["/repos/create"] = [(503, JSON_TYPE, BUSY)] * 50
    with pytest.raises(HubError, match="answered 503; wait a little, and push again"):
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert slept == list(WAITS)


@pytest.mark.parametrize("hub", ["regular"], indirect=True)
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (413, r"takes no file as large as data/\w+\.parquet \(0\.0 MB\)"),
        (507, r"has no room for 0\.0 MB"),
    ],
)
def test_what_is_too_large_is_said(
    status: int, words: str, made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    hub.refusals["/commit/"] = [(status, JSON_TYPE, b'{"error": "too large"}')]
    with pytest.raises(HubError, match=f"{words}.*fewer rows"):
        upload(tmp_path / "push", REPO, private=True, token=WRITE)


@pytest.mark.parametrize("hub", ["regular"], indirect=True)
@pytest.mark.parametrize("place", ["/repos/create", "/api/datasets/me/my-replay"])
@pytest.mark.parametrize("status", [200, 511])
def test_a_login_page_before_the_hub_is_said_to_be_none(
    status: int, place: str, made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    page = b"<!doctype html><title>Welcome to the guest network</title>"
    hub.refusals[place] = [(status, {"Content-Type": "text/html"}, page)] * 9
    with pytest.raises(HubError, match="is no Hub, or a login page of your network"):
        upload(tmp_path / "push", REPO, private=True, token=WRITE)


# --- the token ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", [WRITE, READ, "hf_expiredEXPIRED0003", "not-like-a-token", f"{WRITE}\nX-More: 1"]
)
def test_the_token_is_in_no_output_log_file_or_error(
    token: str,
    made: Made,
    tmp_path: Path,
    home: Path,
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    monkeypatch.setattr(constants, "HF_DEBUG", True)  # each request is logged as a curl command
    caplog.set_level(logging.DEBUG)
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_debug()
    hub_logging.enable_propagation()
    told = ""
    try:
        made.prepare(tmp_path / "push")
        upload(tmp_path / "push", REPO, private=True, token=token)
    except HubError as error:
        told = "".join(traceback.format_exception(error))
        assert (error.__cause__, error.__context__) == (None, None)
    finally:
        hub_logging.set_verbosity(verbosity)
        hub_logging.disable_propagation()
    assert bool(told) is (token != WRITE)
    out, err = capfd.readouterr()
    if hub.requests:
        assert "curl" in caplog.text, "the client was to log what it sends"
    secret = token.splitlines()[0]
    for place in (told, caplog.text, out, err, str(hub.requests)):
        assert secret not in place
    written = [path for folder in (tmp_path, home) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 4
    assert not [path for path in written if secret.encode() in path.read_bytes()]


# --- helpers --------------------------------------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def found_in(folder: Path) -> dict[str, str]:
    """The files of a folder and what is in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}
