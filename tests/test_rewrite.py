"""Facts about rewriting the target. ``Scripted`` replies by table, so that each path is reached on purpose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rapidfuzz.distance import Levenshtein
from test_templates import shipped

import replaykit
from replaykit.checks.texts import loops
from replaykit.data.ledger import Ledger
from replaykit.data.record import Record, dialogue, is_masked
from replaykit.engines import Completion, Request, load_engine
from replaykit.engines.chat_server import ChatServer
from replaykit.errors import RunError
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.rewrite import Rewrite
from replaykit.runs import unwatched
from replaykit.steps.rewrite.asking import Loaded, Model, Served
from replaykit.steps.rewrite.deciding import EDIT, PARAPHRASE
from replaykit.steps.rewrite.gate import LEAKS, cleaned, leaked
from replaykit.steps.rewrite.reword import Base, counts, reword
from replaykit.steps.rewrite.verifying import judged_by
from replaykit.steps.score.logprobs import Scores

distance = Levenshtein.normalized_distance

QUESTION = "what is 27 + 15?"
REFERENCE = "7 + 5 = 12\n20 + 10 = 30\n12 + 30 = 42\n#### 42"
WRONG = "To add them, first add the ones: 7 + 5 is 12. Then add the tens: 20 + 10 is 30. So it is 41.\n#### 41"
REPAIRED = "To add them, first add the ones: 7 + 5 is 12. Then add the tens: 20 + 10 is 30. So it is 42.\n#### 42"
RIGHT = "Twenty-seven and fifteen make 42.\n#### 42"
CUT = "\N{BLACK SCISSORS}"  # at the end of a scripted reply: it was cut at max_tokens


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("nano")


class Scripted:
    """An engine that replies from a table: the first key that the prompt contains decides. Last request first."""

    name = "scripted"

    def __init__(
        self,
        chat: Chat,
        *replies: tuple[str, str],
        limit: int = 4096,
        stop_after: int | None = None,
    ):
        self.chat = chat
        self.replies = replies
        self.limit = limit
        self.stop_after = stop_after
        self.asked: list[int] = []
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.references: list[str] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in reversed(list(requests)):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            assert len(request.tokens) < self.limit
            assert request.sampling.stop == self.chat.stop
            prompt = self.chat.decode(request.tokens, special=True)
            reply = next((reply for key, reply in self.replies if key in prompt), "")
            self.asked.append(request.row)
            self.prompts.append(prompt)
            self.seeds.append(request.seed)
            tokens = self.chat.encode(reply.removesuffix(CUT))
            yield Completion(request.row, tokens, "length" if reply.endswith(CUT) else "stop")

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        """The references are less probable than anything else."""
        for tokens in sequences:
            text = self.chat.decode(tokens, special=True)
            foreign = any(f"{reference}<" in text for reference in self.references)
            yield [-2.0 if foreign else -1.0] * (len(tokens) - 1)

    def close(self) -> None:
        pass


def target_of(*pairs: tuple[str, str]) -> list[Record]:
    return [
        Record(dialogue(question, answer), "target", {"line": k})
        for k, (question, answer) in enumerate(pairs, 1)
    ]


def run(
    target: Sequence[Record], engine: Any, chat: Chat, path: Path, **choices: Any
) -> list[Record]:
    if isinstance(engine, Scripted):
        engine.references = [record.answer for record in target if record.answer]
    editor = choices.pop("editor", None)
    watch = choices.pop("watch", unwatched)
    settings = Rewrite(**{"method": "min-change", "verify": "numeric", "retries": 0, **choices})
    with Ledger(path / "replies.jsonl") as ledger, Scores(path / "logprobs.jsonl", "x") as scores:
        made = reword(
            target,
            base=Base(engine, chat, scores, watch),
            editor=model_of(editor),
            settings=settings,
            seed=1,
            ledger=ledger,
        )
    return made.records


def model_of(editor: Any) -> Model | None:
    """The editor of a test: an engine with its chat, or a server."""
    if editor is None:
        return None
    return Served(editor) if isinstance(editor, ChatServer) else Loaded(*editor)


def one(prediction: str, edit: str, chat: Chat, path: Path, **choices: Any) -> Record:
    """What becomes of the one question, if the model and then the editor say this."""
    engine = Scripted(chat, ("Earlier answer:", edit), (QUESTION, prediction))
    [record] = run(target_of((QUESTION, REFERENCE)), engine, chat, path, **choices)
    return record


# --- minimum change -------------------------------------------------------------------------------


def test_a_right_prediction_stays(chat: Chat, tmp_path: Path) -> None:
    record = one(RIGHT, "never asked", chat, tmp_path)
    assert record.answer == RIGHT
    assert record.meta["path"] == "prediction"
    assert record.meta["edit"] == 0
    assert record.meta["reference_edit"] == distance(RIGHT, REFERENCE)
    assert "why" not in record.meta


def test_an_edit_within_the_limit_is_accepted(chat: Chat, tmp_path: Path) -> None:
    record = one(WRONG, REPAIRED, chat, tmp_path)
    assert record.answer == REPAIRED
    assert record.source == "rewrite"
    assert record.meta["path"] == "edit"
    assert record.meta["edit"] == distance(WRONG, REPAIRED)
    assert record.meta["reference_edit"] == distance(WRONG, REFERENCE)
    assert "why" not in record.meta


def test_an_edit_that_changes_too_much_is_refused_and_the_reference_stays(
    chat: Chat, tmp_path: Path
) -> None:
    record = one(WRONG, REFERENCE + "\nso #### 42", chat, tmp_path)
    assert record.messages == dialogue(QUESTION, REFERENCE)
    assert (record.meta["path"], record.meta["why"]) == ("reference", "over_edited")
    assert record.meta["edit"] == record.meta["reference_edit"] == distance(WRONG, REFERENCE)
    assert record.meta["refused_edit"] == distance(WRONG, REFERENCE + "\nso #### 42")


def test_the_limit_is_a_part_of_the_distance_to_the_reference(chat: Chat, tmp_path: Path) -> None:
    share = distance(WRONG, REPAIRED) / distance(WRONG, REFERENCE)
    for folder, max_edit, path in [("a", share * 1.001, "edit"), ("b", share * 0.999, "reference")]:
        (tmp_path / folder).mkdir()
        assert one(WRONG, REPAIRED, chat, tmp_path / folder, max_edit=max_edit).meta["path"] == path


@pytest.mark.parametrize(
    ("prediction", "edit", "why"),
    [
        (WRONG, WRONG, "unverified"),
        (WRONG, WRONG.replace("41", "43"), "unverified"),
        (WRONG, REPAIRED + CUT, "truncated"),
        (WRONG, " \n ", "empty"),
        (WRONG, "Here is the corrected answer:\n" + REPAIRED, "leaked_prompt"),
        (WRONG, REFERENCE, "over_edited"),
        ("", REPAIRED, "empty"),
    ],
)
def test_every_refusal_keeps_the_reference_and_says_why(
    chat: Chat, tmp_path: Path, prediction: str, edit: str, why: str
) -> None:
    record = one(prediction, edit, chat, tmp_path)
    assert record.messages == dialogue(QUESTION, REFERENCE)
    assert (record.meta["path"], record.meta["why"]) == ("reference", why)
    assert record.meta["edit"] == record.meta["reference_edit"] == distance(prediction, REFERENCE)


def test_a_prediction_that_was_cut_never_stays_but_may_be_edited(
    chat: Chat, tmp_path: Path
) -> None:
    record = one(RIGHT + "\nWhat is 3 + " + CUT, RIGHT, chat, tmp_path)
    assert record.answer == RIGHT
    assert record.meta["path"] == "edit"


def test_an_editor_of_its_own_repairs_and_the_model_does_not(chat: Chat, tmp_path: Path) -> None:
    model = Scripted(chat, (QUESTION, WRONG))
    editor = Scripted(chat, (WRONG, REPAIRED))
    [record] = run(target_of((QUESTION, REFERENCE)), model, chat, tmp_path, editor=(editor, chat))
    assert record.answer == REPAIRED
    assert len(model.asked) == len(editor.asked) == 1
    assert (
        EDIT.format(question=QUESTION, reference=REFERENCE, prediction=WRONG) in editor.prompts[0]
    )


def test_words_of_the_prompt_are_no_leak_where_the_conversation_uses_them(
    chat: Chat, tmp_path: Path
) -> None:
    prediction, edit = (
        f"By the earlier answer of the class, it is {n}.\n#### {n}" for n in (41, 42)
    )
    assert LEAKS.search(edit)
    assert one(prediction, edit, chat, tmp_path).meta["path"] == "edit"


# --- every row ------------------------------------------------------------------------------------

MIXED = target_of(
    ("right one?", "so #### 1"),
    ("wrong one?", REFERENCE),
    ("no number here?", "it depends"),
    ("right one?", "so #### 1"),
    ("hopeless one?", "#### 3"),
    ("silent one?", "#### 4"),
)
MIXED.insert(2, Record(({"role": "text", "content": "A plain text, #### 9"},), "target"))
REPLIES = (
    ("Earlier answer:\nTo add them", REPAIRED),
    ("Earlier answer:", "no idea"),
    ("right one?", "it is 1"),
    ("wrong one?", WRONG),
    ("hopeless one?", "#### 77"),
)


def test_every_row_comes_out_once_and_in_order_whatever_its_path(
    chat: Chat, tmp_path: Path
) -> None:
    made = run(MIXED, Scripted(chat, *REPLIES), chat, tmp_path)
    assert [record.meta["parent"] for record in made] == [record.id for record in MIXED]
    assert [record.prompt for record in made] == [record.prompt for record in MIXED]
    assert {record.source for record in made} == {"rewrite"}
    assert [record.meta["path"] for record in made] == [
        "prediction", "edit", "reference", "reference", "prediction", "reference", "reference",
    ]  # fmt: skip
    assert [record.meta.get("why") for record in made] == [
        None, None, "no_question", "unreadable_reference", None, "unverified", "empty",
    ]  # fmt: skip
    assert [record.meta.get("line") for record in made] == [1, 2, None, 3, 4, 5, 6]
    assert [record.messages for record in made if record.meta["path"] == "reference"] == [
        record.messages for k, record in enumerate(MIXED) if k in (2, 3, 5, 6)
    ]


def test_counts_are_by_path_and_by_reason_where_the_reference_stayed(
    chat: Chat, tmp_path: Path
) -> None:
    made = run(MIXED, Scripted(chat, *REPLIES), chat, tmp_path)
    found = counts(made)
    assert found == {
        "prediction": 2, "edit": 1, "no_question": 1, "unreadable_reference": 1, "unverified": 1, "empty": 1,
    }  # fmt: skip
    assert sum(found.values()) == len(MIXED)


def test_rows_that_cannot_be_verified_are_not_asked(chat: Chat, tmp_path: Path) -> None:
    engine = Scripted(chat, *REPLIES)
    run(MIXED, engine, chat, tmp_path)
    assert not any(
        "no number here?" in prompt or "A plain text" in prompt for prompt in engine.prompts
    )


def test_a_row_without_a_reference_is_unreadable_by_any_verifier(
    chat: Chat, tmp_path: Path
) -> None:
    for how in ("exact", "numeric", "json"):
        [record] = run(target_of(("what?", " ")), Scripted(chat), chat, tmp_path, verify=how)
        assert record.meta["why"] == "unreadable_reference"


def test_a_conversation_that_does_not_end_in_question_and_answer_stays(
    chat: Chat, tmp_path: Path
) -> None:
    user = {"role": "user", "content": "hm?"}
    assistant = {"role": "assistant", "content": "#### 1"}
    target = [
        Record(turns, "target") for turns in [(user,), (assistant,), (user, assistant, assistant)]
    ]
    engine = Scripted(chat)
    made = run(target, engine, chat, tmp_path)
    assert [record.meta["why"] for record in made] == ["no_question"] * 3
    assert [record.messages for record in made] == [record.messages for record in target]
    assert engine.asked == []


def test_what_an_answer_has_beside_its_words_is_not_taken_from_it(
    chat: Chat, tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    called = {"type": "function", "function": {"name": "add", "arguments": {}}}
    question = {"role": "user", "content": QUESTION}
    answer = {"role": "assistant", "content": REFERENCE}
    target = [
        Record((question, {**answer, "tool_calls": [called]}), "target"),
        Record((question, answer), "target", {}, (tool,)),
        Record((question, {**answer, "reasoning_content": "I count."}), "target"),
        Record((question, {**answer, "weight": 0}), "target"),
    ]
    engine = Scripted(chat)
    made = run(target, engine, chat, tmp_path)
    assert [record.meta["why"] for record in made] == ["tools", "tools", "thought", "no_loss"]
    assert [record.messages for record in made] == [record.messages for record in target]
    assert [record.tools for record in made] == [record.tools for record in target]
    assert engine.asked == []


@pytest.mark.parametrize("method", ["min-change", "paraphrase"])
def test_a_prompt_with_no_room_for_an_answer_keeps_the_reference(
    chat: Chat, tmp_path: Path, method: str
) -> None:
    target = target_of(("short one?", "#### 5"), ("long one? " * 400, "#### 6"))
    engine = Scripted(chat, ("short one?", "it is 5"), limit=600)
    seen: list[tuple[str, int, int | None]] = []
    short, long = run(
        target, engine, chat, tmp_path, method=method, watch=lambda *news: seen.append(news)
    )
    assert short.answer == "it is 5"
    assert (long.meta["why"], long.messages) == ("too_long", target[1].messages)
    assert [done for what, done, total in seen if total == 2 and what != "score"] == [1, 2]


def test_a_prompt_fits_if_it_leaves_room_for_one_token(chat: Chat, tmp_path: Path) -> None:
    prompt = len(chat.prompt(dialogue(QUESTION)))
    for limit, path in [(prompt, "reference"), (prompt + 1, "prediction")]:
        folder = tmp_path / path
        folder.mkdir()
        [record] = run(
            target_of((QUESTION, REFERENCE)),
            Scripted(chat, (QUESTION, RIGHT), limit=limit),
            chat,
            folder,
        )
        assert record.meta["path"] == path


def test_an_edit_prompt_with_no_room_keeps_the_reference(chat: Chat, tmp_path: Path) -> None:
    question = len(chat.prompt(dialogue(QUESTION)))
    engine = Scripted(chat, (QUESTION, WRONG), limit=question + 1)
    [record] = run(target_of((QUESTION, REFERENCE)), engine, chat, tmp_path)
    assert record.meta["why"] == "too_long"
    assert record.meta["reference_edit"] == distance(WRONG, REFERENCE)
    assert "refused_edit" not in record.meta


def test_only_the_last_answer_of_a_conversation_changes(chat: Chat, tmp_path: Path) -> None:
    earlier = ({"role": "system", "content": "Be kind."}, *dialogue("what is 1 + 1?", "#### 2"))
    target = [Record((*earlier, *dialogue(QUESTION, REFERENCE)), "target")]
    engine = Scripted(chat, ("Earlier answer:", REPAIRED), (QUESTION, WRONG))
    [record] = run(target, engine, chat, tmp_path)
    assert record.messages == (*earlier, *dialogue(QUESTION, REPAIRED))
    assert target[0].answer == REFERENCE
    prediction, edit = engine.prompts
    assert prediction == chat.decode(chat.prompt((*earlier, *dialogue(QUESTION))), special=True)
    assert (
        f"system: Be kind.\n\nuser: what is 1 + 1?\n\nassistant: #### 2\n\nuser: {QUESTION}\n"
        in edit
    )


def test_what_follows_the_last_answer_stays(chat: Chat, tmp_path: Path) -> None:
    thanks = {"role": "user", "content": "thanks"}
    target = [Record((*dialogue(QUESTION, REFERENCE), thanks), "target")]
    [record] = run(target, Scripted(chat, (QUESTION, RIGHT)), chat, tmp_path)
    assert record.messages == (*dialogue(QUESTION, RIGHT), thanks)


def test_a_column_of_the_target_named_why_does_not_disturb_the_counts(
    chat: Chat, tmp_path: Path
) -> None:
    target = [Record(dialogue(QUESTION, REFERENCE), "target", {"why": "because"})]
    assert counts(run(target, Scripted(chat, (QUESTION, RIGHT)), chat, tmp_path)) == {
        "prediction": 1
    }


def test_a_row_that_the_template_refuses_keeps_its_reference_and_is_counted(tmp_path: Path) -> None:
    strict = Chat.load("nano")
    strict.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + str(strict.tokenizer.chat_template)
    )
    target = [
        *target_of((QUESTION, REFERENCE)),
        Record(dialogue(QUESTION, REFERENCE, system="Be kind."), "target"),
    ]
    engine = Scripted(strict, (QUESTION, RIGHT))
    made = run(target, engine, strict, tmp_path)
    assert [record.answer for record in made] == [RIGHT, REFERENCE]
    assert counts(made) == {"prediction": 1, "template_refuses": 1}
    assert len(engine.asked) == 1


# --- stopping and going on ------------------------------------------------------------------------


def test_a_run_stopped_anywhere_goes_on_with_the_same_records_and_asks_nothing_twice(
    chat: Chat, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    whole = Scripted(chat, *REPLIES)
    expected = run(MIXED, whole, chat, tmp_path / "whole")
    assert len(whole.asked) == len(set(whole.asked)) == 7  # five predictions, two edits
    for stop_after in range(len(whole.asked)):
        folder = tmp_path / str(stop_after)
        folder.mkdir()
        first = Scripted(chat, *REPLIES, stop_after=stop_after)
        second = Scripted(chat, *REPLIES)
        with pytest.raises(KeyboardInterrupt):
            run(MIXED, first, chat, folder)
        assert run(MIXED, second, chat, folder) == expected
        assert sorted(first.asked + second.asked) == sorted(whole.asked)
        assert dict(
            zip(first.asked + second.asked, first.seeds + second.seeds, strict=True)
        ) == dict(zip(whole.asked, whole.seeds, strict=True))


def test_a_torn_last_line_of_the_ledger_costs_that_row_only(chat: Chat, tmp_path: Path) -> None:
    expected = run(MIXED, Scripted(chat, *REPLIES), chat, tmp_path)
    ledger = tmp_path / "replies.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-10])
    again = Scripted(chat, *REPLIES)
    assert run(MIXED, again, chat, tmp_path) == expected
    assert len(again.asked) == 1


def test_a_finished_run_asks_nothing(chat: Chat, tmp_path: Path) -> None:
    expected = run(MIXED, Scripted(chat, *REPLIES), chat, tmp_path)
    again = Scripted(chat, *REPLIES)
    assert run(MIXED, again, chat, tmp_path) == expected
    assert again.asked == []


def test_each_row_and_stage_has_a_seed_of_its_own(chat: Chat, tmp_path: Path) -> None:
    engine = Scripted(chat, *REPLIES)
    run(MIXED, engine, chat, tmp_path)
    assert len(set(engine.seeds)) == len(engine.seeds) == 7


def test_progress_ends_at_the_total_of_each_stage(chat: Chat, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    run(MIXED, Scripted(chat, *REPLIES), chat, tmp_path, watch=lambda *news: seen.append(news))
    told = [news for news in seen if news[0] != "score" and news[1] == news[2]]
    assert told == [("prediction", 5, 5), ("edit", 2, 2)]
    seen.clear()
    run(MIXED, Scripted(chat, *REPLIES), chat, tmp_path, watch=lambda *news: seen.append(news))
    assert seen == [("prediction", 5, 5), ("edit", 2, 2)]


# --- paraphrase -----------------------------------------------------------------------------------


def test_a_paraphrase_that_verifies_replaces_the_reference(chat: Chat, tmp_path: Path) -> None:
    earlier = dialogue("hello?", "#### 0", system="Be kind.")
    target = [Record((*earlier, *dialogue(QUESTION, REFERENCE)), "target")]
    engine = Scripted(chat, (QUESTION, RIGHT))
    [record] = run(target, engine, chat, tmp_path, method="paraphrase")
    assert record.messages == (*earlier, *dialogue(QUESTION, RIGHT))
    assert record.meta == {
        "parent": target[0].id,
        "path": "paraphrase",
        "edit": distance(REFERENCE, RIGHT),
        "reference": REFERENCE,
        "perplexity": pytest.approx(math.e, abs=1e-4),
        "reference_perplexity": pytest.approx(math.e**2, abs=1e-4),
    }
    guided = dialogue(PARAPHRASE.format(question=QUESTION, reference=REFERENCE))
    assert engine.prompts == [chat.decode(chat.prompt((*earlier, *guided)), special=True)]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("It makes 41.\n#### 41", "unverified"),
        (RIGHT + CUT, "truncated"),
        ("", "empty"),
        ("As the reference answer says, it is 42.\n#### 42", "leaked_prompt"),
        ("Sure! Here is my answer in other words:\n#### 42", "leaked_prompt"),
        ("In my own words: twelve and thirty.\n#### 42", "leaked_prompt"),
        ("与参考答案一致。\n#### 42", "leaked_prompt"),
    ],
)
def test_a_paraphrase_is_refused_with_a_reason(
    chat: Chat, tmp_path: Path, reply: str, why: str
) -> None:
    engine = Scripted(chat, (QUESTION, reply))
    [record] = run(target_of((QUESTION, REFERENCE)), engine, chat, tmp_path, method="paraphrase")
    assert record.messages == dialogue(QUESTION, REFERENCE)
    assert (record.meta["path"], record.meta["why"], record.meta["edit"]) == ("reference", why, 0)
    refused = reply.removesuffix(CUT)
    assert record.meta.get("refused_edit") == (distance(REFERENCE, refused) if refused else None)


@pytest.mark.parametrize(
    "answer",
    [
        "So the correct answer is 42.",
        "My answer is B.",
        "Multiply the previous result by 3.",
        "Here is the list:",
    ],
)
def test_ordinary_answers_are_no_leak(answer: str) -> None:
    assert not LEAKS.search(answer)


# --- the gate -------------------------------------------------------------------------------------

LEAKED = [
    "According to the guide, it is 42.",
    "As given in the reference: 42",
    "The reference says 42.",
    "As the hint says, it is 42.",
    "Based on your reference, 42 it is.",
    "As stated in the guidance, it is 42.",
    "根据参考，答案是42",
    "按照提示，答案是42。",
    "参考中给出的答案是42。",
    "Laut der Referenz ist es 42.",
    "Wie in der Vorlage ist es 42.",
    "Die Musterlösung sagt 42.",
    "Según la referencia, es 42.",
    "Como indica la guía, es 42.",
    "La referencia dice 42.",
    "Selon la référence, c'est 42.",
    "D'après le guide, c'est 42.",
    "La référence indique 42.",
    "---\nTo guide you: 42",
    "To guide you: 42",
    "---\nReference: 42",
    "**Corrected:** 42",
    "Corrected answer: 42",
    "Korrigiert: 42",
    "To guide you, 42",
    "---\nThe guide: 42",
    "La guía: 42",
    "Dem Hinweis zufolge sind es 42.",
    "The prior answer is not correct.",
    "The previous answer was wrong. It is 42.",
    "Die vorherige Antwort war falsch. Es sind 42.",
    "La respuesta anterior era incorrecta. Son 42.",
    "La réponse précédente était fausse. C'est 42.",
    "之前的答案是错的，应该是42。",
]
# The same forms in more words and languages, which the gate alone is asked about.
LEAKED_TOO = [
    "The reference is 42.",
    "Reference: 42",
    "Hint: 42",
    "Given the reference, 42.",
    "Following the guide, 42.",
    "The hint suggests 42.",
    "Based on the given answer, 42.",
    "**Correction:** 42",
    "Updated answer: 42",
    "I apologize for the mistake; 42.",
    "You are right, 42.",
    "Die Musterlösung ist 42",
    "按提示，42",
    "Secondo il riferimento, 42.",
    "Come indica la guida, 42.",
    "Il riferimento dice 42.",
    "La risposta precedente era sbagliata.",
    "Corretto: 42",
    "Segundo a referência, 42.",
    "De acordo com o guia, 42.",
    "A referência diz 42.",
    "A resposta anterior estava errada.",
    "Corrigido: 42",
    "Volgens de referentie is het 42.",
    "De hint zegt 42.",
    "Het vorige antwoord was fout.",
    "Gecorrigeerd: 42",
    "Согласно справке, 42.",
    "Согласно эталонному ответу, 42.",
    "Подсказка говорит 42.",
    "Предыдущий ответ был неверным.",
    "Исправлено: 42",
    "参考によると、42です。",
    "ヒントによれば42です。",
    "参考回答は42です。",
    "前の回答は間違っていました。",
    "修正：42",
    "참고에 따르면 42입니다.",
    "힌트에 따르면 42입니다.",
    "참고 답안은 42입니다.",
    "이전 답변은 틀렸습니다.",
    "수정: 42",
    "Referencia: 42",
    "Référence : 42",
    "Referenz: 42",
    "参考：42",
    "提示：42",
    "La référence est 42.",
    "La referencia es 42.",
    "Hinweis: 42",
    "Guide: 42",
    "Corrected: 42",
]


@pytest.mark.parametrize("reply", LEAKED_TOO)
def test_every_form_of_naming_the_request_is_known(reply: str) -> None:
    assert leaked(reply, said="")


@pytest.mark.parametrize("reply", LEAKED)
def test_a_reply_that_speaks_of_the_request_is_refused_in_every_language_and_method(
    chat: Chat, tmp_path: Path, reply: str
) -> None:
    assert leaked(reply, said="")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    made = [
        one(WRONG, reply, chat, tmp_path / "a", max_edit=1.0),
        one(reply, reply, chat, tmp_path / "b", method="paraphrase"),
    ]
    assert [record.meta.get("why") for record in made] == ["leaked_prompt", "leaked_prompt"]


@pytest.mark.parametrize(
    "reply",
    [
        "The tour guide counted 42 people.",
        "A hint of lemon, and it is done.",
        "The first answer in the quiz was given by Ada.",
        "My guide dog is called Rex.",
        "In a library, reference books stay in the building.",
        "Corrected for inflation, it is 42.",
        "Er war nach der Arbeit müde.",
        "La guía turística habla tres idiomas.",
        "Le guide du musée parle trois langues.",
        "他给了我一个提示。",
        "According to the map, it is 42 miles.",
        "Selon la carte, c'est 42 km.",
        "The guide is a book for hikers.",
        "My guide dog is called Rex.",
        "The reference is missing a page.",
        "Hint of lemon: nice.",
        "You are right to be angry; breathe.",
        "La guida del museo parla tre lingue.",
        "O guia turístico fala três línguas.",
        "De gids sprak drie talen.",
        "Он дал мне подсказку.",
        "彼はヒントをくれた。",
        "그는 힌트를 주었다.",
        "根据地图，42公里。",
        "Secondo la mappa, 42 km.",
        "Segundo o mapa, são 42 km.",
        "Volgens de kaart 42 km.",
        "Согласно карте, 42 км.",
        "地図によると42キロです。",
        "Der Hinweis ist wichtig.",
    ],
)
def test_ordinary_answers_with_the_words_of_the_request_are_no_leak(reply: str) -> None:
    assert not leaked(reply, said="")


def test_what_the_question_speaks_of_the_answer_may_speak_of() -> None:
    assert not leaked("According to the guide, 42.", said="What is it according to the guide?")
    assert leaked("According to the guide, 42.", said="What is it?")


@pytest.mark.parametrize(
    ("reply", "clean"),
    [
        ("```\nIt is 42.\n```", "It is 42."),
        ("```text\nIt is\n42.\n```\n", "It is\n42."),
        ("~~~\nIt is 42.\n~~~", "It is 42."),
        ("~~~\nIt is `42`.\n```", "~~~\nIt is `42`.\n```"),
        ("Run this:\n```\nprint(42)\n```", "Run this:\n```\nprint(42)\n```"),
        ("```\na\n```\nor\n```\nb\n```", "```\na\n```\nor\n```\nb\n```"),
        ("Sure, I can help with that! It is 42.", "It is 42."),
        ("Certainly! I'd be happy to help. It is 42.", "It is 42."),
        ("I'm glad to assist you.\nIt is 42.", "It is 42."),
        ("Of course. Water is wet.", "Of course. Water is wet."),
        ("Sure, it is 42.", "Sure, it is 42."),
        ("I can help with that!", "I can help with that!"),
        ("Happy to help! It is 42.", "It is 42."),
        ("Let me help you with your sum. It is 42.", "It is 42."),
        ("I can help the sick. They need care.", "I can help the sick. They need care."),
        ("I am happy. I help.", "I am happy. I help."),
        ("I'm glad you could help. Thanks.", "I'm glad you could help. Thanks."),
        ("I'm happy to help my mother. She is old.", "I'm happy to help my mother. She is old."),
        ("It is 42. I can help with more!", "It is 42. I can help with more!"),
    ],
)
def test_what_frames_a_reply_is_taken_off_and_the_rest_stays(reply: str, clean: str) -> None:
    assert cleaned(reply, like="42") == clean


def test_a_frame_that_the_reference_or_the_model_itself_has_stays() -> None:
    fenced = "```\nprint(42)\n```"
    offered = "Sure, I can help with that! It is 42."
    assert cleaned(fenced, like="```\nprint(41)\n```") == fenced
    assert cleaned(offered, like="42", own="Sure, I can help with that! It is 41.") == offered
    assert cleaned(offered, like="Sure, I can help with that! It is 6 * 7.") == offered


def test_a_framed_reply_is_accepted_without_its_frame(chat: Chat, tmp_path: Path) -> None:
    record = one(WRONG, f"```\n{REPAIRED}\n```", chat, tmp_path)
    assert (record.answer, record.meta["path"]) == (REPAIRED, "edit")
    assert record.meta["edit"] == distance(WRONG, REPAIRED)


THINKING = {
    "qwen3": "<think>\n27 + 15\n</think>\n\n{}",
    "gemma4": "<|channel>thought\n27 + 15\n<channel|>{}",
}


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("said", [(RIGHT, "never asked"), (WRONG, REPAIRED)])
def test_a_thought_in_the_marks_of_the_template_is_no_part_of_the_new_row(
    name: str, said: tuple[str, str], tmp_path: Path
) -> None:
    thinker = shipped(name)
    prediction, edit = (THINKING[name].format(text) for text in said)
    record = one(prediction, edit, thinker, tmp_path)
    path = "prediction" if said[0] == RIGHT else "edit"
    answer = said[path == "edit"]
    assert (record.answer, record.meta["path"]) == (answer, path)
    assert record.messages[-1] == {"role": "assistant", "content": answer}
    with Ledger(tmp_path / "replies.jsonl") as ledger:
        assert [line["thought"] for line in ledger.values()] == ["valid"] * len(ledger)
        assert [line["text"] for line in ledger.values()] == list(said[: len(ledger)])


def test_a_reply_that_was_cut_in_its_thought_says_nothing(tmp_path: Path) -> None:
    record = one(f"<think>\n27 + 15{CUT}", "never asked", shipped("qwen3"), tmp_path)
    assert (record.answer, record.meta["why"]) == (REFERENCE, "empty")


def test_replies_of_before_with_thoughts_in_their_text_are_refused(tmp_path: Path) -> None:
    line = {"stage": "prediction", "text": f"27 + 15\n\n{RIGHT}", "finish_reason": "stop"}
    with Ledger(tmp_path / "replies.jsonl") as ledger:
        ledger.append({"row": 0, **line})
    with pytest.raises(RunError, match="earlier version of replaykit.*remove it from the step's"):
        one("never asked", "never asked", shipped("qwen3"), tmp_path)
    # Without thoughts a text was the answer then as it is now.
    assert one("never asked", "", Chat.load("nano"), tmp_path).answer == line["text"]


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("42\n42\n42\n42", True),
        ("42 42 42", True),
        ("#### 42\n" * 4, True),
        ("27 + 15 is 42.\n#### 42\n#### 42\n#### 42", True),
        ("So it is 42, I think. " * 30, True),
        ("42; 42; 42; 42", True),
        ("四十二。四十二。四十二。", True),
        ("so: " + "42 " * 6, True),
        ("0 " * 10, True),
        ("0 0 0", False),
        ("The row is 0 0 0.", False),
        ("42\n42", False),
        ("42", False),
        ("", False),
        (REFERENCE, False),
        ("no, no, no: it is 42", False),
    ],
)
def test_one_thing_three_times_or_mostly_repetition_is_a_loop(text: str, loop: bool) -> None:
    assert loops(text) is loop


def test_a_loop_is_refused_though_its_answer_is_right(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    loop = "42\n42\n42\n42"
    edit = one("It is 41.", loop, chat, tmp_path / "a", max_edit=1.0)
    assert edit.meta["why"] == "repetitive"
    paraphrase = one(loop, loop, chat, tmp_path / "b", method="paraphrase")
    assert paraphrase.meta["why"] == "repetitive"


@pytest.mark.parametrize(
    ("prediction", "repaired"),
    [
        ("It is 42. It is 42. It is 42.", "It is 27 and 15, so 42."),
        ("I'm sorry, but I can't help with that. 42", "I can do that, and it is 42"),
        ("As a chatbot, I cannot do sums, so 27 + 15 = 42", "I can do sums, so 27 + 15 = 42"),
    ],
)
def test_a_prediction_that_loops_or_declines_never_stays_but_may_be_edited(
    chat: Chat, tmp_path: Path, prediction: str, repaired: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    record = one(prediction, repaired, chat, tmp_path / "a", max_edit=1.0, verify="numeric")
    why = record.meta.get("why")
    assert (record.answer, record.meta["path"], why) == (repaired, "edit", None)
    record = one(prediction, prediction, chat, tmp_path / "b", max_edit=1.0)
    assert record.meta["path"] == "reference"
    assert record.meta["why"] in ("repetitive", "refusal")


def test_thirty_rounds_of_a_right_prediction_are_no_answer(chat: Chat, tmp_path: Path) -> None:
    """What repairs it is further from it than the reference, so the reference stays."""
    record = one("So it is 42, I think. " * 30, "So it is 42, I think.", chat, tmp_path)
    assert record.messages == dialogue(QUESTION, REFERENCE)
    assert record.meta["why"] == "over_edited"


def test_a_loop_or_a_refusal_that_the_reference_has_too_is_an_answer(
    chat: Chat, tmp_path: Path
) -> None:
    target = target_of(("42 thrice?", "42\n42\n42"), ("bomb?", "I can't help with that."))
    replies = (("42 thrice?", "42 42 42"), ("bomb?", "I can't help with that."))
    made = run(target, Scripted(chat, *replies), chat, tmp_path, verify="exact")
    assert [record.meta["path"] for record in made] == ["prediction", "prediction"]


# --- the embedded model ---------------------------------------------------------------------------


def test_the_embedded_model_keeps_what_it_knows_and_the_reference_where_it_fails(
    chat: Chat, tmp_path: Path
) -> None:
    known = [(task.prompt, task.answer) for task in world.draw("capital", 12, seed=5)]
    new = [(task.prompt, task.answer) for task in world.draw("arithmetic", 4, seed=5)]
    target = target_of(*known, *new)
    engine = load_engine("nano", "transformers")
    made = run(target, engine, chat, tmp_path, verify="exact", max_tokens=64)
    assert [record.meta["parent"] for record in made] == [record.id for record in target]
    assert sum(record.meta["path"] == "prediction" for record in made[:12]) >= 10
    assert [record.meta["path"] for record in made[12:]] == ["reference"] * 4
    assert [record.messages for record in made[12:]] == [record.messages for record in target[12:]]
    paraphrased = tmp_path / "paraphrase"
    paraphrased.mkdir()
    again = run(
        target, engine, chat, paraphrased, verify="exact", max_tokens=64, method="paraphrase"
    )
    assert [record.meta["parent"] for record in again] == [record.id for record in target]
    assert {record.meta["path"] for record in again} <= {"paraphrase", "reference"}


# --- self-output, cascade, auto -------------------------------------------------------------------

# Of the samples, drawn at temperature 0.7, each seed gives one of these.
SAMPLES = ("It is 41.", "It is 42.", RIGHT, "")


class Sampling(Scripted):
    """Replies of its own at a temperature, else from the table."""

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        asked = list(requests)
        drawn = [one for one in asked if one.sampling.temperature > 0]
        yield from super().complete([one for one in asked if one.sampling.temperature == 0])
        for request in drawn:
            prompt = self.chat.decode(request.tokens, special=True)
            self.prompts.append(prompt)
            text = SAMPLES[request.seed % len(SAMPLES)] if QUESTION in prompt else "no idea"
            if "Earlier answer:" in prompt:
                text = next((reply for key, reply in self.replies if key in prompt), "")
            yield Completion(request.row, self.chat.encode(text), "stop")

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        """RIGHT is the most probable of the right samples."""
        for sequence in sequences:
            tokens = list(sequence)
            text = self.chat.decode(tokens, special=True)
            surprise = 0.5 if RIGHT in text else 1.0
            foreign = any(f"{reference}<" in text for reference in self.references)
            yield [-2.0 if foreign else -surprise] * (len(tokens) - 1)


def test_of_right_samples_the_most_probable_stays(chat: Chat, tmp_path: Path) -> None:
    target = target_of((QUESTION, REFERENCE), ("hopeless?", "#### 3"))
    right, wrong = run(target, Sampling(chat), chat, tmp_path, method="self-output", samples=16)
    assert (right.answer, right.meta["path"]) == (RIGHT, "self-output")
    assert right.meta["edit"] == distance(REFERENCE, RIGHT)
    assert right.meta["perplexity"] == pytest.approx(math.exp(0.5), abs=1e-4)
    assert (wrong.answer, wrong.meta["why"]) == ("#### 3", "unverified")


def test_a_cascade_goes_on_with_what_is_left_and_masks_the_rest(chat: Chat, tmp_path: Path) -> None:
    target = target_of(
        (QUESTION, REFERENCE), ("edited?", "#### 5"), ("guided?", "#### 6"), ("hopeless?", "#### 7")
    )
    engine = Sampling(
        chat,
        ("Earlier answer:\nit may be 4", "it may be 5"),
        ("Earlier answer:", "no idea"),
        ("guided?\n\n---", "so it is 6"),
        ("edited?", "it may be 4"),
    )
    made = run(target, engine, chat, tmp_path, method="cascade", samples=4)
    assert [record.meta["path"] for record in made] == [
        "self-output", "edit", "paraphrase", "reference",
    ]  # fmt: skip
    assert [is_masked(record) for record in made] == [False, False, False, True]
    assert made[2].meta["tried"] == {"self-output": "unverified", "min-change": "empty"}
    assert [record.meta["parent"] for record in made] == [record.id for record in target]


def test_a_refused_edit_is_tried_again_and_the_editor_told_why(chat: Chat, tmp_path: Path) -> None:
    target = target_of(("edited?", "#### 5"))
    engine = Sampling(
        chat,
        ("since its final answer is not that of the reference answer", "it may be 5"),
        ("Earlier answer:", "it may be 3"),
        ("edited?", "it may be 4"),
    )
    [record] = run(target, engine, chat, tmp_path, retries=2)
    assert (record.answer, record.meta["path"]) == ("it may be 5", "edit")
    assert sum("Earlier answer:" in prompt for prompt in engine.prompts) == 2


def test_an_edit_that_is_no_more_probable_than_the_reference_is_refused(
    chat: Chat, tmp_path: Path
) -> None:
    class Even(Scripted):
        def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
            yield from ([-1.0] * (len(tokens) - 1) for tokens in sequences)

    engine = Even(chat, ("Earlier answer:", REPAIRED), (QUESTION, WRONG))
    [record] = run(target_of((QUESTION, REFERENCE)), engine, chat, tmp_path)
    assert (record.answer, record.meta["why"]) == (REFERENCE, "improbable")


def test_auto_takes_the_method_under_which_the_target_is_most_probable(
    chat: Chat, tmp_path: Path
) -> None:
    target = target_of(*((f"{QUESTION} {n}", REFERENCE) for n in range(6)))
    engine = Sampling(chat, ("Earlier answer:", "no idea"), ("---", "It is 42."))
    engine.references = [REFERENCE]
    with Ledger(tmp_path / "r.jsonl") as ledger, Scores(tmp_path / "l.jsonl", "x") as scores:
        made = reword(
            target,
            base=Base(engine, chat, scores),
            settings=Rewrite(method="auto", verify="numeric", samples=12, pilot=4, retries=0),
            seed=1,
            ledger=ledger,
        )
    assert made.method == "self-output"
    assert {trial.method: trial.accepted for trial in made.trials} == {
        "self-output": 4, "min-change": 0, "paraphrase": 4,
    }  # fmt: skip
    assert [record.answer for record in made.records] == [RIGHT] * 6
    assert set(made.perplexity) == {"reference", "self-output"}
    assert next(iter(made.perplexity)) == "reference"


def test_a_judge_verifies_what_nothing_else_can(chat: Chat, tmp_path: Path) -> None:
    grade = '{"correctness": %d, "helpfulness": 4}'
    judge = Scripted(chat, ("it is wet", grade % 5), ("<answer>", grade % 1))
    engine = Scripted(chat, ("rain?", "it is wet"), ("sun?", "it is wide"))
    target = target_of(("what is rain?", "Water."), ("what is the sun?", "A star."))
    engine.references = ["Water.", "A star."]
    with Ledger(tmp_path / "r.jsonl") as ledger, Scores(tmp_path / "l.jsonl", "x") as scores:
        made = reword(
            target,
            base=Base(engine, chat, scores),
            right=judged_by(judge, chat, unwatched),
            settings=Rewrite(method="min-change", verify="judge", retries=0),
            seed=1,
            ledger=ledger,
        )
    assert [record.meta["path"] for record in made.records] == ["prediction", "reference"]


@pytest.mark.slow
def test_training_masks_what_a_cascade_has_left(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{task.prompt} Say it at length.", "completion": f"Well, well: {task.answer}"}
        for task in world.draw("capital", 12, seed=2)
    ]
    made = replaykit.rewrite(rows, model="nano", method="cascade", samples=1, max_tokens=16)
    left = sum(map(is_masked, made.records))
    assert left == made.result.masked > 0
    assert set(made.result.perplexity) >= {"reference"}
    mixture = replaykit.mix(made.records, {}, model="nano", ratio=0, steps=1, batch_rows=4)
    assert any(is_masked(row.record) for row in mixture.rows)
    trained = replaykit.train(mixture, model="nano", folder=tmp_path / "train")
    assert trained.weights is not None
    assert trained.weights.sources["target"].masked > 0
    plain = replaykit.mix(rows, {}, model="nano", ratio=0, steps=1, batch_rows=4)
    assert replaykit.train(plain, model="nano", folder=tmp_path / "plain").weights is None
