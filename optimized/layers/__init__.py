"""The decoder over a flat batch of tokens."""
