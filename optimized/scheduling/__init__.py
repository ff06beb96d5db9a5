"""Who computes what, and who holds which blocks: plain Python, no tensors."""
