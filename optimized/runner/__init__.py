"""What carries a step out: batches, graphs, the sampler, and how much memory they take."""
