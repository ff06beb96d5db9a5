"""The optimized engine against the reference engine, at every level from one sampled row to a run of requests."""
