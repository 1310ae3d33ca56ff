"""The step rewrite: the target in the model's own words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from replaykit.data.jsonl import write_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import TARGET, Record, is_masked
from replaykit.errors import RecipeError
from replaykit.recipe import Recipe, need
from replaykit.recipe.evaluate import Judge
from replaykit.recipe.rewrite import Editor, Rewrite
from replaykit.runs import Step, Watch
from replaykit.steps.inputs import load, row_facts
from replaykit.steps.rewrite.result import RewriteEstimate, RewriteResult
from replaykit.steps.step import Context, Outcome, Todo, do_step, engine_and_chat, model_facts

if TYPE_CHECKING:
    from replaykit.steps.rewrite.asking import Model
    from replaykit.steps.rewrite.verifying import Verifier

LETTERS = 4  # of a token, where no tokenizer tells
RULES = 150  # tokens of the request for an edit, beside the row's own texts


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[RewriteResult]]:
    from replaykit.engines import engine_fact

    need(recipe, "rewrite", "model", "target")
    settings = recipe.rewrite or Rewrite()
    judge = judge_of(recipe, settings)
    target = recipe.target
    assert target is not None
    inputs = {
        **model_facts(recipe),
        "seed": recipe.seed,
        "engine": engine_fact(recipe.engine, recipe.model, recipe.revision),
        "target": row_facts(target),
        "rewrite": settings.decisive(),
        "judge": None if judge is None else judge.decisive(),
    }

    def work(step: Step) -> RewriteResult:
        found = load(target, TARGET)
        records, result = rewritten(recipe, settings, found.records, step.folder, context.watch)
        write_jsonl(step.folder / "rows.jsonl", records)
        return result.noted(found.note)

    yield Todo("rewrite", inputs, RewriteResult, work, lacking=unanswered)


def run(
    recipe: Recipe, context: Context, *, dry_run: bool = False
) -> Iterator[Outcome[RewriteResult] | Outcome[RewriteEstimate]]:
    """With ``dry_run``, what will be asked, instead of any row."""
    if dry_run:
        folder = context.out or recipe.folder / "rewrite"
        yield Outcome("rewrite", folder, estimate(recipe), note="dry run: nothing was asked")
        return
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def unanswered(result: RewriteResult) -> list[str]:
    """What is said of rows to which the editor's server did not reply: done again, the step asks
    for them alone.
    """
    rows = result.paths.get("no_reply", 0)
    if not rows:
        return []
    return [f"the editor's server gave no reply to {rows:,} rows, which keep their reference"]


def judge_of(recipe: Recipe, settings: Rewrite) -> Judge | None:
    """The judge that verifies. Raises RecipeError where one is wanted and none is named."""
    if settings.verify.name != "judge":
        return None
    judge = settings.judge or recipe.eval.judge
    if judge is None:
        problem = "rewrite.verify: judge needs a model that judges; name it: rewrite.judge"
        raise RecipeError("the recipe", [problem])
    return judge


def rewritten(
    recipe: Recipe, settings: Rewrite, target: Sequence[Record], folder: Path, watch: Watch
) -> tuple[list[Record], RewriteResult]:
    """The target's rows by the recipe's model; replies and probabilities stay in the folder, and
    what was interrupted goes on from there.
    """
    from replaykit.steps.rewrite.asking import Served
    from replaykit.steps.rewrite.reword import Base, counts, reword
    from replaykit.steps.score.logprobs import Scores, model_key

    model = str(recipe.model)
    with ExitStack() as stack:
        engine, chat = stack.enter_context(engine_and_chat(recipe, model))
        key = model_key(model, recipe.revision)
        scores = stack.enter_context(Scores(folder / "logprobs.jsonl", key))
        editor = _editor(recipe, settings.editor, stack)
        made = reword(
            target,
            base=Base(engine, chat, scores, watch),
            editor=editor,
            right=_judge(recipe, settings, stack, watch),
            settings=settings,
            seed=recipe.seed,
            ledger=stack.enter_context(Ledger(folder / "replies.jsonl")),
        )
    result = RewriteResult(
        rows=len(made.records),
        paths=counts(made.records),
        method=made.method,
        model=model,
        masked=sum(map(is_masked, made.records)),
        trials=made.trials,
        perplexity=made.perplexity,
        edit=_mean(made.records, "edit"),
        reference_edit=_mean(made.records, "reference_edit"),
    )
    if isinstance(editor, Served):
        result = result.model_copy(update={"editor_tokens": tuple(editor.tokens)})
        if editor.server.trouble:
            result = result.noted(f"some rows got no edit: {editor.server.trouble}")
    return made.records, result


def _editor(recipe: Recipe, editor: Editor | None, stack: ExitStack) -> Model | None:
    """The model that repairs; None for the base itself."""
    from replaykit.steps.rewrite.asking import Loaded, Served

    if editor is None:
        return None
    if editor.server is not None:
        from replaykit.engines.chat_server import ChatServer

        return Served(stack.enter_context(closing(ChatServer(editor))))
    return Loaded(*stack.enter_context(engine_and_chat(recipe, editor.model, of_recipe=False)))


def _judge(recipe: Recipe, settings: Rewrite, stack: ExitStack, watch: Watch) -> Verifier | None:
    """The judge as a verifier; None where a scorer verifies."""
    from replaykit.steps.rewrite.verifying import judged_by

    judge = judge_of(recipe, settings)
    if judge is None:
        return None
    options = recipe.engine.here
    if judge.server is not None:
        options = recipe.engine.model_copy(update={"name": "openai", "server": judge.server})
    judging = engine_and_chat(recipe, judge.model, of_recipe=False, options=options)
    return judged_by(*stack.enter_context(judging), watch)


def _mean(records: Sequence[Record], name: str) -> float | None:
    """The mean distance over the rows that were edited, or whose own answer stayed."""
    found = [
        record.meta[name]
        for record in records
        if record.meta["path"] in ("prediction", "edit") and name in record.meta
    ]
    return round(statistics.fmean(found), 4) if found else None


def estimate(recipe: Recipe) -> RewriteEstimate:
    """What rewriting will ask, at most, before anything is asked. No model is loaded; a token is
    taken for four letters.
    """
    need(recipe, "rewrite", "target")
    settings = recipe.rewrite or Rewrite()
    target = recipe.target
    assert target is not None
    records = load(target, TARGET).records
    methods = [settings.method]
    if settings.method in ("cascade", "auto"):
        methods = ["self-output", "min-change", "paraphrase"]
    asked = {"self-output": settings.samples, "min-change": 1, "paraphrase": 1}
    edits = (1 + settings.retries) * len(records) if "min-change" in methods else 0
    texts = sum(
        sum(len(turn["content"]) for turn in record.messages) + len(record.answer)
        for record in records
    )
    read = (1 + settings.retries) * (texts // LETTERS + RULES * len(records)) if edits else 0
    editor = settings.editor
    cost = None
    if editor is not None and editor.prompt_price is not None and editor.reply_price is not None:
        written = edits * settings.max_tokens
        cost = round((read * editor.prompt_price + written * editor.reply_price) / 1e6, 2)
    return RewriteEstimate(
        rows=len(records),
        replies=sum(asked[method] for method in methods) * len(records),
        edits=edits,
        editor=str(recipe.model) if editor is None else editor.model,
        server=None if editor is None else editor.server,
        tokens_read=read,
        tokens_written=edits * settings.max_tokens,
        cost=cost,
    )
