"""What only a CUDA machine can say: compiled kernels, captured graphs, and how fast they are."""
