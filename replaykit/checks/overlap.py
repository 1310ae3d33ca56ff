"""Rows that hold a prompt of the evaluation: what is trained on must not be what is tested with.

    overlap = Overlap(record.prompt for record in held_out)
    overlap.find("Tom has 3 apples. ...")
                             ->  ("eval_overlap", the evaluation prompt that it holds), or None

    clean = Decontamination({"gsm8k": eval_items("lm_eval:gsm8k")})
    clean.check(record)      ->  Hit("gsm8k", item="17", match="the piece that both have"), or None
    clean.result()           ->  how many rows go, and which items of the evaluation they held

A prompt is looked for in two ways. By its words and signs in a row, however they are broken into
lines, where a line, a sentence, a bracket or a comma ends before and behind it ("Q: ... A:"), with
three words in front at most ("Please tell me ..."); what several prompts have in common, such as an
instruction, need not be there. And a long one by runs of 13 words, as GPT-3's data was cleaned
(Brown et al., arXiv 2005.14165, appendix C), which finds it where a few of its words were changed.
This differs from GPT-3 in two ways, and both spare rows. A row is dropped for most of a prompt's
runs, not for a single one. And a run that stands in two prompts belongs to their template, or to a
passage that they share, so it says nothing of either; GPT-3's list left out what stood in more than
10 documents. Otherwise two long prompts that differ in one slot at the end would hold each other.

Both are compared as a reader sees them: without soft hyphens and characters of no width, without
the vowel points that Arabic and Hebrew may leave out, and with Cyrillic and Greek letters that look
like Latin ones, in words that have no others, taken for these.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import ClassVar

import numpy as np

from replaykit.checks.evalsets import EvalItem
from replaykit.checks.hashed_words import Writing, hash_words, runs, writing
from replaykit.data.record import Record
from replaykit.result import Result
from replaykit.text import MARKS, UNSPACED, WORD, normalise, words

REASON = "eval_overlap"  # to drop a row
RUN = 13  # words
COVERAGE = 0.8  # of the runs of a prompt, from which on a row holds it
MOST = 2 / 3  # of the characters that a prompt shares with others, beside its body
ANCHOR = 5  # words by which a row is looked at closely; a prompt of fewer is a whole message
LEAD_IN = 3  # words in front of a prompt in its sentence: "Please tell me ..."
LABELS = 3  # words around a prompt in a message that is nothing else: "Question 3: ... Answer:"
LEAST_BODY = 3  # words that a prompt has for itself, to be known by these alone
SHOWN = 400  # characters of a matching piece that the result has
EXAMPLES = 20  # items that the result has

# Characters that no reader sees: those of category Cf that stand in text, and variation selectors.
# And those that a writer may leave out: Arabic's tatweel, and the points of Arabic and Hebrew.
INVISIBLE = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    "\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e01ef]"
)
# Of phonetic script, which look like "agiycouvwz".
PHONETIC = "ɑɡɪʏᴄᴏᴜᴠᴡᴢ"
# Letters that look like Latin ones, after Unicode's confusables.txt (UTS 39).
LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеіјорсухѕһԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧοανιρυκ" + PHONETIC,
    "ABESIJKMHOPCTYXaeijopcyxshdqwABEZHIKMNOPTYXoavipukagiycouvwz",
)
GREEK_OR_CYRILLIC = re.compile("[\u0370-\u052f]")
NOT_LATIN = re.compile(f"[\u0370-\u052f{PHONETIC}]")
LETTERS = re.compile(r"[^\W\d_]+")
WRITTEN = {sign: f"^{digit}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
WRITTEN |= dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")  # hyphens, en dash, minus
# No space follows these, and NFKC makes them the narrow ones, which end something before a space.
WRITTEN |= {mark: f"{mark} " for mark in "。？！：；，、"}
AS_WRITTEN = str.maketrans(WRITTEN)
# Where a line or sentence ends, or a label in front of one ("Question:", "3)", "**Q.**"); and what
# stands before a line, of an item of a list, a heading, a quotation.
PART = re.compile(r"\n(?:[ \t]*[-+*•·‣▪◦—#>]+[ \t]+)?|(?<=[.?!:)])[*_\"'”’»]*\s+|(?<=。)")
# Marks at the beginning or the end of a word, which writers leave out. "3!" is a number, and a
# star or ">" between spaces a sign of arithmetic.
MARK = re.compile(
    r"(?<![^\s()\[\]{}<>|])(?:[\"'“”‘’«»¿¡]|[*_#>]+(?=[^\s*_#>]))+"
    r"|(?:[.,;:?…\"'“”‘’«»。，、；：？！]|(?<=[^\s*_])[*_]+|(?<!\d)!)+(?![^\s()\[\]{}<>|])"
)
BRACKETS = frozenset("()[]{}<>|")
EDGE = "\0"  # stands where a mark stood
END = "\1"  # stands where a part ends


def visible(text: str) -> str:
    """The text as a reader sees it: without what has no width, and lookalikes as Latin letters.

    >>> visible("cap\\u00adital of P\u0435ru")
    'capital of Peru'
    """
    if text.isascii():
        return text
    text = INVISIBLE.sub("", text)
    if NOT_LATIN.search(text):
        text = LETTERS.sub(_latin, text)
    return text


def _latin(word: re.Match[str]) -> str:
    """A word in Latin letters, if each of its letters is or looks like one."""
    found = word[0].translate(LOOKALIKES)
    return word[0] if GREEK_OR_CYRILLIC.search(found) else found


def parts_of(text: str) -> list[str]:
    """The lines and sentences of a text without case, width, layout, and marks between words; a
    label in front of one is a part of its own.

    >>> parts_of("Q: What is 7 + 5?  Be brief!")
    ['q', 'what is 7 + 5', 'be brief']
    """
    parts: list[list[str]] = [[]]
    for token in _marked(text):
        if token == END:
            parts.append([])
        elif token != EDGE:
            parts[-1].append(token)
    return [" ".join(part) for part in parts if part]


def _marked(text: str) -> list[str]:
    """The words and signs of a text, with an END behind each line and sentence, and an EDGE for
    marks left out.
    """
    shown = unicodedata.normalize("NFKC", visible(text).translate(AS_WRITTEN))
    # The first line may be an item of a list as well.
    shown = PART.sub(f" {END} ", f"\n{shown}\n")
    return normalise(MARK.sub(f" {EDGE} ", shown)).split()


class Tokens:
    """The words and signs of a message in order, and where something may begin or end."""

    def __init__(self, message: str):
        self.tokens: list[str] = []
        self.edges: set[int] = {0}
        """Before which of them, or behind the last, a line, a sentence, a bracket or marks end."""
        self.starts: set[int] = set()
        """Before which of them a sentence begins, or its first words of a lead-in end."""
        ends = {0}
        for token in _marked(message):
            place = len(self.tokens)
            if token == END:
                ends.add(place)
            elif token == EDGE:
                self.edges.add(place)
            else:
                if token in BRACKETS:
                    self.edges |= {place, place + 1}
                self.tokens.append(token)
        self.edges |= ends
        for end in ends:
            self.starts.update(self._after_lead_in(end))
        self.starts |= self.edges

    def _after_lead_in(self, first: int) -> Iterator[int]:
        for place, token in enumerate(self.tokens[first : first + LEAD_IN], first):
            # A number or a sign belongs to what is asked.
            if not token.isalpha():
                return
            yield place + 1


class Text:
    """A conversation as it is looked through: its words and runs are found once for all sets."""

    def __init__(self, messages: Sequence[str]):
        self.messages = messages
        hashes = [word_hashes(message) for message in messages]
        self.sizes = [len(found) for found in hashes]
        """Words of each message."""
        self.words = hashes[0] if len(hashes) == 1 else np.concatenate(hashes)
        self.runs = runs(self.words, RUN)
        self.anchors = runs(self.words, ANCHOR)
        self._tokens: dict[int, Tokens] = {}

    @cached_property
    def whole(self) -> str:
        """The messages, one a line."""
        return "\n".join(self.messages)

    @cached_property
    def parts(self) -> set[str]:
        """The lines and sentences of all messages."""
        return {part for message in self.messages for part in parts_of(message)}

    def tokens(self, place: int) -> Tokens:
        """Those of one message."""
        if place not in self._tokens:
            self._tokens[place] = Tokens(self.messages[place])
        return self._tokens[place]


class Texts:
    """The words of many conversations, one after the other: what can hold no prompt is seen by
    them.
    """

    def __init__(self, conversations: Sequence[Sequence[str]]):
        messages = [_folded(message) for said in conversations for message in said]
        self.words, starts = hash_words("\n".join(messages), words_written())
        lengths = np.fromiter(map(len, messages), dtype=np.int64, count=len(messages))
        ends = np.searchsorted(starts, np.cumsum(lengths + 1))
        self.sizes = np.diff(ends, prepend=0)
        """Words of each message."""
        counts = np.fromiter(map(len, conversations), dtype=np.int64, count=len(conversations))
        self.owners = np.repeat(np.arange(len(counts)), counts)
        """The conversation of each message."""
        self.rows = np.repeat(self.owners, self.sizes)
        """The conversation of each word."""
        self._runs: dict[int, np.ndarray] = {}

    def having(self, n: int, known: Known) -> np.ndarray:
        """The conversations with one of these runs of n words; some more than once."""
        if n not in self._runs:
            self._runs[n] = runs(self.words, n)
        places = known.places(self._runs[n])
        # A run does not reach into the next conversation.
        return self.rows[places[self.rows[places] == self.rows[places + n - 1]]]


class Known:
    """Hashes that are looked for among many."""

    def __init__(self, hashes: np.ndarray):
        self.hashes = np.sort(hashes)
        # A table of the upper bits, 16 times as long as there are hashes: most others miss it.
        bits = max(8, len(hashes).bit_length() + 4)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[self.hashes >> self._shift] = True

    def places(self, among: np.ndarray) -> np.ndarray:
        """Where among these one of the hashes stands."""
        likely = np.flatnonzero(self._table[among >> self._shift])
        if not len(likely):
            return likely
        found = np.searchsorted(self.hashes, among[likely])
        found[found == len(self.hashes)] = 0
        return likely[self.hashes[found] == among[likely]]


class Overlap:
    """The evaluation's prompts, ready to be looked for: 16 bytes for each run of 13 words, and
    three copies of the text.

    A prompt is held by a row in which

    * all its words and signs stand in order, from one edge to another, if it has 5 words or more; a
      shorter one only by a message that is nothing else, but for labels ("Q: ... A:");
    * what it shares with no other prompt, its body, is a message for itself, stands somewhere and
      is of 13 words or more, or stands beside most of the rest, such as a passage with several
      questions;
    * its runs of 13 words stand, in any order and among other text: of each stretch of runs that no
      other prompt has, at least the share ``coverage``, and all where the stretch is of 13 runs or
      fewer, since these may be a single slot of a template.

    Prompts of the same text, or of the same runs, count as one.
    """

    def __init__(self, prompts: Iterable[str], *, n: int = RUN, coverage: float = COVERAGE):
        self.n = n
        self.prompts = list(prompts)
        long: dict[bytes, tuple[int, np.ndarray]] = {}
        self._plain = _Plain(self.prompts)
        for number in self._plain.different:
            found = runs_of(self.prompts[number], n)
            if len(found):
                long.setdefault(found.tobytes(), (number, found))
        self._numbers = [number for number, _ in long.values()]
        self._index([found for _, found in long.values()], coverage)
        self._known = Known(self._hashes)

    def find(self, text: str) -> tuple[str, str] | None:
        """("eval_overlap", the evaluation prompt) for a text that holds one, that which it equals
        or the earliest; otherwise None.
        """
        if not self.prompts:
            return None
        looked = Text([text])
        number = self._plain.equal(looked)
        if number is None:
            held = self.held(looked)
            if not held:
                return None
            number = min(held)
        return REASON, self.prompts[number]

    def candidates(self, texts: Texts) -> list[int]:
        """The conversations that may hold a prompt; no other one holds one."""
        long = texts.having(self.n, self._known)
        return sorted({*long.tolist(), *self._plain.candidates(texts)})

    def held(self, text: Text) -> dict[int, str]:
        """The numbers of all prompts that the text holds, in order, each with a piece that both
        have, the longest where this is known.
        """
        found = dict.fromkeys(self._plain.held(text), "")
        for number in found:
            found[number] = self.prompts[number].strip()
        found_runs = text.runs if self.n == RUN else runs(text.words, self.n)
        places = self._places(found_runs)
        for owner in self._held(places).tolist():
            # Where in the text runs of this prompt stand; the longest piece has the most in a row.
            mine = np.flatnonzero((places >= 0) & (self._owners[self._stretches[places]] == owner))
            longest = max(np.split(mine, np.flatnonzero(np.diff(mine) > 1) + 1), key=len)
            piece = _piece(visible(text.whole), int(longest[0]), int(longest[-1]) + self.n)
            found[self._numbers[owner]] = piece
        return dict(sorted(found.items()))

    def _places(self, runs: np.ndarray) -> np.ndarray:
        """Where in the index each run of a text stands, or -1."""
        if not len(self._hashes) or not len(runs):
            return np.zeros(0, dtype=np.int64)
        places = np.searchsorted(self._hashes, runs)
        places[places == len(self._hashes)] = 0
        return np.where(self._hashes[places] == runs, places, -1)

    def _held(self, places: np.ndarray) -> np.ndarray:
        """The prompts that have enough of their runs among these, in order."""
        there = places[places >= 0]
        if not len(there):
            return there
        stretches, counts = np.unique(self._stretches[np.unique(there)], return_counts=True)
        enough = stretches[counts >= self._needed[stretches]]
        owners, held = np.unique(self._owners[enough], return_counts=True)
        # Held is a prompt of which every stretch is there.
        return owners[held == self._stretches_of[owners]]

    def _index(self, prompts: list[np.ndarray], coverage: float) -> None:
        """The runs that only one prompt has, sorted by hash, and the stretch of each run. Of each
        stretch the prompt that owns it, and how many of its runs are needed.
        """
        # A run may stand twice in one prompt: its first place counts.
        first = [np.unique(found, return_index=True) for found in prompts]
        none = np.zeros(0, dtype=np.int64)
        hashes = np.concatenate([none.astype(np.uint64), *(found for found, _ in first)])
        places = np.concatenate([none, *(places for _, places in first)])
        owners = np.repeat(np.arange(len(first)), [len(found) for found, _ in first])
        # Only runs of a single prompt count: others are of a template or of a shared passage.
        _, which, times = np.unique(hashes, return_index=True, return_counts=True)
        own = which[times == 1]
        own = own[np.lexsort((places[own], owners[own]))]
        hashes = hashes[own]
        places = places[own]
        owners = owners[own]
        # A stretch is of own runs that follow one another in a prompt.
        follows = (np.diff(owners, prepend=-1) == 0) & (np.diff(places, prepend=-1) == 1)
        stretches = np.cumsum(~follows) - 1
        self._owners = owners[~follows]
        self._stretches_of = np.bincount(self._owners, minlength=len(prompts))
        sizes = np.bincount(stretches, minlength=len(self._owners))
        self._needed = np.where(sizes <= self.n, sizes, np.ceil(coverage * sizes))
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._stretches = stretches[order]


class _Plain:
    """Prompts by their lines and sentences."""

    def __init__(self, prompts: Sequence[str]):
        self.different: list[int] = []
        """The first prompt of each text."""
        self._wholes: dict[str, int] = {}
        self._bodies: dict[str, int] = {}
        self._rest: dict[int, frozenset[str]] = {}  # by prompt: the parts that others have too
        parts: dict[int, list[str]] = {}
        for number, prompt in enumerate(prompts):
            found = parts_of(prompt) or [normalise(prompt)]
            whole = _joined(found)
            if whole and whole not in self._wholes:
                self._wholes[whole] = number
                self.different.append(number)
                parts[number] = found
        shared = Counter(part for found in parts.values() for part in set(found))
        for number, found in parts.items():
            self._add_body(number, found, shared)
        keys = [*self._wholes, *self._bodies]
        # By the first tokens of prompts and bodies, how many tokens those have that begin so.
        self._lengths: dict[str, set[int]] = {}
        # By the first token alone, how many tokens such a beginning has.
        self._heads: dict[str, set[int]] = {}
        for key in keys:
            tokens = key.split()
            head = tokens[:ANCHOR]
            self._heads.setdefault(head[0], set()).add(len(head))
            self._lengths.setdefault(_joined(head), set()).add(len(tokens))
        # A body of fewer words has no anchor of its own in its message.
        self._any_message = any(_size(body) < ANCHOR for body in self._bodies)
        # Messages of so many words may be a short prompt with its labels.
        sizes = [_size(key) for key in keys]
        self._short = max((n for n in sizes if n < ANCHOR), default=-LABELS - 1) + LABELS
        self._anchors = np.unique(np.array(list(self._all_anchors(keys)), dtype=np.uint64))
        self._known = Known(self._anchors)

    def _add_body(self, number: int, parts: list[str], shared: Counter[str]) -> None:
        """What no other prompt has of this one, if it is one piece and not all of it."""
        own = [place for place, part in enumerate(parts) if shared[part] == 1]
        if not own or len(own) == len(parts) or own[-1] - own[0] >= len(own):
            return
        body = _joined(parts[own[0] : own[-1] + 1])
        self._bodies[body] = number
        self._rest[number] = frozenset(part for part in parts if shared[part] > 1)

    def _all_anchors(self, keys: Iterable[str]) -> Iterator[int]:
        for key in keys:
            yield from runs(word_hashes(key), ANCHOR)[:1].tolist()
        # A body may be too short; the longest part of the rest stands beside it.
        for body, number in self._bodies.items():
            if _size(body) < ANCHOR:
                longest = max(self._rest[number], key=len)
                yield from runs(word_hashes(longest), ANCHOR)[:1].tolist()

    def equal(self, text: Text) -> int | None:
        """The prompt that a message equals but for marks, or None."""
        for place in self._messages(text):
            message = text.messages[place]
            number = self._wholes.get(_joined(text.tokens(place).tokens) or normalise(message))
            if number is not None:
                return number
        return None

    def held(self, text: Text) -> list[int]:
        """The prompts that the text holds by their lines and sentences."""
        found: set[int] = set()
        for place in self._messages(text):
            size = text.sizes[place]
            said = text.tokens(place)
            whole = _joined(said.tokens)
            for key, at_edge in self._keys_in(said):
                found.update(self._by_whole(key, size, at_edge, key == whole))
                if at_edge:
                    found.update(self._by_body(key, size, text.parts))
        equal = self.equal(text)
        if equal is not None:
            found.add(equal)
        return sorted(found)

    def candidates(self, texts: Texts) -> list[int]:
        """The conversations with messages that may hold a prompt."""
        short = texts.owners[texts.sizes <= self._short]
        return [*short.tolist(), *texts.having(ANCHOR, self._known).tolist()]

    def _messages(self, text: Text) -> list[int]:
        """Which messages of a text may hold a prompt or a body: the short ones, and those with an
        anchor.
        """
        found = {place for place, size in enumerate(text.sizes) if size <= self._short}
        places = self._known.places(text.anchors)
        if len(places):
            ends = np.cumsum(text.sizes)
            found.update(np.searchsorted(ends, places, side="right").tolist())
        if found and self._any_message:
            return list(range(len(text.messages)))
        return sorted(found)

    def _keys_in(self, said: Tokens) -> Iterator[tuple[str, bool]]:
        """The prompts and bodies that stand in a message and end at an edge, and whether they begin
        at one too, and not behind a lead-in.
        """
        tokens = said.tokens
        for start in sorted(said.starts):
            if start == len(tokens):
                continue
            for size in self._heads.get(tokens[start], ()):
                for length in self._lengths.get(_joined(tokens[start : start + size]), ()):
                    if start + length not in said.edges:
                        continue
                    key = _joined(tokens[start : start + length])
                    if key in self._wholes or key in self._bodies:
                        yield key, start in said.edges

    def _by_whole(self, key: str, size: int, at_edge: bool, is_all: bool) -> Iterator[int]:
        own = _size(key)
        labelled = at_edge and own >= LEAST_BODY and size <= own + LABELS - 1
        if key in self._wholes and (is_all or own >= ANCHOR or labelled):
            yield self._wholes[key]

    def _by_body(self, key: str, size: int, standing: set[str]) -> Iterator[int]:
        number = self._bodies.get(key)
        if number is None:
            return
        own = _size(key)
        alone = own >= LEAST_BODY and size <= own + LABELS
        rest = self._rest[number]
        there = sum(map(len, rest & standing))
        if alone or own >= RUN or there >= MOST * sum(map(len, rest)):
            yield number


def _joined(parts: Sequence[str]) -> str:
    return " ".join(parts)


def _size(text: str) -> int:
    return len(words(text))


@dataclass(frozen=True)
class Hit:
    """The evaluation set and the item that a row holds, and the longest piece of text that both
    have.
    """

    reason: ClassVar[str] = REASON
    evalset: str
    item: str
    match: str


class HeldSet(Result):
    """An evaluation set that was kept apart."""

    items: int
    items_held: int
    """Items that a row held."""
    rows: int
    """Rows that held one of them; a row that holds items of two sets counts for both."""


class HeldItem(Result):
    """An item of an evaluation set that rows held."""

    set: str
    item: str
    rows: int
    first_row: str | None
    """The id of the first of them."""
    match: str
    """The text that both have."""


class Decontaminated(Result):
    """What was kept apart from the evaluation sets."""

    rows: int
    """Rows that were looked at."""
    removed: int
    sets: dict[str, HeldSet]
    items: list[HeldItem]
    """The items that most rows held."""


class Decontamination:
    """Rows against evaluation sets: which rows hold an item, and which items are held by how many
    rows.

    The text of a row is all of its conversation, with thoughts. What is held ``Overlap`` says. Each
    set is looked through for itself, so that two that share items do not hide each
    other's; of equal items within a set the first is named. Memory is that of the sets: of the rows
    only counts and the first one that held each item are kept.
    """

    def __init__(self, evalsets: Mapping[str, Iterable[EvalItem]]):
        self._items = {name: list(items) for name, items in evalsets.items()}
        self._prompts = {
            name: Overlap(item.prompt for item in items) for name, items in self._items.items()
        }
        self._rows = 0
        self._removed = 0
        self._rows_of_set: Counter[str] = Counter()
        self._rows_of_item: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], tuple[str, Hit]] = {}

    def check(self, record: Record) -> Hit | None:
        """What the row holds, of several the first item of the first set; all are counted."""
        return self.count(record.id, self.hits(record))

    def hits(self, record: Record) -> list[Hit]:
        """All items that a record holds, in the order of the sets and items; counts nothing."""
        return self.hits_of([record])[0]

    def hits_of(self, records: Sequence[Record]) -> list[list[Hit]]:
        """``hits`` of each record: to look through many at once takes less time."""
        conversations = [_said(record) for record in records]
        texts = Texts(conversations)
        looked: dict[int, Text] = {}
        found: list[list[Hit]] = [[] for _ in records]
        for name, overlap in self._prompts.items():
            for row in overlap.candidates(texts):
                if row not in looked:
                    looked[row] = Text(conversations[row])
                for number, piece in overlap.held(looked[row]).items():
                    found[row].append(Hit(name, self._items[name][number].id, piece))
        return found

    def count(self, row: str, hits: Sequence[Hit]) -> Hit | None:
        """Counts the row of that id, which holds those items; the first of them, or None."""
        self._rows += 1
        if not hits:
            return None
        self._removed += 1
        self._rows_of_set.update({hit.evalset for hit in hits})
        items = {(hit.evalset, hit.item): hit for hit in reversed(hits)}
        self._rows_of_item.update(items.keys())
        for item in items.keys() - self._first.keys():
            self._first[item] = row, items[item]
        return hits[0]

    def result(self) -> Decontaminated:
        """How many rows were looked at and removed, each set, and the items most often held."""
        held = Counter(name for name, _ in self._rows_of_item)
        most = sorted(self._rows_of_item.items(), key=lambda item: -item[1])
        sets = {
            name: HeldSet(
                items=len({item.id for item in items}),
                items_held=held[name],
                rows=self._rows_of_set[name],
            )
            for name, items in self._items.items()
        }
        return Decontaminated(
            rows=self._rows,
            removed=self._removed,
            sets=sets,
            items=[self._held_item(name, item, rows) for (name, item), rows in most[:EXAMPLES]],
        )

    def _held_item(self, name: str, item: str, rows: int) -> HeldItem:
        row, hit = self._first[name, item]
        return HeldItem(set=name, item=item, rows=rows, first_row=row, match=hit.match[:SHOWN])


def _said(record: Record) -> list[str]:
    """What is looked through of a record: all that is said in it, with thoughts."""
    messages = []
    for message in record.messages:
        messages.append(message["content"])
        if "reasoning_content" in message:
            messages.append(message["reasoning_content"])
    return messages


def runs_of(text: str, n: int) -> np.ndarray:
    """The runs of n words in order, as 64-bit hashes."""
    return runs(word_hashes(text), n)


def word_hashes(text: str) -> np.ndarray:
    """The hash of each word, in order, as a reader sees it: those of ``text.words``."""
    return hash_words(_folded(text), words_written())[0]


def words_written() -> Writing:
    """What ``text.WORD`` takes for a word."""
    return writing(rf"[\w{MARKS}]", f"[{UNSPACED}]")


def _folded(text: str) -> str:
    """The text as a reader sees it, without case and width."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", visible(text)).casefold()


def _piece(text: str, start: int, end: int) -> str:
    """The words of a text from the one number to before the other, as they are written, if this can
    be told.
    """
    wide = unicodedata.normalize("NFKC", text)
    folded = wide.casefold()
    found = list(islice(WORD.finditer(folded), start, end))
    # Folding makes no text shorter, so where the length is the same each letter kept its place.
    source = wide if len(wide) == len(folded) else folded
    return source[found[0].start() : found[-1].end()]
