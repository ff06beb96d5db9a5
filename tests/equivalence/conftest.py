"""Each test counts its ties, and fails if they are many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.equivalence.comparison import TALLY


@pytest.fixture(autouse=True)
def ties_are_rare() -> Iterator[None]:
    TALLY.num_answers = TALLY.num_ties = 0
    yield
    TALLY.assert_ties_are_rare()
