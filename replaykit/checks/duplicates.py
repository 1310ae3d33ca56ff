"""Rows that stood before, word for word or nearly so: found in one pass over any number of rows,
in bounded memory.

    with Repeats(0.8, executor=LocalExecutor()) as repeats:
        # A target first, then a pool that must not repeat it or itself.
        for row, twin in repeats.find_all("target", ((row, exchange(row)) for row in target)): ...
        for row, twin in repeats.find_all("pool", ((row, exchange(row)) for row in pool)): ...
        # twin: None, or Twin("near_target_duplicate", source="target", row=17, text="What is ...")

    twins = Twins(0.9, read=lambda row: questions[row]["text"], likeness=QUESTIONS)
    twins.find(0, "What is 2 + 2?")     ->  None, and remembered
    twins.find(1, "what is  2+2 ?")     ->  ("duplicate", 0)

A row repeats another where what is asked and what is answered are both alike: several answers to
one question are no repetition. Rows are compared as they are written, by ``kept_form``: what
differs in case, in superscripts or in how its lines are indented says something else ("10²" and
"102"). And where most of two texts is the same, such as a passage, but what differs is not alike,
such as the question on it, they are no near duplicates. Where questions alone are compared, because
they have no answer yet, ``normal_form`` passes over all of that.

Candidates come from MinHash signatures cut into bands (Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", 3.3 and 3.4). Each candidate is read back and compared exactly, so no row is
dropped that is less similar than the threshold. Unlike the indexes of datasketch and rensa, the
memory does not grow: a table of fixed size holds row numbers, and in a full bucket the oldest row
makes room. benchmarks/results/duplicates.md compares it with datasketch.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from replaykit.data.record import Message, Record
from replaykit.data.spool import Spool
from replaykit.mixing import ODD
from replaykit.parallel import Executor, LocalExecutor

SHINGLE = 5  # characters
PERMUTATIONS = 128  # of a signature, at most
RECALL = 0.99  # the chance that a pair just as similar as the threshold shares a band
WAYS = 8  # slots of a bucket: one line of 64 bytes in the processor's cache
# The low half of a slot is a row number plus 1, the high half the tag of its hash.
ROW = np.uint64(2**32 - 1)
POWERS = [np.uint64(pow(ODD, SHINGLE - 1 - place, 2**64)) for place in range(SHINGLE)]
# Shingles that are hashed at a time: their 1 MiB of numbers stays in the processor's cache.
PIECE = 1 << 17
BATCH = 256  # rows of a job: about 20 milliseconds
# The largest whose words of 5 letters have numbers of 64 bits: 7131**5 < 2**64 < 7132**5.
ALPHABET = 7131
ALPHABET_POWERS = [np.uint64(ALPHABET ** (SHINGLE - 1 - place)) for place in range(SHINGLE)]
FEW = 100  # shingles: up to here a set of them takes less time than their numbers
CACHE = 1 << 26  # bytes of texts that are kept in case that their row is compared again
OBJECT = 200  # bytes that Python needs for a text beside its letters

PARTS = 2  # texts of a row at most
SIGN = re.compile(r"[^\w\s]")
LEAST = 0.5  # similarity of what differs in two near duplicates
# A line or a sentence ends behind these; of the first ones where a space follows.
ENDS = (". ", "? ", "! ", "。", "？", "！")
LAYOUT = re.compile(r"\s\s|[^\S ]")  # what a text of one plain line has not
# Between two words: not the indentation of a line, and not several spaces in a quotation.
INNER_SPACE = re.compile(r"(?<=\S)[^\S\n](?=\S)")
# What stands in quotation marks on one line, such as a string of a program.
QUOTED = re.compile(r"""(?<!\w)(["'`])[^"'`\n]*\1(?!\w)""")
SPACES = re.compile(r"\s+")
SIGNS = [(sign, f" {sign} ") for sign in SIGN.findall("".join(map(chr, range(128))))]

T = TypeVar("T")
Found = tuple[str, int]  # the reason, the earlier row
Text = str | tuple[str, ...]
"""A row to compare: a text, or several, such as question and answer, that must all be alike."""


# --- what is compared -----------------------------------------------------------------------------


def exchange(record: Record) -> tuple[str, str]:
    """What a record asks, with its system message and tools, and what it answers: of all turns.

    A plain text asks nothing. An answer that carries no loss is a part of what is asked: a row that
    teaches an answer does not repeat one that only shows it.
    """
    asked: list[str] = []
    answered: list[str] = []
    for message in record.messages:
        if message["role"] in ("assistant", "text") and message.get("weight") != 0:
            answered.append(_said(message))
        elif message["role"] == "assistant":
            asked.append(f"shown: {_said(message)}")
        else:
            # The role stands before it: a system message is not a question.
            asked.append(f"{message['role']}: {message['content']}")
    if record.tools:
        asked.append(json.dumps(record.tools, ensure_ascii=False, sort_keys=True, default=dict))
    if len(asked) == 1:
        asked[0] = asked[0].removeprefix("user: ")
    return "\n".join(asked), "\n".join(answered)


def _said(message: Message) -> str:
    """An answer with its thought and its calls."""
    parts = [message.get("reasoning_content", ""), message["content"]]
    calls = message.get("tool_calls")
    if calls:
        functions = [call["function"] for call in calls]
        parts.append(json.dumps(functions, ensure_ascii=False, sort_keys=True, default=dict))
    return "\n".join(part for part in parts if part)


def kept_form(text: str) -> str:
    """The text but for what nobody reads: the ends of lines, blank lines, and how many spaces
    stand between two words outside quotation marks.

    Case, superscripts, signs and the indentation of each line stay. Letters are composed (NFC).

    >>> kept_form("for i in x:\\r\\n    print( i )  \\n\\n")
    'for i in x:\\n    print( i )'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if "\t" in text:
        text = text.expandtabs(8)
    if _is_plain(text):
        return text.strip()
    lines = [_kept_line(line) for line in text.splitlines()]
    lines = [line for line in lines if line]
    # The indentation of a single line says nothing.
    return "\n".join(lines) if len(lines) > 1 else "".join(lines).strip()


def _is_plain(text: str) -> bool:
    """Whether there is no white space but single spaces. To search for it would take longer."""
    if "  " in text:
        return False
    return (text.isascii() and text.isprintable()) or not LAYOUT.search(text)


def _kept_line(line: str) -> str:
    if _is_plain(line):
        return line.rstrip()
    said = line.strip()
    if not said:
        return ""
    indent = len(line) - len(line.lstrip())
    kept = [" " * indent]
    end = 0
    for quoted in QUOTED.finditer(said):
        kept += [SPACES.sub(" ", said[end : quoted.start()]), quoted[0]]
        end = quoted.end()
    return "".join([*kept, SPACES.sub(" ", said[end:])])


def normal_form(text: str) -> str:
    """What ``text.normalise`` makes of it, in half the time for long texts: few signs differ, and
    each is put apart.
    """
    if text.isascii():
        text = text.lower()
        for sign, apart in SIGNS:
            if sign in text:
                text = text.replace(sign, apart)
    else:
        text = unicodedata.normalize("NFKC", text).casefold()
        for sign in SIGN.findall("".join(set(text))):
            text = text.replace(sign, f" {sign} ")
    return " ".join(text.split())


def says_other(one: str, other: str) -> bool:
    """Whether two texts that are much the same say different things all the same, as far as that
    can be seen: where they differ in case, superscripts or indentation alone, or where the lines
    and sentences that only one of them has are less than half alike. Both are kept forms.

    >>> says_other("It rained. Who won?", "It rained. When was it?")
    True
    >>> says_other("It rained. Who won on Sunday?", "It rained. Who won on Sundays?")
    False
    """
    mine = _sentences(one)
    others = _sentences(other)
    a = "\n".join(sentence for sentence in mine if sentence not in others)
    b = "\n".join(sentence for sentence in others if sentence not in mine)
    if _letters(a) == _letters(b):
        return INNER_SPACE.sub("", one) != INNER_SPACE.sub("", other)
    if not a or not b:
        # The longer one asks or says something more.
        return True
    own = shingles(a)
    if _differs_in_size(len(own), b, LEAST):
        return True
    theirs = shingles(b)
    return len(own & theirs) < LEAST * len(own | theirs)


def _letters(text: str) -> str:
    """The text up to case, width and white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return "".join(text.casefold().split())


@lru_cache(maxsize=4)
def _sentences(text: str) -> dict[str, None]:
    """The lines and sentences of a kept form, in order, each once. The last texts are remembered:
    a row is compared with several.
    """
    for end in ENDS:
        text = text.replace(end, f"{end}\n")
    parts = dict.fromkeys(map(str.strip, text.split("\n")))
    parts.pop("", None)
    return parts


def _never(one: str, other: str) -> bool:
    return False


@dataclass(frozen=True)
class Likeness:
    """How texts are compared: ``form`` is what is compared of a text, and texts that are similar
    enough are no near duplicates where ``other`` says so of their forms.
    """

    form: Callable[[str], str]
    other: Callable[[str, str], bool]


EXCHANGES = Likeness(kept_form, says_other)
"""As they are written: rows that are trained on."""
QUESTIONS = Likeness(normal_form, _never)
"""Up to case, width and spacing: questions that are not answered yet."""


# --- repetitions ----------------------------------------------------------------------------------


class Twins:
    """Remembers the rows that are new, and names the earlier row that a row is like.

    A row is one text or several, always as many. ``threshold`` is the Jaccard similarity of the two
    sets of 5-character shingles from which on each text of a row must be like that of another for a
    near duplicate, or None for exact duplicates only. ``read`` gives the texts of a row that was
    remembered. Row numbers are below 2**32 - 1 and differ;
    the same rows in the same order give the same verdicts in any process.

    A near duplicate of one text just at the threshold is found with probability 0.99, a closer one
    more surely (below a threshold of 0.035: less), until the ``slots`` fill and new rows push out
    the oldest. The default takes 192 MiB; at a threshold of 0.9 the oldest rows' near duplicates
    were found to 0.997 after 1 million rows and to 0.45 after 2 million. An exact duplicate is
    missed only if 8 later rows fell into its bucket: one in a million at 1 million rows, one in a
    thousand at 3 million; without a threshold, at three times as many rows.
    """

    def __init__(
        self,
        threshold: float | None,
        read: Callable[[int], Text],
        *,
        slots: int = 3 * 2**23,
        likeness: Likeness = EXCHANGES,
    ):
        self.threshold = threshold
        self.likeness = likeness
        self.bands = 0
        self.rows = 0  # of a band
        if threshold is not None:
            self.bands, self.rows = bands_for(threshold)
        self._table = Table(slots, self.bands)
        self._read = read
        self._shingles = Shingles(self._read_part)

    def find(self, row: int, text: Text) -> Found | None:
        """("duplicate", earlier row) if the texts have the same form, ("near_duplicate", earlier
        row) if each is at least as similar as the threshold; otherwise None, and the row is
        remembered.

        Similar texts that say something else, as the ``likeness`` has it, are no near duplicates.
        """
        normals, hashes = prepare([text], self.bands, self.rows, self.likeness.form)
        return self.find_prepared(row, normals[0], hashes[0])

    def find_prepared(self, row: int, normal: tuple[str, ...], hashes: np.ndarray) -> Found | None:
        """``find`` for a text whose form and hashes ``prepare`` has made."""
        place = self._table.place(hashes)
        same, alike = self._table.get(place)
        for earlier in same:
            if all(self._form(earlier, part) == text for part, text in enumerate(normal)):
                return "duplicate", earlier
        own = [Shingled(form) for form in normal]
        if alike:
            shared = Counter(alike)
            # Those that share the most bands are read first: they are the most similar ones.
            for earlier in sorted(shared, key=lambda row: (-shared[row], row)):
                if self._alike(own, earlier):
                    return "near_duplicate", earlier
        for part, text in enumerate(own):
            self._shingles.keep(PARTS * row + part, text)
        self._table.put(place, row)
        return None

    def _alike(self, own: Sequence[Shingled], earlier: int) -> bool:
        """Whether each text of a row is like that of an earlier one."""
        least = self.threshold or 1.0
        # Answers are shorter, and differ more often, so the last text is compared first.
        for part in reversed(range(len(own))):
            mine = own[part]
            other = self._shingles.of(PARTS * earlier + part)
            if mine.form == other.form:
                continue
            if self._shingles.similar(mine, other, least) < least:
                return False
            if self.likeness.other(mine.form, other.form):
                return False
        return True

    def _form(self, row: int, part: int) -> str:
        return self._shingles.of(PARTS * row + part).form

    def _read_part(self, number: int) -> str:
        row, part = divmod(number, PARTS)
        return self.likeness.form(_parts(self._read(row))[part])


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


@dataclass(frozen=True)
class Twin:
    """Why a row is dropped: "duplicate" or "near_duplicate" of a row of its own source,
    "target_duplicate" or "near_target_duplicate" of one of the source "target"; the row, counted
    from 0 in its source, and what it asks.
    """

    reason: str
    source: str
    row: int
    text: str


class Repeats:
    """Rows of several sources, one source after the other: what repeats a row of its own source or
    of one before.

    The texts are written to a temporary file (in ``folder``, else where the system has them), to be
    read back. Memory is that of ``Twins``, 8 bytes a row, and the results that the ``executor`` has
    ahead. The executor, by default this process alone, makes the signatures in jobs of ``batch``
    rows; the verdicts are the same for any executor and batch. The caller closes the executor. The
    other arguments are those of ``Twins``. ``close``, or a ``with`` block, deletes the file.
    """

    def __init__(
        self,
        threshold: float | None,
        *,
        slots: int = 3 * 2**23,
        executor: Executor | None = None,
        batch: int = BATCH,
        folder: str | Path | None = None,
        likeness: Likeness = EXCHANGES,
    ):
        if batch < 1:
            raise ValueError(f"batch: {batch} is not a number of rows of at least 1")
        self._texts = _Texts(folder)
        self._twins = Twins(threshold, self._texts.read, slots=slots, likeness=likeness)
        self._executor = executor or LocalExecutor(1)
        self._batch = batch
        self._names: list[str] = []
        self._starts: list[int] = []

    def __enter__(self) -> Repeats:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._texts.close()

    def find_all(
        self, source: str, rows: Iterable[tuple[T, Text]]
    ) -> Iterator[tuple[T, Twin | None]]:
        """Each row, whatever it is, with the earlier row that its texts repeat, or None: then it is
        remembered.

        The rows of a source are all taken before the next source begins; a source comes once.
        """
        self.begin(source)
        for (item, text), normal, hashes in self._prepared(iter(rows)):
            yield item, self.find(text, normal, hashes)

    def begin(self, source: str) -> None:
        """The rows that ``find`` is asked for from now on are of this source."""
        if source in self._names:
            raise ValueError(f"the rows of '{source}' have come already")
        self._names.append(source)
        self._starts.append(len(self._texts))

    def find(self, text: Text, forms: tuple[str, ...], hashes: np.ndarray) -> Twin | None:
        """``find_all`` for the next row, of which ``work`` made the forms and hashes."""
        number = len(self._texts)
        self._texts.append(text)
        found = self._twins.find_prepared(number, forms, hashes)
        return None if found is None else self._twin(self._names[-1], *found)

    def _prepared(
        self, rows: Iterator[tuple[T, Text]]
    ) -> Iterator[tuple[tuple[T, Text], tuple[str, ...], np.ndarray]]:
        """Each row with its texts' forms and its hashes, in order."""
        groups = deque[list[tuple[T, Text]]]()  # whose results have not been given yet

        def jobs() -> Iterator[list[Text]]:
            while group := list(islice(rows, self._batch)):
                groups.append(group)
                yield [text for _, text in group]

        work = self.work()
        for normals, hashes in self._executor.map(work, jobs()):
            yield from zip(groups.popleft(), normals, hashes, strict=True)

    def work(self) -> Callable[[list[Text]], tuple[list[tuple[str, ...]], np.ndarray]]:
        """What makes the forms and hashes of rows, in any process."""
        twins = self._twins
        return partial(prepare, bands=twins.bands, size=twins.rows, form=twins.likeness.form)

    def _twin(self, source: str, reason: str, number: int) -> Twin:
        # A source without rows begins where the next one does, so the last of these has the row.
        place = bisect_right(self._starts, number) - 1
        name = self._names[place]
        if name != source:
            reason = reason.replace("duplicate", f"{name}_duplicate")
        parts = _parts(self._texts.read(number))
        return Twin(reason, name, number - self._starts[place], parts[0] or parts[-1])


class _Texts:
    """The texts of rows in a temporary file, by the rows' numbers from 0."""

    def __init__(self, folder: str | Path | None):
        self._spool = Spool(folder)

    def __len__(self) -> int:
        return len(self._spool)

    def append(self, text: Text) -> None:
        # No text of UTF-8 has the byte 255, so it stands between the texts of a row.
        parts = (part.encode("utf-8", "surrogatepass") for part in _parts(text))
        self._spool.append(b"\xff".join(parts))

    def read(self, number: int) -> tuple[str, ...]:
        parts = self._spool[number].split(b"\xff")
        return tuple(part.decode("utf-8", "surrogatepass") for part in parts)

    def close(self) -> None:
        self._spool.close()


@dataclass(frozen=True)
class Place:
    """The buckets of a row's hashes."""

    tags: np.ndarray
    """uint64 [1 + others]: the high halves of the hashes."""
    buckets: np.ndarray
    """uint64 [1 + others]"""
    slots: np.ndarray
    """uint64 [1 + others, 8]: what stands in the buckets."""


class Table:
    """Row numbers under 64-bit hashes, in buckets of 8 slots where the least row number gives way.

    A third of the slots is for the first hash of a row, so that the others cannot push it out;
    without others, all are.
    """

    def __init__(self, slots: int, others: int):
        first = max(1, slots // WAYS)
        rest = 0
        if others:
            first = max(1, slots // WAYS // 3)
            rest = max(1, slots // WAYS - first)
        self._sizes = np.array([first] + [rest] * others, dtype=np.uint64)
        self._starts = np.array([0] + [first] * others, dtype=np.uint64)
        self._slots = _zeros((first + rest) * WAYS).reshape(-1, WAYS)

    def place(self, hashes: np.ndarray) -> Place:
        """Where hashes belong, [1 + others]. It is true until the next ``put``."""
        buckets = hashes % self._sizes + self._starts
        return Place(hashes & ~ROW, buckets, self._slots[buckets])

    def get(self, place: Place) -> tuple[list[int], list[int]]:
        """The rows under the first hash, and those under the others, once for each that they
        share.
        """
        hits = (place.slots ^ place.tags[:, None]) <= ROW  # the same tag, perhaps of an empty slot
        if not hits.any():
            return [], []
        rows = (place.slots & ROW).astype(np.int64) - 1
        same = rows[0][hits[0]].tolist()
        alike = rows[1:][hits[1:]].tolist()
        return [row for row in same if row >= 0], [row for row in alike if row >= 0]

    def put(self, place: Place, row: int) -> None:
        # An empty slot has row number 0, so it is taken before any row makes room.
        oldest = (place.slots & ROW).argmin(axis=1)
        self._slots[place.buckets, oldest] = place.tags | np.uint64(row + 1)


def _zeros(count: int) -> np.ndarray:
    """So many zeros of 64 bits, in pages of 2 MiB where Linux has them. A table is written all over
    from its first rows on, and in pages of 4 KiB half a second would go to their first use.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(count, dtype=np.uint64)
    memory = mmap.mmap(-1, 8 * count)
    with suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint64)


def bands_for(threshold: float) -> tuple[int, int]:
    """How a signature is cut: so many bands of so many rows.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s**r)**b. Of
    the cuts that find 0.99 at the threshold this is the one with the most rows to a band, which
    brings the fewest other pairs to compare.

    >>> bands_for(0.9)
    (12, 10)
    """
    cuts = [(PERMUTATIONS // rows, rows) for rows in range(1, PERMUTATIONS + 1)]
    good = [(bands, rows) for bands, rows in cuts if 1 - (1 - threshold**rows) ** bands >= RECALL]
    return good[-1] if good else cuts[0]


class Shingled:
    """A text in its form, and its different shingles once they were needed: of a short one as a
    set, of a long one as numbers, None where it has more letters than there are digits.
    """

    def __init__(self, form: str):
        self.form = form
        self.is_short = len(form) <= FEW
        self.is_kept = False
        self.numbered = False
        self.numbers: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        return len(self.form) + OBJECT + (0 if self.numbers is None else self.numbers.nbytes)

    @cached_property
    def shingles(self) -> set[str]:
        return shingles(self.form)


class Shingles:
    """Texts as sorted numbers, one for each different shingle and no number for two: what is
    compared is exact.

    A shingle is a number of 5 digits to the base 7,131, and a letter's digit is when it was first
    seen. In the rare case of more letters than digits the shingles themselves are compared. The
    texts that were compared last are kept with their numbers, in 64 MiB.
    """

    def __init__(self, read: Callable[[int], str]):
        self._read = read
        self._digits = np.zeros(0x110000, dtype=np.uint16)  # of each letter; 0 where not seen yet
        self._free = 1
        self._kept: OrderedDict[int, Shingled] = OrderedDict()
        self._bytes = 0

    def of(self, row: int) -> Shingled:
        """A row's text."""
        found = self._kept.get(row)
        if found is None:
            found = Shingled(self._read(row))
            self.keep(row, found)
        else:
            self._kept.move_to_end(row)
        return found

    def keep(self, row: int, text: Shingled) -> None:
        """Keeps a text that then need not be read again, with its numbers where it has them. A set
        would take too much memory.
        """
        text.__dict__.pop("shingles", None)
        text.is_kept = True
        self._kept[row] = text
        self._bytes += text.bytes
        self._forget()

    def _forget(self) -> None:
        while self._bytes > CACHE:
            _, oldest = self._kept.popitem(last=False)
            oldest.is_kept = False
            self._bytes -= oldest.bytes

    def _numbers(self, normal: str) -> np.ndarray | None:
        letters = np.frombuffer(normal.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        digits = self._digits[letters]
        if not digits.all():
            new = np.unique(letters[digits == 0])[: ALPHABET - self._free]
            self._digits[new] = np.arange(self._free, self._free + len(new))
            self._free += len(new)
            digits = self._digits[letters]
            if not digits.all():
                return None
        if len(digits) < SHINGLE:
            digits = np.pad(digits, (0, SHINGLE - len(digits)))
        numbers = _windows(digits.astype(np.uint64), ALPHABET_POWERS)
        numbers.sort()
        return numbers[np.concatenate([[True], numbers[1:] != numbers[:-1]])]

    def similar(self, one: Shingled, other: Shingled, least: float) -> float:
        """The Jaccard similarity of the two sets, or 0 if it is surely less than ``least``."""
        size = len(one.shingles) if one.is_short else self._size(one)
        # No two sets are more similar than their sizes are.
        if size and _differs_in_size(size, other.form, least):
            return 0.0
        if not one.is_short and size and self._size(other):
            assert one.numbers is not None
            assert other.numbers is not None
            return _similarity(one.numbers, other.numbers)
        theirs = shingles(other.form)
        return len(one.shingles & theirs) / len(one.shingles | theirs)

    def _size(self, text: Shingled) -> int:
        """How many different shingles a text has, 0 where it has more letters than digits."""
        if not text.numbered:
            before = text.bytes
            text.numbers = self._numbers(text.form)
            text.numbered = True
            if text.is_kept:
                self._bytes += text.bytes - before
                self._forget()
        return 0 if text.numbers is None else len(text.numbers)


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two sorted sets."""
    # In both sets each number stands once, so one that follows itself is in both.
    merged = np.concatenate([one, other])
    merged.sort(kind="stable")  # which merges two sorted runs
    both = int(np.count_nonzero(merged[1:] == merged[:-1]))
    return both / (len(merged) - both)


def _differs_in_size(size: int, other: str, least: float) -> bool:
    """Whether of ``size`` different shingles and those of the other text the fewer are surely less
    than this share of the more. To count the other's takes longer.
    """
    if max(1, len(other) - SHINGLE + 1) / size < least:
        return True
    # Where a beginning has too many of them already, the whole has.
    enough = int(size / least) + 1 if least else FEW + 1
    if enough > FEW or len(other) < enough + SHINGLE:
        return False
    return size / len(shingles(other[: enough + enough // 4 + 2 * SHINGLE])) < least


def shingles(normal: str) -> set[str]:
    """Every run of 5 characters; a shorter text is its own one."""
    return {normal[start : start + SHINGLE] for start in range(max(1, len(normal) - SHINGLE + 1))}


# --- signatures -----------------------------------------------------------------------------------


def prepare(
    texts: list[Text], bands: int, size: int, form: Callable[[str], str]
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The forms of each row's texts, and of each row 64 bits of the whole and 64 of each band of
    its signature, [rows, 1 + bands].

    They are the same in every process.
    """
    normals = [tuple(form(part) for part in _parts(text)) for text in texts]
    hashes = np.empty((len(normals), 1 + bands), dtype=np.uint64)
    whole = (
        hashlib.blake2b("\0".join(normal).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for normal in normals
    )
    hashes[:, 0] = np.frombuffer(b"".join(whole), dtype=">u8")
    if bands:
        drawn = np.random.default_rng(1).integers(2**63, size=(bands, size), dtype=np.uint64)
        # A band's hash is its inner product with these, modulo 2**64.
        factors = drawn | np.uint64(1)
        # Rows of which each text is like the other's are, as a whole, about as similar.
        joined = ["\n".join(normal) for normal in normals]
        signatures = signatures_of(joined, bands * size).reshape(-1, bands, size)
        hashes[:, 1:] = _spread((signatures * factors).sum(axis=2, dtype=np.uint64))
    return normals, hashes


def signatures_of(normals: list[str], permutations: int) -> np.ndarray:
    """The MinHash signatures of the texts' shingles, [texts, permutations].

    A long text is cut into pieces that no shingle is lost between: its signature is the least of
    theirs.
    """
    from rensa import RMinHash

    pieces: list[str] = []
    first: list[int] = []
    for normal in normals:
        first.append(len(pieces))
        text = normal.ljust(SHINGLE, "\0")
        pieces += [
            text[k : k + PIECE + SHINGLE - 1] for k in range(0, len(text) - SHINGLE + 1, PIECE)
        ]
    rows: list[list[int]] = []
    ends = np.cumsum([len(piece) for piece in pieces])
    for _, group in groupby(range(len(pieces)), key=lambda k: int(ends[k]) // PIECE):
        tokens, places = _tokens([pieces[k] for k in group])
        rows += RMinHash.digest_matrix_from_flat_token_hashes(
            tokens, places, permutations, 1
        ).to_rows()
    return np.minimum.reduceat(np.array(rows, dtype=np.uint64), first, axis=0)


def _tokens(texts: list[str]) -> tuple[np.ndarray, list[int]]:
    """64 bits of each shingle of each text, one after the other, and where each text's begin, and
    the end.
    """
    encoded = "".join(texts).encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(encoded, dtype="<u4").astype(np.uint64)
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    inside = np.ones(len(letters), dtype=bool)
    for back in range(1, SHINGLE):
        inside[ends - back] = False  # a run from here would reach into the next text
    tokens = _spread(_windows(letters, POWERS)[inside[: len(letters) - SHINGLE + 1]])
    return tokens, [0, *np.cumsum(lengths - SHINGLE + 1).tolist()]


def _windows(digits: np.ndarray, powers: list[np.uint64]) -> np.ndarray:
    """Each 5 neighbours as one number of 64 bits, the first times the first power and so on."""
    n = len(digits) - SHINGLE + 1
    sums = digits[:n] * powers[0]
    for place in range(1, SHINGLE):
        sums += digits[place : place + n] * powers[place]
    return sums


def _spread(sums: np.ndarray) -> np.ndarray:
    """Spreads the upper bits of sums of products, which are well mixed, over the lower ones.

    Not ``mixing.mix``: with it other pairs share a band, and the same pool would lose other rows
    than it did before.
    """
    sums = (sums ^ (sums >> np.uint64(32))) * np.uint64(ODD)
    return sums ^ (sums >> np.uint64(29))
