"""Suites: old skills whose items are written by replaykit itself."""

import pytest

from replaykit.data.formats import record_of
from replaykit.errors import DataError
from replaykit.recipe.evaluate import Test
from replaykit.steps.inputs import load
from replaykit.suites import MODULES, fingerprint, rows, suite_of


@pytest.mark.parametrize("name", MODULES)
def test_the_first_items_of_more_are_the_items_of_fewer(name):
    more = rows(f"suite:{name}", 60)
    assert rows(f"suite:{name}", 20) == more[:20]
    assert rows(f"suite:{name}@7", 20) != more[:20]


@pytest.mark.parametrize("name", MODULES)
def test_every_item_is_a_row_that_asks_something_new(name):
    suite = suite_of(f"suite:{name}")
    found = rows(f"suite:{name}", 60)
    assert len(found) >= 40
    records = [record_of(f"suite:{name}:{n}", row, "target") for n, row in enumerate(found, 1)]
    assert len({record.id for record in records}) == len(records)
    assert suite.name == name and 0 <= suite.chance < 1 and suite.what and suite.cannot_say


def test_a_test_of_a_suite_is_scored_as_the_suite_says():
    test = Test(path="suite:sums")
    assert (test.score, test.n) == ("numeric", 200)
    assert Test(path="suite:sums", n=5, score="exact").score == "exact"
    assert len(load(Test(path="suite:sums", n=5), "target").records) == 5
    assert (
        load(Test(path="suite:sums", skip=3, n=1), "target").records[0].prompt
        == rows("suite:sums", 4)[3]["prompt"]
    )


def test_another_seed_has_another_fingerprint():
    assert fingerprint("suite:sums") != fingerprint("suite:sums@1")


def test_a_misspelt_suite_names_the_right_one():
    with pytest.raises(DataError, match="did you mean 'sums'"):
        suite_of("suite:sum")
