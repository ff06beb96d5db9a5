"""Each Triton kernel against its plain-torch twin and float64, in the interpreter; and compiled without a GPU."""
