"""The commands as a table: what each says of itself, and its options in the order of its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from replaykit.cli import read
from replaykit.cli.options import RECIPE_FILE, Option


@dataclass(frozen=True)
class Command:
    """A command: its name, its help, its options."""

    name: str
    help: str
    options: tuple[Option, ...]


# fmt: off
# --- what several commands have -------------------------------------------------------------------

RECIPE = Option("--recipe -r", "", Path, "The recipe; replaykit.yaml where there is one.")
SET = Option("--set", "", list[str], "KEY=VALUE: any key of the recipe, its value in YAML, such as "
             "train.epochs=2; may be given again.")
BY_FILE = (
    Option("FILE", "", Path, "The recipe; replaykit.yaml by default."),
    Option("--recipe -r", "", Path, "The same as FILE."),
)
OUT = Option("--out", "", Path, "Write here instead of under runs/.")
RUN_OUT = Option("--out", "out", str, "The run's folder instead of runs/<name>.")
SEED = Option("--seed", "seed", int, "Of everything drawn at random; 1 by default.")
FORCE = Option("--force", "", bool, "Do a finished step again; the old result is kept beside it.")
AS_JSON = Option("--json", "", bool, "Print one JSON object and nothing else on stdout.")
COMMON = (RECIPE, SET, OUT, SEED, FORCE, AS_JSON)

PRICE = Option("--price-per-hour", "", float, "Of one device, for --dry-run.")
ARM = Option("--arm", "", str, "Only this one of the recipe's arms, or of its tasks.")
MODEL = Option("--model", "model", str,
               "An alias (llama3, qwen3-8b, nano, ...), a Hub id, a folder or a GGUF file.")
TARGET = Option("--target", "target.path", str,
                "The new task's rows: a file, a folder or a Hub data set.")
ENGINE = Option("--engine", "engine.name", str,
                "auto, vllm, openai (with --server) or transformers.")
OWN_ENGINE = Option("--engine", "engine.name", str, "auto, vllm or transformers.")
SERVER = Option("--server", "engine.server", str,
                "http://host:8000/v1 of a completions server, such as `vllm serve` starts.")
THINKING = Option("--thinking/--no-thinking", "chat.thinking", bool,
                  "Let the model think before it answers.")
PARTS = (
    Option("--pre-query", "chat.pre_query", str,
           r"By hand: what stands before a question; \n is a line break.", read.unescaped),
    Option("--answer-header", "chat.answer_header", str,
           "By hand: what stands between a question and its answer.", read.unescaped),
    Option("--stop", "chat.stop", list[str], "A token that ends a turn, besides those that are "
           "found; may be given again.", read.all_unescaped),
)

# --- the commands ---------------------------------------------------------------------------------

QUICKSTART = Command(
    "quickstart",
    "See a small model forget, and then not forget: the whole story on this machine's CPU, in "
    "minutes, offline.",
    (OUT, SEED, FORCE, AS_JSON),
)
INIT = Command("init", "Write a commented recipe to start from.", (
    MODEL,
    TARGET,
    Option("--pool", "", str, "Old data to select replay from."),
    Option("--out", "", Path, "The file to write; .replaykit.schema.json goes beside it, from "
           "which an editor with a YAML language server knows every key.", default=RECIPE_FILE),
    SEED,
    Option("--force", "", bool, "Replace the file if it is there."),
    AS_JSON,
))
RUN = Command(
    "run",
    "Do all that a recipe asks for: replay, mix, train, eval, report. Finished steps are skipped.",
    (
        *BY_FILE,
        SET, MODEL, TARGET, ENGINE, SERVER, RUN_OUT, SEED, FORCE, AS_JSON,
    ),
)
STATUS = Command(
    "status",
    "Show which steps of a run are finished, and why one would be done anew.",
    (RECIPE, SET, MODEL, TARGET, RUN_OUT, SEED, AS_JSON),
)
SCHEMA = Command(
    "schema",
    "Print the JSON schema of the recipe, for editors: `init` writes it beside the recipe, whose "
    "first line names it.",
    (Option("--out", "", Path, "Write it to this file instead."),),
)

PROBE = Command(
    "probe",
    "Show what a model's chat template gives: pre-query, stops, and questions that the model "
    "writes from it.",
    (
        MODEL,
        Option("--samples", "", int, "Questions to draw; 0 needs the tokenizer alone, not the "
               "weights.", default=20),
        ENGINE, SERVER, THINKING, *PARTS, *COMMON,
    ),
)
SELECT = Command(
    "select",
    "Choose old data for the new task: by default what is near it, by TF-IDF.",
    (
        Option("--pool", "select.pool.path", str,
               "The old data: a file, a folder or a Hub data set."),
        TARGET,
        Option("-n", "select.n", int, "How many rows; 2000 by default."),
        Option("--method", "select.method", str, "tfidf, bm25, embedding, near-and-far, mmr, or "
               "without a target random, stratified, k-centre, herding."),
        Option("--to", "select.to", str,
               "nearest or centroid: what of the target a row is near to."),
        Option("--embedding", "select.model", str,
               "The sentence-transformers or model2vec model of embedding."),
        Option("--column", "select.column", str, "The column of the strata."),
        Option("--per-target", "select.per_target", int,
               "Rows at most that are nearest to the same target row."),
        Option("--against", "select.against", list[str],
               "Leave out what this evaluation set holds: a file or lm_eval:TASK."),
        Option("--strict", "select.strict", bool, "A row that cannot be read is an error."),
        Option("--engine", "select.engine", str, "local, or ray for all of a cluster."),
        Option("--explain", "", str, "Show why the row with this id was chosen, or was not."),
        MODEL, *COMMON,
    ),
)
GENERATE = Command(
    "generate",
    "Let the model write its own questions and answers (Magpie).",
    (
        MODEL,
        Option("-n", "generate.n", int, "How many rows; 2000 by default."),
        Option("--turns", "generate.turns", int, "Questions of one conversation."),
        Option("--answers", "generate.answers", int, "Answers to each question."),
        Option("--prompts", "generate.prompts", str, "Answer the questions of this file instead."),
        Option("--verify", "generate.verify", str, "Of prompts with answers keep the model's own "
               "where it is right by this verifier (exact, numeric, json, choice, code, ...), else "
               "the row as it is."),
        Option("--system", "generate.systems", list[str], "Steer by a system prompt: math, code, "
               "translation, chinese, json, refusal, or a text; code=2 gives it the weight 2. May "
               "be given again.", read.weighted),
        Option("--keep-system", "generate.keep_system", bool,
               "Leave the system prompt in the record."),
        Option("--thinking/--no-thinking", "generate.thinking", bool,
               "Let the model think before it answers; by default only where it always does."),
        Option("--thinking-part", "generate.thinking", float,
               "The part of the rows in which it thinks, such as 0.5."),
        Option("--tools", "generate.tools", str,
               "Offer the tools of this JSON or JSONL file, and check the calls of them."),
        Option("--temperature", "generate.temperature", str,
               'Of the questions; 1.0 by default, "model" as it is deployed.', read.number),
        Option("--schedule", "generate.schedule", str,
               "magpie-air or magpie-pro: the paper's temperatures."),
        Option("--answer-temperature", "generate.answer_temperature", str, "Of the answers; 0 by "
               'default, which is greedy, "model" as it is deployed.', read.number),
        Option("--language", "generate.checks.languages", list[str],
               "Keep this language only, such as en; may be given again."),
        Option("--tags", "generate.tags", bool,
               "Let the model judge category, difficulty and quality.", read.section),
        ENGINE, SERVER,
        Option("--workers", "engine.workers", int,
               "Processes with a whole model each, one for each GPU; 1 by default."),
        Option("--tensor-parallel", "engine.tensor_parallel", int,
               "GPUs that share one model, in vllm."),
        *PARTS,
        Option("--dry-run", "", bool,
               "Say how many rows, tokens and hours it takes; load nothing."),
        PRICE,
        *COMMON,
    ),
)
MEMORY = Command(
    "memory",
    "Let the model write rows that are never trained on: by them eval measures how far a tuned "
    "model has drifted.",
    (
        MODEL,
        Option("-n", "eval.memory", int, "How many rows."),
        ENGINE, SERVER, *COMMON,
    ),
)
REWRITE = Command(
    "rewrite",
    "Put the target's answers into the model's own words, where they stay right.",
    (
        Option("--method", "rewrite.method", str, "self-output, min-change, paraphrase, cascade "
               "(one after the other) or auto (what does best on some rows)."),
        Option("--verify", "rewrite.verify", str, "How new answers are compared with the "
               "reference: exact, numeric, symbolic, contains, code, judge, ..."),
        Option("--editor", "rewrite.editor", str,
               "The model that repairs; by default the model itself."),
        Option("--dry-run", "", bool, "Say what will be asked, of whom and at what cost, and ask "
               "nothing."),
        TARGET, MODEL, ENGINE, SERVER, *COMMON,
    ),
)
AUGMENT = Command(
    "augment",
    "Make further target rows of those that there are: questions in other words, and pairs that "
    "differ in one fact. Their parents stay.",
    (
        Option("--back-translation", "augment.back_translation", bool,
               "Questions go through another language and back.", read.section),
        Option("--pivot", "augment.back_translation.pivot", str,
               "That language; German by default."),
        Option("--counterfactual", "augment.counterfactual", bool,
               "Pairs that differ in one fact of the question, and so in the answer.",
               read.section),
        Option("--by", "augment.counterfactual.by", str,
               "arithmetic: a number is changed and the answer calculated; editor: a model edits."),
        Option("--verify", "augment.verify", str,
               "How final answers are compared: exact or numeric."),
        TARGET, MODEL, ENGINE, SERVER, *COMMON,
    ),
)
DESCRIBE = Command(
    "describe",
    "Let a text model answer for recordings or pictures by descriptions of them: targets for a "
    "model that hears or sees.",
    (
        Option("--rows", "describe.rows.path", str,
               "The rows with media and attributes: a file, a folder or a Hub data set."),
        Option("--template", "describe.template", str,
               'The description, with columns in braces: "a {gender} voice".', read.unescaped),
        Option("--instruction", "describe.instructions", list[str],
               '"What can you hear?" by default; may be given again, then one is drawn.'),
        Option("--missing", "describe.missing", str,
               "A row without an attribute: refuse (the default), leave-out, or unknown."),
        MODEL, ENGINE, SERVER, *COMMON,
    ),
)
MIX = Command(
    "mix",
    "Mix replay into the target: the same share in every optimiser step.",
    (
        Option("--ratio", "mix.ratio", float, "Replay's share of the training; 0.05 by default."),
        Option("--replay", "mix.sources", list[str], "Old data to replay: a file, a folder, a Hub "
               "data set, or select or generate for what these made; old.jsonl=2 gives it the "
               "weight 2. May be given again; no other source is taken.", read.replays),
        Option("--unit", "mix.unit", str, "What counts: rows (the default), tokens, loss_tokens."),
        Option("--budget", "mix.budget", str, "add: replay on top of the target. replace: as many "
               "rows as without replay."),
        Option("--min-rows", "mix.min_rows", list[str], "SKILL=N: at least N replay rows of a "
               "skill are trained on; may be given again.", read.floors),
        Option("--export", "", list[str], "Write it for another trainer too: trl, llamafactory, "
               "axolotl, ms-swift or parquet; may be given again."),
        TARGET, MODEL, ARM, *COMMON,
    ),
)
SCORE = Command(
    "score",
    "Show how probable the model finds the mixture's answers, before it is trained on them.",
    (MODEL, ENGINE, SERVER, ARM, *COMMON),
)
TRAIN = Command(
    "train",
    "Fine-tune on the mixture, in exactly its order.",
    (
        MODEL,
        Option("--method", "train.method", str, "full, lora, dora or qlora."),
        Option("--learning-rate", "train.learning_rate", float,
               "The highest; 1e-5 by default, 2e-4 for adapters."),
        Option("--remedy", "train.remedies.*", list[str], "stm, flow, dft, eaft, ewc, l2sp, "
               "distill, project, ema, self_distill or consistency, as by default; may be given "
               "again.",
               read.remedies),
        Option("--ewc-auto", "train.remedies.ewc.auto", float,
               "ewc, with its gradient's norm held at this part of the loss's."),
        Option("--dry-run", "", bool,
               "Say how much memory and how many hours it takes; load nothing."),
        PRICE,
        ARM, *COMMON,
    ),
)
MERGE = Command(
    "merge",
    "Average base and tuned model: one training, and any point between what was known and what was "
    "learned.",
    (
        Option("--base --model", "model", str,
               "What was tuned: an alias, a Hub id or a folder."),
        Option("--tuned", "", list[str], "The tuned model's folder; by default what `train` left. "
               "Again for ties."),
        Option("--alpha", "", float,
               "How far to go from base (0) to tuned (1); 0.5 by default, 1 for ties."),
        Option("--method", "", str, "wise-ft, ties (several tuned models), or adapter (the LoRA "
               "adapter alone).", default="wise-ft"),
        Option("--sweep", "", str, "Measure these alphas, such as 0,0.1,...,1, and keep the best "
               "that loses 2 points of old skill at most.", read.alphas),
        Option("--density", "", float, "For ties: the part of the changes that is kept.",
               default=0.2),
        OWN_ENGINE, ARM, *COMMON,
    ),
)
MEASURED = (
    Option("--base --model", "model", str, "What was tuned: an alias, a Hub id or a folder."),
    Option("--tuned", "", list[str], "A model that was trained anywhere, as PATH or NAME=PATH; by "
           "default what `train` left. May be given again."),
    Option("MORE", "", list[str], "Further tuned models, after one of --tuned."),
    Option("--old", "eval.old.*", list[str], "SKILL=FILE: held-out rows of an old skill; may be "
           "given again.", read.named),
    Option("--new", "eval.target.path", str, "Held-out rows of the new task."),
    Option("--margin", "eval.margin", float,
           "A drop below it is called no forgetting; 0.02, two points, by default."),
    OWN_ENGINE, ARM, *COMMON,
)
EVAL = Command("eval", "Measure base and tuned models on the same held-out items.", MEASURED)
GATE = Command(
    "gate",
    "Say by the exit code what became of the old skills: 0 all kept, 2 some lost, 3 not to be told "
    "by these rows. Measures first what is not measured.",
    (
        Option("--judge", "", str, "The tuned model to judge; by default the one that did best."),
        Option("--evidence", "", Path, "Write the evidence to this file; gate.json in the folder "
               "of the evaluation by default."),
        Option("--summary", "", Path, "Append a summary in Markdown to this file, such as "
               "$GITHUB_STEP_SUMMARY."),
        *MEASURED,
    ),
)
REPAIR = Command(
    "repair",
    "Bring a model that is tuned already back towards its base, by some hundred steps on rows that "
    "the base writes itself, and keep the step that has the best new skill and the old ones too.",
    (
        Option("TUNED", "", str, "The tuned model: a folder, an adapter's too, or a Hub id; by "
               "default what `train` left."),
        Option("--base --model", "model", str, "What was tuned: an alias, a Hub id or a folder."),
        Option("--target --new", "eval.target.path", str,
               "Held-out rows of the new task, by which it is known what to keep of it."),
        Option("--old", "eval.old.*", list[str], "SKILL=FILE: held-out rows of an old skill; may "
               "be given again. By default the suites that suit the base.", read.named),
        Option("--margin", "eval.margin", float,
               "A drop below it is called no forgetting; 0.02, two points, by default."),
        Option("-n", "repair.rows", int, "Rows that the base writes; 1000 by default."),
        Option("--steps", "repair.steps", int, "Optimiser steps; 200 by default."),
        Option("--every", "repair.every", int, "Steps between two points that are measured; by "
               "default they are measured after a 32nd, a 16th ... and all of the steps."),
        Option("--rehearse", "target.path", str, "Rows of the new task to train on beside, half "
               "of each step, so that it stays: a file, a folder or a Hub data set."),
        Option("--method", "repair.method", str, "full or lora; by default what the size of the "
               "model suits."),
        Option("--learning-rate", "repair.learning_rate", float, "By default by the model's size."),
        OWN_ENGINE, ARM, *COMMON,
    ),
)
SUITES = Command(
    "suites",
    "List the suites, old skills whose items replaykit writes itself. With names, print their "
    "items as JSON Lines; with --model, measure what a base can do of them.",
    (
        Option("NAME", "", list[str], "Of these suites; of all by default."),
        Option("-n", "", int, "Items of each; 200 by default, fewer where a suite has no more."),
        Option("--seed", "", int, "Of the items; 0 by default."),
        MODEL, OWN_ENGINE, RECIPE, SET, OUT, FORCE, AS_JSON,
    ),
)
SWEPT = (
    *BY_FILE,
    SET,
    Option("--ratio", "sweep.ratio", str, "The shares of replay, such as 0,0.01,0.05,0.1.",
           read.shares),
    Option("--seeds", "sweep.seeds", str, "Train each with each of these, such as 1,2,3.",
           read.seeds),
)
SWEEP = Command(
    "sweep",
    "Compare shares of replay, or other settings, at the same compute: how much is enough, and at "
    "what cost. Goes on where it was stopped.",
    (
        *SWEPT,
        Option("--over", "sweep.over", list[str], "KEY=V1,V2: another key of the recipe with "
               "its values in YAML, such as mix.sources=[select],[generate]; may be given again.",
               read.over),
        Option("--steps", "sweep.steps", int, "Optimiser steps of each training; by default as "
               "many as the longest has."),
        MODEL, TARGET, RUN_OUT, SEED, FORCE, AS_JSON,
    ),
)
ADVISE = Command(
    "advise",
    "Recommend a share of replay by a few short trainings, or say why that cannot be told.",
    (
        *SWEPT,
        Option("--steps", "sweep.steps", int, "Optimiser steps of each training; by default a "
               "quarter of the whole."),
        MODEL, TARGET, RUN_OUT, SEED, FORCE, AS_JSON,
    ),
)
REPORT = Command(
    "report",
    "Write one self-contained report.html of what is finished, and its pictures as SVG files.",
    (
        Option("--png", "", bool, "Write the pictures as PNG too, beside the SVG."),
        Option("--price-per-hour", "", float, "Of one device, to say what the steps cost."),
        *COMMON,
    ),
)
PEEK = Command(
    "peek",
    "Show rows: of a file, of a suite, or of a step of the run.",
    (
        Option("WHAT", "", str, "A file, a folder or a Hub data set in any format that replaykit "
               "reads; suite:NAME; a step's folder, or its name, such as select."),
        Option("-n", "", int, "How many rows.", default=5),
        Option("--source", "", str, "Only rows of this source, such as generate."),
        Option("--dropped", "", bool, "Rows that the step left out, each with its reason."),
        Option("--reason", "", str, "Of these only those that were left out for this reason."),
        Option("--path", "", str, "Only rows that were rewritten this way, such as min-change."),
        Option("--min-edit", "", float, "Only rows of which at least this part was edited, from 0 "
               "to 1.", default=0.0),
        Option("--split", "", str, "Of a folder or a Hub data set.", default="train"),
        Option("--seed", "", int, "Draw the rows at random; without it they are the first."),
        RECIPE, SET, RUN_OUT, AS_JSON,
    ),
)
DIFF = Command(
    "diff",
    "Show in what two runs differ: settings, files and versions, scores, rows, losses and seconds.",
    (
        Option("BEFORE", "", Path, "The folder of a run, such as runs/a."),
        Option("NOW", "", Path, "The folder of the other."),
        Option("--out", "", Path, "Write it to this file as JSON too."),
        AS_JSON,
    ),
)
PUSH = Command(
    "push",
    "Publish the replay data and its card to the Hugging Face Hub.",
    (
        Option("REPO", "push.repo", str, "owner/name on the Hub."),
        Option("--public", "push.private", bool, "Let everyone see it; private by default.",
               read.negated),
        Option("--license", "push.license", str, "Of the data set, such as apache-2.0; by default "
               "what the model's and the pool's own cards say."),
        Option("--column", "push.columns", list[str], "A column of your rows to publish too; may "
               "be given again. What replaykit wrote of a row always is."),
        Option("--dry-run", "", bool, "Write the folder, but upload nothing."),
        *COMMON,
    ),
)
STEPS = (
    PROBE, SELECT, GENERATE, MEMORY, REWRITE, AUGMENT, DESCRIBE, MIX, SCORE, TRAIN, MERGE, EVAL,
    REPORT, PUSH,
)
# fmt: on
