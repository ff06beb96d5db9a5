"""Every tolerance of the equivalence tests. Loosening one needs a reason in the commit that does it."""

LOGPROBS = 1e-4  # absolute, float32
TIE = 1e-5  # a top-two gap below it counts as agreement, and ends the comparison of that answer
RARE = 0.02  # share of the answers of one test that may end in a tie
# In half precision, the mean error against float32 over that of the reference. Both engines round at the same places,
# only sums are added up in another order.
HALF_OF_ONE = 1.5  # one model, some 150 positions; 0.76 to 1.15 in 350 draws
HALF_OF_MANY = 1.1  # a thousand positions; 0.94 to 1.00 without a bug. A softmax in bfloat16 shows in float16 alone
