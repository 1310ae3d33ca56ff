"""Short Python functions, each with the asserts that it must pass.

    Write a Python function count_multiples(numbers) that returns how many numbers of a list are
    divisible by 7. For example, count_multiples([3, 7, 14]) returns 2. ...
    ->  assert count_multiples([7, 0, 5]) == 2
        assert ...

The reference of a row is its asserts, one a line; what they expect is computed by the function that
stands beside the description here. Every item asks for another function, so the suite ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import factorial, gcd
from random import Random
from typing import Any

from replaykit.suites import Row, Suite
from replaykit.suites.tables import words

TESTS = 5  # of a function
DRAWS = 1_000  # of inputs, after which a function counts as one that has too few
NOUNS = words("""
lamp; river; garden; stone; window; bread; yellow; mirror; anna; level; sun; apple; forest; banana;
little; noon; kayak; summer; paper; radar; coffee; moon
""")

Inputs = tuple[Any, ...]


# --- what functions are called with ---------------------------------------------------------------


def _numbers(rng: Random) -> Inputs:
    return ([rng.randint(0, 20) for _ in range(rng.randint(4, 8))],)


def _signed(rng: Random) -> Inputs:
    return ([rng.randint(-9, 9) for _ in range(rng.randint(3, 6))],)


def _few_values(rng: Random) -> Inputs:
    return ([rng.randint(1, 12) for _ in range(rng.randint(8, 14))],)


def _perhaps_sorted(rng: Random) -> Inputs:
    numbers = [rng.randint(0, 20) for _ in range(rng.randint(3, 6))]
    return (sorted(numbers) if rng.random() < 0.5 else numbers,)


def _perhaps_positive(rng: Random) -> Inputs:
    return ([rng.randint(rng.choice((-3, 1)), 9) for _ in range(4)],)


def _two_lists(rng: Random) -> Inputs:
    length = rng.randint(2, 5)
    return tuple([rng.randint(0, 9) for _ in range(length)] for _ in range(2))


def _word(rng: Random) -> Inputs:
    return (rng.choice(NOUNS),)


def _text(rng: Random) -> Inputs:
    return (" ".join(rng.sample(NOUNS, rng.randint(2, 5))),)


def _long_text(rng: Random) -> Inputs:
    return (" ".join(rng.sample(NOUNS, 6)),)


def _number(rng: Random) -> Inputs:
    return (rng.randint(1, 60),)


def _small(rng: Random) -> Inputs:
    return (rng.randint(1, 9),)


def _large(rng: Random) -> Inputs:
    return (rng.randint(10, 99_999),)


def _two_numbers(rng: Random) -> Inputs:
    factor = rng.randint(1, 9)
    return (factor * rng.randint(1, 12), factor * rng.randint(1, 12))


def _prices(rng: Random) -> Inputs:
    return ({name: rng.randint(1, 15) for name in rng.sample(NOUNS, rng.randint(2, 5))},)


# --- what they do ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Functions that differ in one value."""

    name: str
    takes: str
    """Their parameters, as they stand in the brackets."""
    returns: str
    """What they return, with the value as {k}."""
    solve: Callable[..., Any]
    """Called with the inputs, and with the value behind them where there are ``values``."""
    inputs: Callable[[Random], Inputs]
    values: tuple[Any, ...] = ()


def _second_largest(numbers: list[int]) -> int:
    return sorted(set(numbers))[-2]


def _interleaved(first: list[int], second: list[int]) -> list[int]:
    return [number for pair in zip(first, second, strict=True) for number in pair]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, n))


def _divisors(n: int) -> list[int]:
    return [divisor for divisor in range(1, n + 1) if n % divisor == 0]


def _longest(text: str) -> str:
    return max(text.split(), key=len)


def _without_vowels(text: str) -> str:
    return "".join(letter for letter in text if letter not in "aeiou")


FROM_2 = tuple(range(2, 12))
LETTERS = tuple("aelmnoprst")
LISTS = (
    Kind(
        "count_multiples",
        "numbers",
        "how many numbers of a list are divisible by {k} (0 is)",
        lambda numbers, k: sum(n % k == 0 for n in numbers),
        _numbers,
        tuple(range(2, 8)),
    ),
    Kind(
        "keep_greater",
        "numbers",
        "a list of those numbers of a list that are greater than {k}, in their order",
        lambda numbers, k: [n for n in numbers if n > k],
        _numbers,
        FROM_2,
    ),
    Kind(
        "count_less",
        "numbers",
        "how many numbers of a list are less than {k}",
        lambda numbers, k: sum(n < k for n in numbers),
        _numbers,
        FROM_2,
    ),
    Kind(
        "add_to_each",
        "numbers",
        "a list in which {k} is added to each number of a list",
        lambda numbers, k: [n + k for n in numbers],
        _signed,
        FROM_2,
    ),
    Kind(
        "multiply_each",
        "numbers",
        "a list in which each number of a list is multiplied by {k}",
        lambda numbers, k: [n * k for n in numbers],
        _signed,
        FROM_2,
    ),
    Kind(
        "first_items",
        "items",
        "a list of the first {k} items of a list, or of all items if it has fewer",
        lambda items, k: items[:k],
        _numbers,
        (2, 3, 4, 5, 6),
    ),
    Kind(
        "last_items",
        "items",
        "a list of the last {k} items of a list, or of all items if it has fewer",
        lambda items, k: items[-k:],
        _numbers,
        (2, 3, 4, 5, 6),
    ),
    Kind(
        "remove_value",
        "numbers",
        "a list without any number that equals {k}, the others in their order",
        lambda numbers, k: [n for n in numbers if n != k],
        _few_values,
        FROM_2,
    ),
    Kind(
        "replace_value",
        "numbers",
        "a list in which each number that equals {k} is replaced by 0",
        lambda numbers, k: [0 if n == k else n for n in numbers],
        _few_values,
        FROM_2,
    ),
    Kind(
        "count_value",
        "numbers",
        "how often the number {k} stands in a list",
        lambda numbers, k: numbers.count(k),
        _few_values,
        FROM_2,
    ),
    Kind("reverse_list", "items", "a list in reverse order", lambda items: items[::-1], _numbers),
    Kind(
        "sort_down",
        "numbers",
        "a list of the numbers of a list, sorted from the largest to the smallest",
        lambda numbers: sorted(numbers, reverse=True),
        _numbers,
    ),
    Kind(
        "remove_duplicates",
        "items",
        "a list in which each item of a list stands once, in the order of first occurrence",
        lambda items: list(dict.fromkeys(items)),
        _few_values,
    ),
    Kind(
        "sum_even",
        "numbers",
        "the sum of the even numbers of a list",
        lambda numbers: sum(n for n in numbers if n % 2 == 0),
        _numbers,
    ),
    Kind(
        "sum_squares",
        "numbers",
        "the sum of the squares of all numbers of a list",
        lambda numbers: sum(n * n for n in numbers),
        _signed,
    ),
    Kind(
        "running_sums",
        "numbers",
        "a list of the running sums of a list: its first number, the sum of its first two, and so "
        "on",
        lambda numbers: list(accumulate(numbers)),
        _signed,
    ),
    Kind(
        "spread",
        "numbers",
        "the largest number of a list minus the smallest",
        lambda numbers: max(numbers) - min(numbers),
        _numbers,
    ),
    Kind(
        "second_largest",
        "numbers",
        "the second largest of the different numbers of a list",
        _second_largest,
        _few_values,
    ),
    Kind(
        "index_of_largest",
        "numbers",
        "the index, from 0, at which the largest number of a list stands first",
        lambda numbers: numbers.index(max(numbers)),
        _numbers,
    ),
    Kind(
        "is_sorted",
        "numbers",
        "True if no number of a list is less than the one before it, else False",
        lambda numbers: numbers == sorted(numbers),
        _perhaps_sorted,
    ),
    Kind(
        "all_positive",
        "numbers",
        "True if all numbers of a list are greater than 0, else False",
        lambda numbers: all(n > 0 for n in numbers),
        _perhaps_positive,
    ),
    Kind(
        "interleave",
        "first, second",
        "one list with the items of two equally long lists in turn, beginning with the first list",
        _interleaved,
        _two_lists,
    ),
    Kind(
        "add_lists",
        "first, second",
        "a list of the sums of the numbers that stand at the same place in two equally long lists",
        lambda first, second: [a + b for a, b in zip(first, second, strict=True)],
        _two_lists,
    ),
)
TEXTS = (
    Kind(
        "count_letter",
        "text",
        "how often the letter '{k}' stands in a text in lower case",
        lambda text, k: text.count(k),
        _text,
        LETTERS,
    ),
    Kind(
        "remove_letter",
        "text",
        "a text in lower case without any letter '{k}'",
        lambda text, k: text.replace(k, ""),
        _text,
        LETTERS,
    ),
    Kind(
        "mask_letter",
        "text",
        "a text in lower case in which each letter '{k}' is replaced by '*'",
        lambda text, k: text.replace(k, "*"),
        _text,
        LETTERS,
    ),
    Kind(
        "words_with",
        "text",
        "a list of the words of a text that have the letter '{k}'; words are separated by one "
        "space",
        lambda text, k: [word for word in text.split() if k in word],
        _long_text,
        LETTERS,
    ),
    Kind(
        "words_longer_than",
        "text",
        "a list of the words of a text that have more than {k} letters; words are separated by one "
        "space",
        lambda text, k: [word for word in text.split() if len(word) > k],
        _long_text,
        (3, 4, 5),
    ),
    Kind(
        "repeat_text",
        "text",
        "a text {k} times in a row, with nothing between",
        lambda text, k: text * k,
        _word,
        tuple(range(2, 8)),
    ),
    Kind(
        "drop_first",
        "text",
        "a text without its first {k} characters",
        lambda text, k: text[k:],
        _text,
        (1, 2, 3, 4, 5),
    ),
    Kind("reverse_text", "text", "a text in reverse order", lambda text: text[::-1], _text),
    Kind(
        "reverse_words",
        "text",
        "the words of a text in reverse order, with one space between",
        lambda text: " ".join(reversed(text.split())),
        _text,
    ),
    Kind(
        "is_palindrome",
        "word",
        "True if a word reads the same from both ends, else False",
        lambda word: word == word[::-1],
        _word,
    ),
    Kind(
        "longest_word",
        "text",
        "the longest word of a text, the first of them if several are equally long",
        _longest,
        _text,
    ),
    Kind(
        "word_lengths",
        "text",
        "a list of the lengths of the words of a text; words are separated by one space",
        lambda text: [len(word) for word in text.split()],
        _text,
    ),
    Kind(
        "initials",
        "text",
        "the first letters of all words of a text, in upper case, with nothing between",
        lambda text: "".join(word[0].upper() for word in text.split()),
        _text,
    ),
    Kind(
        "remove_vowels",
        "text",
        "a text in lower case without the letters a, e, i, o and u",
        _without_vowels,
        _text,
    ),
    Kind(
        "shout",
        "text",
        "a text in upper case with an exclamation mark at its end",
        lambda text: text.upper() + "!",
        _text,
    ),
    Kind(
        "count_words",
        "text",
        "how many words a text has; words are separated by one space",
        lambda text: len(text.split()),
        _text,
    ),
    Kind(
        "sorted_letters",
        "word",
        "the letters of a word in alphabetical order, as one text",
        lambda word: "".join(sorted(word)),
        _word,
    ),
    Kind(
        "letter_counts",
        "word",
        "a dictionary that says how often each letter stands in a word",
        lambda word: dict(Counter(word)),
        _word,
    ),
)
NUMBERS = (
    Kind(
        "is_multiple",
        "n",
        "True if the whole number n is divisible by {k}, else False",
        lambda n, k: n % k == 0,
        _number,
        (2, 3, 4, 5, 6, 7),
    ),
    Kind(
        "power",
        "n",
        "the whole number n to the power of {k}",
        lambda n, k: n**k,
        _small,
        (2, 3, 4, 5),
    ),
    Kind(
        "sum_of_multiples",
        "n",
        "the sum of all whole numbers from 1 to n (n included) that are divisible by {k}",
        lambda n, k: sum(number for number in range(1, n + 1) if number % k == 0),
        _number,
        (2, 3, 4, 5, 6, 7),
    ),
    Kind(
        "multiples",
        "n",
        "a list of the first n multiples of {k}, beginning with {k} itself",
        lambda n, k: [k * number for number in range(1, n + 1)],
        _small,
        FROM_2,
    ),
    Kind(
        "at_most",
        "n",
        "n, or {k} if n is greater than {k}",
        lambda n, k: min(n, k),
        _number,
        tuple(range(20, 40, 3)),
    ),
    Kind(
        "in_packs",
        "n",
        "how many packs of {k} are needed to hold n items; the last pack need not be full",
        lambda n, k: -(-n // k),
        _number,
        FROM_2,
    ),
    Kind(
        "digit_sum",
        "n",
        "the sum of the digits of the positive whole number n",
        lambda n: sum(map(int, str(n))),
        _large,
    ),
    Kind(
        "count_digits",
        "n",
        "how many digits the positive whole number n has",
        lambda n: len(str(n)),
        _large,
    ),
    Kind(
        "reverse_digits",
        "n",
        "the digits of the positive whole number n in reverse order, as a text",
        lambda n: str(n)[::-1],
        _large,
    ),
    Kind(
        "is_prime",
        "n",
        "True if the positive whole number n is a prime number, else False",
        _is_prime,
        _number,
    ),
    Kind(
        "factorial",
        "n",
        "the factorial of n, the product of all whole numbers from 1 to n",
        factorial,
        _small,
    ),
    Kind(
        "divisors",
        "n",
        "a list of all whole numbers that divide n, from 1 to n itself, in ascending order",
        _divisors,
        _number,
    ),
    Kind(
        "greatest_common_divisor",
        "a, b",
        "the greatest common divisor of the positive whole numbers a and b",
        gcd,
        _two_numbers,
    ),
    Kind(
        "hours_and_minutes",
        "minutes",
        "a tuple of whole hours and the minutes that are left over, for a number of minutes",
        lambda minutes: divmod(minutes, 60),
        lambda rng: (rng.randint(30, 600),),
    ),
    Kind(
        "cheaper_than",
        "prices",
        "a sorted list of the keys of a dictionary whose values are less than {k}",
        lambda prices, k: sorted(name for name, price in prices.items() if price < k),
        _prices,
        FROM_2,
    ),
    Kind(
        "total",
        "prices",
        "the sum of the values of a dictionary",
        lambda prices: sum(prices.values()),
        _prices,
    ),
    Kind(
        "dearest",
        "prices",
        "the largest value of a dictionary",
        lambda prices: max(prices.values()),
        _prices,
    ),
)


@dataclass(frozen=True)
class Function:
    """A function that is asked for."""

    kind: Kind
    value: Any = None

    def solve(self, *inputs: Any) -> Any:
        """What it returns, by the reference solution."""
        if self.kind.values:
            return self.kind.solve(*inputs, self.value)
        return self.kind.solve(*inputs)

    def call(self, inputs: Inputs) -> str:
        return f"{self.kind.name}({', '.join(map(repr, inputs))})"


FUNCTIONS = [
    Function(kind, value) for kind in (*LISTS, *TEXTS, *NUMBERS) for value in kind.values or (None,)
]


def cases(function: Function) -> list[tuple[Inputs, Any]]:
    """Different inputs with what they give, the example first; always the same for a function.

    No two neighbours give the same, and of two one at least does not give its input back: no
    constant passes the tests, nor does a function that does nothing.
    """
    rng = Random(f"suite/code/{function.kind.name}/{function.value}")
    found: list[tuple[Inputs, Any]] = []
    for _ in range(DRAWS):
        inputs = function.kind.inputs(rng)
        result = function.solve(*inputs)
        if any(inputs == before for before, _ in found):
            continue
        if found and found[-1][1] == result:
            continue
        if result == inputs[0] and (not found or found[-1][1] == found[-1][0][0]):
            continue
        found.append((inputs, result))
        if len(found) > TESTS:
            return found
    raise ValueError(f"{function.kind.name}: only {len(found)} different inputs")


def _code(rng: Random) -> Row:
    function = rng.choice(FUNCTIONS)
    kind = function.kind
    (example, result), *tests = cases(function)
    returns = kind.returns.format(k=function.value)
    prompt = (
        f"Write a Python function {kind.name}({kind.takes}) that returns {returns}. For example, "
        f"{function.call(example)} returns {result!r}. Answer with the code of the function alone."
    )
    asserts = [f"assert {function.call(inputs)} == {expected!r}" for inputs, expected in tests]
    return {"prompt": prompt, "completion": "\n".join(asserts)}


SUITES = {
    "code": Suite(
        name="code",
        what="short Python functions on lists, texts and numbers, run against asserts",
        cannot_say="It says nothing of programs of more than one function, or of other languages.",
        score="code",
        chance=0.0,
        max_tokens=320,
        draw=_code,
    )
}
