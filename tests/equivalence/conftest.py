"""Each test counts its ties, and fails if they are many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.equivalence.comparison import TALLY, TOTAL


@pytest.fixture(autouse=True)
def ties_are_rare() -> Iterator[None]:
    TALLY.clear()
    yield
    TALLY.assert_ties_are_rare()
    TOTAL.add(TALLY)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was compared, for whoever asks how equal the engines are."""
    if TOTAL.num_answers:
        terminalreporter.write_line(
            f"equivalence: {TOTAL.num_answers} answers of {TOTAL.num_tokens} tokens compared, {TOTAL.num_ties} ended "
            f"in a tie, log-probabilities differed by {TOTAL.worst:.1e} at most"
        )
