"""Text on its way to tokens and back; nothing here imports torch."""
