"""``tandem compare MODEL``: both engines on the user's own model and prompts. Exit status 1 if they differ."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import msgspec

from tandem.cli.serve import ON_OR_OFF, add_model_options, add_scheduler_options, model_options
from tandem.errors import ConfigError

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a land far away,",
    "1, 2, 3, 4, 5, 6, 7,",
)
DIFFERENT = 1


def add_command(commands: Any) -> None:
    """Register ``compare``."""
    parser = commands.add_parser("compare", help="do both engines say the same on a model of yours?")
    add_model_options(parser)
    add_scheduler_options(parser)
    parser.set_defaults(run=run, backend="optimized", dtype="float32")
    add = parser.add_argument_group("comparison").add_argument
    add("--prompts", metavar="FILE", help="one prompt a line (default: a few of our own)")
    add("--max-tokens", type=int, default=64, metavar="N", help="of each answer (default: %(default)s)")
    add("--json", action=ON_OR_OFF, default=False, help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print. The engines run in float32 unless ``--dtype`` says otherwise."""
    from tandem.comparison import Report, TraceableEngine, compare
    from tandem.config import resolve
    from tandem.registry import create_engine
    from tandem.text.tokenizer import Tokenizer

    if arguments.max_tokens < 1:
        raise ConfigError("--max-tokens", f"must be at least 1, got {arguments.max_tokens}")
    texts = _prompts(arguments.prompts)
    model = resolve(model_options(arguments))
    tokenizer = Tokenizer.from_directory(model.tokenizer_path)
    prompts = [tokenizer.encode(text)[: model.engine.max_model_len - 1] for text in texts]
    alike = msgspec.structs.replace(model.engine, backend="reference")
    reference, other = (cast(TraceableEngine, create_engine(config)) for config in (alike, model.engine))
    try:
        report: Report = compare(reference, other, prompts, arguments.max_tokens)
    finally:
        reference.close()
        other.close()
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report, texts, tokenizer)
    return DIFFERENT if report.verdict == "differ" else 0


def _prompts(path: str | None) -> list[str]:
    if path is None:
        return list(PROMPTS)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--prompts", f"{path} cannot be read as text: {error}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigError("--prompts", f"{path} holds no prompt")
    return prompts


def _print(report: Any, texts: list[str], tokenizer: Any) -> None:
    print("largest difference of the residual stream")
    for i, difference in enumerate(report.stream_differences):
        print(f"  {'embedding' if i == 0 else f'layer {i - 1}':<12} {difference:.2e}")
    print(f"  {'logits':<12} {report.logit_difference:.2e}\n")
    for text, verdict in zip(texts, report.prompts, strict=True):
        print(f"{verdict.verdict:<7} {verdict.num_tokens:>4} tokens  {text[:60]!r}")
        if (d := verdict.divergence) is not None:
            ours, theirs = (tokenizer.token_text(token_id) for token_id in d.tokens)
            print(
                f"        token {d.position}: reference {ours!r}, other engine {theirs!r}; "
                f"top-two gap {d.top_two_gap:.2e}, largest logit difference {d.logit_difference:.2e}"
            )
    meaning = {
        "agree": "The engines agree.",
        "tie": "The engines agree, up to candidates that rounding alone can swap.",
        "differ": "The engines DIFFER: please report this with the figures above.",
    }
    print(f"\n{meaning[report.verdict]} ({report.dtype})")
