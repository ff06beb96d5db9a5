"""Keys and values of all sequences, and attention over them."""
