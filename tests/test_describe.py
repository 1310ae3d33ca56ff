"""Facts about describing: what the model is shown, what comes out, and media that nobody touches."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from commands import type_in

import replaykit
from replaykit.data.jsonl import write_jsonl
from replaykit.data.ledger import Ledger
from replaykit.engines import Completion, Request
from replaykit.errors import DataError
from replaykit.model.chat import Chat
from replaykit.recipe import load_recipe
from replaykit.recipe.describe import Describe
from replaykit.runs import read_manifest
from replaykit.steps.describe.words import Placed, answers, described, instruction_of

TEMPLATE = "A {gender} voice, {duration} seconds, says a word about {town}."


def write_wav(path: Path, frames: int = 80) -> Path:
    """A tenth of a second and less, of a tone of its own."""
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes((k * frames) % 256 for k in range(2 * frames)))
    return path


def clips(folder: Path, n: int = 6) -> list[dict[str, Any]]:
    towns = ("Paris", "Lima", "Oslo", "Rome", "Cairo", "Madrid")
    return [
        {
            "audio": str(write_wav(folder / f"{k}.wav", 80 + k)),
            "gender": ("female", "male")[k % 2],
            "duration": 1.5 + k,
            "town": towns[k],
            "speaker": {"id": k, "tags": ["a", None]},
        }
        for k in range(n)
    ]


class Scripted:
    """Replies from a table: the first key that the prompt contains decides. Last request first."""

    name = "scripted"
    limit = 4096

    def __init__(self, chat: Chat, *replies: tuple[str, str], stop_after: int | None = None):
        self.chat = chat
        self.replies = replies
        self.stop_after = stop_after
        self.prompts: list[str] = []

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in reversed([each for each in requests if each is not None]):
            if len(self.prompts) == self.stop_after:
                raise KeyboardInterrupt
            prompt = self.chat.decode(request.tokens, special=True)
            self.prompts.append(prompt)
            reply = next((reply for key, reply in self.replies if key in prompt), "")
            yield Completion(request.row, self.chat.encode(reply), "stop")

    def score(self, sequences: Iterable[Any]) -> Iterator[list[float]]:
        raise AssertionError("nothing is scored")

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("nano")


def settings_of(**choices: Any) -> Describe:
    return Describe.model_validate({"rows": "clips.jsonl", "template": TEMPLATE, **choices})


def placed(*attributes: dict[str, Any]) -> list[Placed]:
    return [Placed(f"clips.jsonl:{k}", row) for k, row in enumerate(attributes, 1)]


ONE = {"gender": "female", "duration": 3.2, "town": "Lima"}


# --- the words ------------------------------------------------------------------------------------


def test_the_model_sees_the_description_and_the_prompt_that_comes_out_is_the_instruction(
    chat: Chat, tmp_path: Path
) -> None:
    engine = Scripted(chat, ("", "A woman speaks of Lima."))
    settings = settings_of()
    found = described(placed(ONE), settings)
    with Ledger(tmp_path / "answers.jsonl") as ledger:
        ((_, made),) = answers(found, settings, engine=engine, chat=chat, seed=1, ledger=ledger)
    assert "A female voice, 3.2 seconds, says a word about Lima." in engine.prompts[0]
    assert made.messages == [
        {"role": "user", "content": "What can you hear?"},
        {"role": "assistant", "content": "A woman speaks of Lima."},
    ]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("According to the description, a woman speaks.", "leaked_prompt"),
        ("la la " * 60, "repetitive"),
        ("A woman speaks.", ""),
    ],
)
def test_an_answer_that_cannot_be_a_target_says_why(
    chat: Chat, tmp_path: Path, reply: str, why: str
) -> None:
    settings = settings_of()
    engine = Scripted(chat, ("", reply))
    with Ledger(tmp_path / "answers.jsonl") as ledger:
        found = described(placed(ONE), settings)
        ((_, made),) = answers(found, settings, engine=engine, chat=chat, seed=1, ledger=ledger)
    assert made.why == why


def test_a_missing_attribute_is_one_message_or_what_the_setting_says() -> None:
    rows = placed(ONE, {**ONE, "gender": None}, {"gender": "male", "town": "Oslo"})
    with pytest.raises(DataError, match=r"2 of 3 rows lack .*'gender' 1, 'duration' 1; .*:2\)"):
        described(rows, settings_of())
    left_out = described(rows, settings_of(missing="leave-out"))
    assert (list(left_out.descriptions), list(left_out.left_out)) == ([0], [1, 2])
    unknown = described(rows, settings_of(missing="unknown"))
    assert unknown.descriptions[1].startswith("A unknown voice, 3.2 seconds")
    with pytest.raises(DataError, match="no row has a column 'town'"):
        described(placed({"gender": "male", "duration": 1}), settings_of())


def test_instructions_are_drawn_by_the_seed_and_the_row_alone() -> None:
    several = settings_of(instructions=["What can you hear?", "Who speaks?", "Describe it."])
    drawn = [instruction_of(row, several, 1) for row in range(60)]
    assert drawn == [instruction_of(row, several, 1) for row in range(60)]
    assert set(drawn) == set(several.instructions)
    assert drawn != [instruction_of(row, several, 2) for row in range(60)]


def test_what_was_answered_before_a_stop_is_not_asked_again(chat: Chat, tmp_path: Path) -> None:
    settings = settings_of()
    rows = placed(*({**ONE, "town": town} for town in ("Lima", "Oslo", "Rome", "Cairo")))
    found = described(rows, settings)
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path / "answers.jsonl") as ledger:
        cut = Scripted(chat, ("", "A voice."), stop_after=3)
        list(answers(found, settings, engine=cut, chat=chat, seed=1, ledger=ledger))
    engine = Scripted(chat, ("", "A voice."))
    with Ledger(tmp_path / "answers.jsonl") as ledger:
        made = dict(answers(found, settings, engine=engine, chat=chat, seed=1, ledger=ledger))
    assert list(made) == [0, 1, 2, 3]
    assert len(engine.prompts) == 1


# --- the media, with the embedded model -----------------------------------------------------------


@pytest.mark.slow
def test_rows_with_paths_come_out_as_they_were_and_load_as_audio(here: Path) -> None:
    rows = clips(here)
    write_jsonl("clips.jsonl", rows)
    type_in(
        "describe", "--rows", "clips.jsonl", "--template", TEMPLATE, "--model", "nano",
        "--instruction", "What can you hear?", "--instruction", "Who speaks?", "--out", "made",
    )  # fmt: skip
    manifest = read_manifest(Path("made"))
    assert manifest is not None
    funnel = manifest.result["funnel"]
    assert funnel["made"] == len(rows) == funnel["kept"] + sum(funnel["dropped"].values())
    made = datasets.load_dataset(
        "json", data_files="made/rows.jsonl", split="train", cache_dir=str(here / "cache")
    )
    assert len(made) == manifest.result["rows"] > 0
    before = {row["audio"]: row for row in rows}
    for row in made:
        prompt, answer = row["messages"]
        assert prompt["content"] in ("What can you hear?", "Who speaks?")
        assert answer["content"]
        assert {key: row[key] for key in before[row["audio"]]} == before[row["audio"]]
    # To decode it takes torchcodec, which is not installed everywhere; the file is all the same.
    heard = made.cast_column("audio", datasets.Audio(decode=False))
    assert Path(heard[0]["audio"]["path"]).read_bytes().startswith(b"RIFF")


@pytest.mark.slow
def test_columns_of_audio_keep_their_type_and_their_bytes(here: Path) -> None:
    rows = clips(here)
    for row in rows:
        row["audio"] = {"bytes": Path(row["audio"]).read_bytes(), "path": "a.wav"}
    given = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    given.to_parquet("clips.parquet")
    given.save_to_disk("saved")
    found = []
    for place in ("clips.parquet", "saved"):
        out = f"made-{place}"
        type_in(
            "describe", "--rows", place, "--template", TEMPLATE, "--model", "nano", "--out", out
        )
        made = datasets.Dataset.from_parquet(f"{out}/rows.parquet", cache_dir=str(here / "cache"))
        found.append(made)
    found.append(replaykit.describe(given, TEMPLATE, model="nano").dataset)
    for made in found:
        assert made.features["audio"] == given.features["audio"]
        assert len(made) > 0
        sounds = {row["duration"]: row["audio"] for row in given}
        assert all(row["audio"] == sounds[row["duration"]] for row in made)
        assert [row["messages"] for row in made] == [row["messages"] for row in found[0]]


@pytest.mark.slow
def test_columns_of_images_keep_their_type(here: Path) -> None:
    from PIL import Image

    for k in range(3):
        Image.new("RGB", (2, 2), (10 * k, 0, 0)).save(f"{k}.png")
    rows = {"image": [f"{k}.png" for k in range(3)], "town": ["Paris", "Lima", "Oslo"]}
    given = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made = replaykit.describe(
        given, "A picture of {town}.", model="nano", instructions=["What can you see?"]
    )
    assert made.result.funnel.made == 3
    assert made.dataset.features["image"] == datasets.Image()
    assert len(made.dataset) > 0
    for row in made.dataset:
        assert row["image"].size == (2, 2)
        assert row["messages"][0]["content"] == "What can you see?"


def test_a_column_that_is_there_is_not_overwritten(here: Path) -> None:
    write_jsonl("clips.jsonl", [{"messages": "mine", "town": "Lima"}])
    said = type_in(
        "describe", "--rows", "clips.jsonl", "--template", "{town}", "--model", "nano", code=1
    )
    assert "the rows have a column 'messages'" in said


def test_the_command_says_what_it_needs(here: Path) -> None:
    assert "describe needs describe: {rows:" in type_in("describe", "--model", "nano", code=1)
    said = type_in(
        "describe", "--rows", "x.jsonl", "--template", "a voice", "--model", "nano", code=1
    )
    assert "it names no column" in said


def test_the_recipe_of_the_repository_describes() -> None:
    recipe = load_recipe(Path(__file__).parent.parent / "recipes" / "describe-audio.yaml")
    assert recipe.describe is not None
    assert "gender" in recipe.describe.attributes
