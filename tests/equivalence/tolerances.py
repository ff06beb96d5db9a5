"""Every tolerance of the equivalence tests. Loosening one needs a reason in the commit that does it."""

LOGPROBS = 1e-4  # absolute, float32
TIE = 1e-5  # a top-two gap below it counts as agreement, and ends the comparison of that answer
RARE = 0.02  # share of the answers of one test that may end in a tie
# In half precision, times the reference's own error against float32. Both engines round at the same places, only sums
# are added up in another order: the ratio of their mean errors stays near 1, and two errors of one size differ by
# some factor at a single position.
HALF_WORST = 4.0  # at one position; the worst of 20,000 was 2.7
HALF_MEAN = 1.1  # over a thousand positions; 0.9 to 1.05 without a bug
