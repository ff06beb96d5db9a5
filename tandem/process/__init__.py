"""The engine in a process of its own: both ends, and what travels between them."""
