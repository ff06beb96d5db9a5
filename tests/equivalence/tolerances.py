"""Every tolerance of the equivalence tests. Loosening one needs a reason in the commit that does it."""

LOGITS = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.02}  # absolute, logits of order 1 to 10, worst position
LOGPROBS = 1e-4  # absolute, float32
TIE = 1e-5  # a top-two gap below it counts as agreement; it is counted
