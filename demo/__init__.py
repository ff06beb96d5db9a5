"""The bundled demonstration model: its dialogues, its tokenizer, its training and its score.

Nothing here is imported by the server; `make demo-model` runs it and writes `tandem/bundled/`.
"""
