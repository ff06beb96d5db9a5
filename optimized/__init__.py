"""Engine 2: many requests at once, over a paged and shared KV cache."""

from optimized.engine import OptimizedEngine

__all__ = ["OptimizedEngine"]
