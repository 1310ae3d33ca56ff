"""The names that columns have in the formats that are recognised.

What was not read of a row goes to ``meta``. ``refuse_lost`` sees to it that no part of a question
or of an answer does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from replaykit.data.record import Message
from replaykit.errors import DataError

CONVERSATIONS = ("messages", "conversations", "conversation")
# A question's column and its answer's, as the documentation of each format names them: Alpaca;
# Magpie and Dolly; TRL, whose rewards compare with an answer; question answering; OpenOrca;
# ms-swift; FLAN; BIG-bench.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("inputs", "targets"),
    ("input", "output"),
)
QUESTIONS = ("prompt", "question", "query", "instruction", "inputs", "text")
SYSTEMS = ("system", "system_prompt")
PASSAGES = ("context", "passage", "document", "article", "story")
CHOICES = ("choices", "options")
TOOLS = ("tools", "functions")
PREFERENCE = ("chosen", "rejected")
ABOUT = ("input", *PASSAGES, *CHOICES)
"""Columns with what a question is about."""
BESIDE = (*SYSTEMS, "history", *TOOLS)
"""Columns with what stands around a question and its answer."""
PARTS = {
    "pair": frozenset((*QUESTIONS, *ABOUT, *BESIDE)),
    "named": frozenset((*ABOUT, *BESIDE)),
    "template": frozenset(BESIDE),
    "conversation": frozenset(BESIDE),
}
"""Columns with a part of what is asked, by how a row was read."""
ANSWERS = frozenset((*(answer for _, answer in PAIRS), "chosen"))
OF_TEXT = ANSWERS | {"label", "labels", "sentiment", "intent", "target", "summary", "code"}
"""Columns with what is to be said of a text."""
LABELS = ("label", "labels")
"""Columns with the label of a text, or with several."""
FLAGS = ("label", "kto_tag")
"""Whether the answer is a good one: TRL and ms-swift; LLaMA-Factory."""
MEDIA = {
    "images": "image",
    "image": "image",
    "audios": "audio",
    "audio": "audio",
    "videos": "video",
    "video": "video",
}
WATCHED = PARTS["pair"] | {*OF_TEXT, *FLAGS, *MEDIA, "role"}
Reading = Literal["text", "conversation", "pair", "named", "template"]
"""How a row was read: as a plain text, as turns, as a question by the names that are known, or by
the column or the template that the recipe names.
"""


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether an object has a column that only a row has."""
    names = {*CONVERSATIONS, *QUESTIONS, *PREFERENCE, *(name for pair in PAIRS for name in pair)}
    return not names.isdisjoint(value)


# --- what is not read -----------------------------------------------------------------------------


def refuse_lost(
    place: str,
    row: Mapping[str, Any],
    used: Sequence[str],
    messages: Sequence[Message],
    reading: Reading,
    *,
    answered: bool = True,
) -> None:
    """Raises DataError, with the column and what to do, where a column that was not used changes
    what is asked or answered: a picture or a sound, a part of the question, an answer, a flag.

    ``used`` begins with the column of the question and that of the answer; without ``answered``, a
    question alone is read, and its answer is no loss.
    """
    left = {}
    for name, value in row.items():
        watched = name in WATCHED or isinstance(value, dict)
        if watched and name not in used and not is_empty(value):
            left[name] = value
    if not left:
        return
    for name, value in left.items():
        kind = _medium(name, value)
        if kind is not None:
            raise no_text(f"{place}: '{name}'", kind)
    if reading == "text":
        _refuse_answer_of_text(place, left)
        return
    _refuse_bad_answer(place, left, messages)
    if answered and reading == "conversation" and messages[-1]["role"] == "user":
        _refuse_answer_beside(place, left, used[0])
    for name, value in left.items():
        if name in PARTS[reading] and not _repeats(value, row.get(used[0]), messages):
            raise _lost_part(place, name, row, used)


def is_empty(value: Any) -> bool:
    """Whether a value is empty, as null, "" and [None] are; 0 is not."""
    if value is None or (isinstance(value, float) and value != value):  # NaN
        return True
    if isinstance(value, Mapping):
        return all(is_empty(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_empty(part) for part in value)
    return isinstance(value, str) and not value.strip()


def _medium(name: str, value: Any) -> str | None:
    """The kind of a picture, sound or film; None for all else."""
    if isinstance(value, (bool, int, float)):
        return None
    if name in MEDIA:
        return MEDIA[name]
    # So `datasets` writes a picture or a sound, whatever the column's name.
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        return "media"
    return None


def no_text(where: str, kind: str) -> DataError:
    """What is said of an image, of audio, and of whatever else is no text."""
    names = {"image": "an image", "audio": "audio", "video": "a video", "media": "a media file"}
    known = (name for word, name in names.items() if word in kind.lower())
    holds = next(known, f"a part of type '{kind}'")
    return DataError(f"{where} holds {holds}; replaykit carries text only")


def _refuse_answer_of_text(place: str, left: Collection[str]) -> None:
    for name in left:
        if name in OF_TEXT:
            raise DataError(
                f"{place}: a text and its '{name}'; `prompt: text` and `answer: {name}` beside the "
                'path make it a question with its answer, and `labels: ["World", "Sports", ...]` '
                f"says the word for each number; without the column '{name}' the text is read as "
                "it is"
            )
    if "role" in left:
        raise DataError(
            f"{place}: text with a role, one turn of a conversation; bring the turns of each "
            "conversation together in one row, as `messages`"
        )


def _refuse_bad_answer(place: str, left: Mapping[str, Any], messages: Sequence[Message]) -> None:
    """Refuses an answer that the row says is a bad one, as KTO's rows do."""
    if messages[-1]["role"] != "assistant":
        return
    for name in FLAGS:
        value = left.get(name, True)
        # A table of text has the word.
        if value in (False, 0) or str(value).strip().lower() in ("false", "0"):
            raise DataError(
                f"{place}: an undesirable answer ({name}: {str(value).lower()}); leave such rows "
                "out, or they would be trained as good ones"
            )


def _refuse_answer_beside(place: str, left: Collection[str], turns: str) -> None:
    for name in left:
        if name in ANSWERS:
            raise DataError(
                f"{place}: '{turns}' ends with a question and '{name}' is not read; "
                f"`prompt: {turns}` and `answer: {name}` beside the path make it the answer"
            )


def _repeats(value: Any, asked: Any, messages: Sequence[Message]) -> bool:
    """Whether a text is in the conversation, or has the question in it, as Alpaca's has."""
    if not isinstance(value, str):
        return False
    if isinstance(asked, str) and asked.strip() and asked.strip() in value:
        return True
    return any(value.strip() in message["content"] for message in messages)


def _lost_part(place: str, name: str, row: Mapping[str, Any], used: Sequence[str]) -> DataError:
    asked = used[0]
    said = f"{place}: '{name}' stands beside '{asked}' and is not read"
    if name in BESIDE or not isinstance(row.get(asked), str):
        return DataError(f"{said}; put it into the turns, or leave the column out")
    order = [name, asked]
    if asked == "instruction" or name in ("input", *CHOICES):
        order.reverse()
    both = "\\n".join(f"{{{column}}}" for column in order)
    answer = ""
    if len(used) > 1 and used[1] in row:
        answer = f" and `answer: {used[1]}`"
    return DataError(
        f'{said}; `prompt: "{both}"`{answer} beside the path read both, and '
        f'`prompt: "{{{asked}}}"` the one alone'
    )
