"""Bodies of other vendors' routes."""
