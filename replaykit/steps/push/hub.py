"""A data set's folder, and its way to the Hugging Face Hub. Nothing is sent before everything lies
in the folder.

    runs/my-task/push/
        README.md             the card
        replaykit.yaml        what of the recipe leaves the machine
        data/generate.parquet one file, and one split, for each source
        data/select.parquet

Only these files are uploaded, whatever else the folder holds. The token goes to the Hub and nowhere
else: what the Hub's client says of an error is searched for it before it is repeated.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from replaykit.data.dataset import Schema, to_dataset
from replaykit.data.jsonl import read_jsonl
from replaykit.data.record import SOURCES, Record
from replaykit.errors import DataError, HubError
from replaykit.recipe import RECIPE_FILE, Recipe
from replaykit.runs import Manifest, versions
from replaykit.steps.public.meta import public_meta
from replaykit.steps.public.settings import public_recipe
from replaykit.steps.push.card import Recorded, dataset_card
from replaykit.steps.push.licence import licence_of
from replaykit.steps.push.refusal import LOG_IN, WAITS, Refusal, advice, no_long_waits
from replaykit.steps.push.result import PushResult
from replaykit.written import replaced

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

PARQUET = tuple(f"data/{source}.parquet" for source in SOURCES)
EXAMPLES = 3


def prepare(
    folder: Path,
    repo: str,
    recipe: Recipe,
    sources: Mapping[str, Path],
    manifests: Mapping[str, Manifest],
) -> PushResult:
    """Writes the data set into the folder, and sends nothing.

    ``sources`` gives each source's rows.jsonl, ``manifests`` the run's by folder name, from which
    the card knows how the rows were made. Raises HubError for a repo that is no owner/name,
    DataError for no rows, RecipeError for cards that name different licences, RunError where files
    that are not ours are in the way.
    """
    check_repo(repo)
    assert sources and set(sources) <= set(SOURCES), f"not sources of records: {sorted(sources)}"
    records = {source: list(read_jsonl(path)) for source, path in sources.items()}
    for source, rows in records.items():
        if not rows:
            raise DataError(
                f"{sources[source]}: no rows, so there is nothing to publish; --force does the "
                "step again"
            )
    every, left_out = public_meta(chain.from_iterable(records.values()), recipe.push.columns)
    found = {source: [row for row in every if row.source == source] for source in records}
    counts = {source: len(rows) for source, rows in found.items()}
    recorded = Recorded.of(manifests)
    model = recorded.model or recipe.model
    licence = licence_of(recipe, counts, model, recorded.pool)
    card = dataset_card(
        repo=repo,
        recipe=recipe,
        recorded=recorded,
        counts=counts,
        examples=_examples(list(found.values())),
        licence=licence,
    )
    # Every name, since an earlier push may have had a source that this one has not.
    with replaced(folder, ["README.md", RECIPE_FILE, *PARQUET]) as place:
        (place / "data").mkdir()
        # One set of columns for all files, or `load_dataset` could not read them together.
        columns = Schema.of(every)
        with _without_bars():
            for source, rows in found.items():
                to_dataset(rows, columns).to_parquet(place / "data" / f"{source}.parquet")
        (place / "README.md").write_text(card, encoding="utf-8")
        (place / RECIPE_FILE).write_text(public_recipe(recipe), encoding="utf-8")
    return PushResult(
        repo=repo,
        folder=str(folder),
        rows=counts,
        files=["README.md", RECIPE_FILE, *(f"data/{source}.parquet" for source in counts)],
        left_out=list(left_out),
        license=licence.name,
        notes=[*_left_out(left_out), *licence.notes],
    )


def _left_out(columns: Iterable[str]) -> Iterator[str]:
    """Says which columns stay, and how they would leave."""
    if names := ", ".join(columns):
        yield f"columns that are not published: {names}; push.columns names those that are to be"


def _examples(sources: Sequence[Sequence[Record]]) -> list[Record]:
    """The first rows of every source in turn: of two sources, two of the first and one of the
    second.
    """
    turns = chain.from_iterable(zip_longest(*(rows[:EXAMPLES] for rows in sources)))
    return [record for record in turns if record is not None][:EXAMPLES]


def upload(folder: Path, repo: str, *, private: bool, token: str | None = None) -> str:
    """Uploads what ``prepare`` wrote and returns the data set's URL. The repository is made where
    there is none.

    A file of the same name is replaced, and the split of a source that is no longer there is
    removed. The token is by default the one that huggingface_hub finds: HF_TOKEN, or that of `hf
    auth login`. HF_ENDPOINT is read at each call. Where the Hub is busy, it is asked again after
    the time that it says. Raises HubError; nothing is lost then, and the same call again uploads
    what is missing.
    """
    import huggingface_hub

    check_repo(repo)
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    api = huggingface_hub.HfApi(
        endpoint=endpoint, library_name="replaykit", library_version=versions().get("replaykit")
    )
    host = urlsplit(api.endpoint).netloc.rpartition("@")[2]  # without a user and password
    secret = ""  # known from here on, since an error may come while the token is looked for
    waits = list(WAITS)
    while True:
        try:
            secret = (token or huggingface_hub.get_token() or "").strip()
            problem = _unusable(secret, host)
            if problem is None:
                url = api.create_repo(
                    repo, repo_type="dataset", private=private, exist_ok=True, token=secret
                )
                # A repository that exists keeps its visibility: private rows must not land in a
                # public one.
                if not private or api.dataset_info(repo, token=secret).private:
                    _send(api, folder, repo, secret)
                    return str(url)
                problem = (
                    "it exists and is public; choose another name, or say `push: {private: false}` "
                    "in the recipe"
                )
        except Exception as error:  # noqa: BLE001 - whatever comes through may quote the token
            refusal = Refusal.of(error)
            seconds = refusal.wait(waits)
            if seconds is not None:
                log.warning("%s answered %s; asked again in %g s", host, refusal.status, seconds)
                time.sleep(seconds)
                continue
            problem = advice(refusal, repo, host, folder)
        break
    # Raised out here, so that no traceback shows the client's error with its unsearched text as the
    # context.
    raise HubError(
        _without(secret, f"cannot push to {repo}: {problem}\n  The data set is ready in {folder}.")
    )


def _send(api: HfApi, folder: Path, repo: str, token: str) -> None:
    """One commit: what ``prepare`` wrote and nothing else, and no split of an earlier push."""
    with no_long_waits():
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=["README.md", RECIPE_FILE, *PARQUET],
            delete_patterns=list(PARQUET),
            commit_message="Replay data made with replaykit",
            token=token,
        )


def check_repo(repo: str) -> None:
    """Raises HubError unless repo is an owner/name that the Hub allows."""
    part = r"\w([\w.-]{0,94}\w)?"
    if not re.fullmatch(f"{part}/{part}", repo, re.ASCII) or re.search(r"--|\.\.|\.git$", repo):
        raise HubError(
            f"'{repo}' cannot be a data set's name: give owner/name, such as me/my-replay, of "
            "letters, digits, '-', '_' and '.', without '--' and '..' and not ending in '.git'"
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of datasets, which would draw one for each file however small."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _unusable(token: str, host: str) -> str | None:
    """Why the token cannot be sent, or None."""
    if not token:
        return f"you are not logged in to {host}; {LOG_IN}"
    if not re.fullmatch(r"[!-~]+", token):
        return f"the token has a character that no token has; copy it again and {LOG_IN}"
    return None


def _without(secret: str, text: str) -> str:
    """The text with the token, and anything else that looks like one, blotted out."""
    if secret:
        text = text.replace(secret, "***")
    return re.sub(r"\b(hf|api_org)_[A-Za-z0-9]{8,}|(?<=Bearer )\S+", "***", text)
