"""``python -m tests.benchmarks [PROGRAM] …``: one of ``PROGRAMS``, and its options (``--help``).

Without a word: ``kernels``, then ``engines``.
"""

import sys
from importlib import import_module

PROGRAMS = ("kernels", "engines", "prefix", "step", "speculation", "front")

if __name__ == "__main__":
    words = sys.argv[1:]
    if words and words[0] not in PROGRAMS:
        raise SystemExit(f"{words[0]} is not a program; there are {', '.join(PROGRAMS)}")
    for program in words[:1] or PROGRAMS[:2]:
        import_module(f"tests.benchmarks.{program}").main(words[1:])
