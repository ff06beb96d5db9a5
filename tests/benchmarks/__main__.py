"""``python -m tests.benchmarks [engines|prefix|step] …``: the program, and its options (``--help``)."""

import sys
from importlib import import_module

PROGRAMS = ("engines", "prefix", "step")

if __name__ == "__main__":
    words = sys.argv[1:]
    program = words.pop(0) if words and words[0] in PROGRAMS else PROGRAMS[0]
    import_module(f"tests.benchmarks.{program}").main(words)
