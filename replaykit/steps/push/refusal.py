"""Why the Hub did not take a data set: whether to ask again, and what the user can do.

Refusal.of(error)            ->  Refusal(status=429, retry_after=2.0, ...)
Refusal.of(error).wait([1])  ->  2.0: ask again after two seconds
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
BUSY = (409, 429, 500, 502, 503, 504)  # asked again: another time it may work
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try, where the Hub says none
MAX_WAIT = 300.0  # seconds that are waited where the Hub says how long
JSON_ERROR = "JSONDecodeError"  # the client's releases use different ones


@dataclass(frozen=True)
class Refusal:
    """What is known of an error of the Hub's client."""

    status: int | None
    """None: the Hub was not reached, or the error came from this side."""
    retry_after: float | None
    """Seconds."""
    said: str
    """The text may still have the token in it."""
    network: bool
    page: bool
    """Whether the answer was no JSON, as that of a login page."""

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """The refusal behind an error of the client."""
        causes = list(_causes(error))
        answered = next(
            (link for link in causes if getattr(link, "response", None) is not None), error
        )
        response = getattr(answered, "response", None)
        headers = getattr(response, "headers", {})
        # By module, since the client's releases use different ones.
        network = any(
            isinstance(link, ConnectionError) or type(link).__module__ in ("httpx", "httpx2")
            for link in causes
        )
        html = "text/html" in headers.get("Content-Type", "")
        said = getattr(answered, "server_message", None) or str(answered)
        return cls(
            status=getattr(response, "status_code", None),
            retry_after=_seconds(headers.get("Retry-After")),
            said=" ".join((said or type(answered).__name__).split()),
            network=network,
            page=html or any(type(link).__name__ == JSON_ERROR for link in causes),
        )

    def wait(self, waits: list[float]) -> float | None:
        """After how many seconds to ask again, one of ``waits`` taken away; None: not at all."""
        if self.status not in BUSY or self.page or not waits:
            return None
        seconds = waits.pop(0)
        if self.retry_after is None:
            return seconds
        return self.retry_after if self.retry_after <= MAX_WAIT else None


@contextmanager
def no_long_waits() -> Iterator[None]:
    """The client's own tries end where the Hub asks for more than MAX_WAIT, for which the client
    would wait without a word.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils._http import hf_raise_for_status

    def refuse(response: Any) -> None:
        seconds = _seconds(response.headers.get("Retry-After"))
        if response.status_code in BUSY and seconds is not None and seconds > MAX_WAIT:
            response.read()
            hf_raise_for_status(response)

    client = get_session()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [*hooks.get("response", []), refuse]}
    try:
        yield
    finally:
        client.event_hooks = hooks


def advice(refusal: Refusal, repo: str, host: str, folder: Path) -> str:
    """What went wrong, and what to do about it. The text may still have the token in it."""
    network = "check the network, and HF_ENDPOINT if you set it"
    match refusal.status:
        case _ if refusal.page:
            return (
                f"{host} answered with a page for people, so it is no Hub, or a login page of "
                f"your network stands before it; open {host} in a browser, {network}"
            )
        case 401:
            found = f"{host} does not accept the token; {LOG_IN}"
        case 403:
            owner = repo.partition("/")[0]
            found = (
                f"the token has no right to write there; give one with write access ({LOG_IN}), "
                f"and check that {owner} is you or your organisation (`hf auth whoami`)"
            )
        case 404:
            found = f"{host} has no such place; check the name, and HF_ENDPOINT if you set it"
        case 413:
            found = f"{host} takes no file as large as {_largest(folder)}; publish fewer rows"
        case 507:
            found = (
                f"{host} has no room for {_size(folder)}, the largest of it {_largest(folder)}; "
                "publish fewer rows, or make room there"
            )
        case None if refusal.network:
            found = f"{host} cannot be reached; {network}, then push again"
        case None:
            found = (
                "the upload failed; push again, and if it stays so, upload the folder with "
                "`hf upload`"
            )
        case status:
            when = "wait a little"
            if refusal.retry_after is not None:
                when = f"it asks to wait {_spoken(refusal.retry_after)}"
            found = f"{host} answered {status}; {when}, and push again"
    return f"{found} ({refusal.said})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _seconds(text: str | None) -> float | None:
    """What Retry-After says: seconds, or a date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _largest(folder: Path) -> str:
    """The largest file of a data set, with its size."""
    file = max(folder.glob("data/*.parquet"), key=lambda found: found.stat().st_size)
    return f"data/{file.name} ({file.stat().st_size / 1e6:,.1f} MB)"


def _size(folder: Path) -> str:
    files = folder.glob("data/*.parquet")
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
