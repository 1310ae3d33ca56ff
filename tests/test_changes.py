"""What was changed between two texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replaykit.changes import changes


def test_a_word_that_was_replaced() -> None:
    assert changes("It is 12 apples.", "It is 11 apples.") == [
        ("same", "It is "),
        ("removed", "12"),
        ("added", "11"),
        ("same", " apples."),
    ]


def test_neighbouring_changes_are_one() -> None:
    assert changes("a red fox runs", "a blue cow runs") == [
        ("same", "a "),
        ("removed", "red fox"),
        ("added", "blue cow"),
        ("same", " runs"),
    ]


def test_text_without_spaces_changes_by_character() -> None:
    assert changes("東京は大きい", "京都は大きい")[-1] == ("same", "は大きい")


def test_all_of_it_and_nothing_of_it() -> None:
    assert changes("", "") == []
    assert changes("same", "same") == [("same", "same")]
    assert changes("", "new") == [("added", "new")]
    assert changes("old", "") == [("removed", "old")]


@given(st.text("ab, .\n東", max_size=30), st.text("ab, .\n東", max_size=30))
def test_both_texts_come_back(before: str, now: str) -> None:
    found = changes(before, now)
    assert "".join(text for kind, text in found if kind != "added") == before
    assert "".join(text for kind, text in found if kind != "removed") == now
    assert all(text for _, text in found)
