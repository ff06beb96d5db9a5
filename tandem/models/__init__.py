"""Architectures as data, and where their weights are found and read."""
