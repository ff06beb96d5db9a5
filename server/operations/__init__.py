"""What those who run a server need: metrics and logs."""
