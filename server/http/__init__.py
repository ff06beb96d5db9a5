"""HTTP itself: limits of connections, and server-sent events."""
