"""Every tolerance of the equivalence tests. Loosening one needs a reason in the commit that does it."""

LOGPROBS = 1e-4  # absolute, float32
TIE = 1e-5  # a top-two gap below it counts as agreement, and ends the comparison of that answer
RARE = 0.02  # share of the answers of one test that may end in a tie
