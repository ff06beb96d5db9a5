"""Command lines: how options are spelled, what their values mean, and errors of one line."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from tandem.cli.config_file import expand_config_file
from tandem.cli.dotted import join_dotted
from tandem.config import SpeculativeConfig
from tandem.errors import ConfigError
from tandem.process.profiler import ProfilerConfig

ON_OR_OFF = {"true": True, "false": False}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the whole usage.

    Options may be written with underscores, and switches as ``--name=true`` and ``--name=false``. Where ``--config``
    is an option, the file's options are read as if they stood on the command line, which wins over them. The keys of
    a JSON object may be options of their own: ``--hf-overrides.key value``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        end = args.index("--") if "--" in args else len(args)
        arguments = [*map(self._spelled, args[:end]), *args[end:]]
        arguments = [*join_dotted(arguments[:end], self._option_string_actions), *arguments[end:]]
        if "--config" in self._option_string_actions:
            arguments = expand_config_file(arguments, self)
        return super().parse_known_args(arguments, namespace)

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        arguments, unknown = self.parse_known_args(list(args), namespace)
        option = next((argument for argument in unknown if argument.startswith("-")), None)
        if option is not None:
            self.error(f"there is no option {option.partition('=')[0]}")
        if unknown:  # it may be a key, so it is not repeated
            self.error("there is an argument too many: an option takes one value; repeat it for more")
        return arguments

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")

    def _spelled(self, argument: str) -> str:
        """An argument as ``argparse`` knows it."""
        name, has_value, value = argument.partition("=")
        option = name.replace("_", "-")
        action = self._option_string_actions.get(option)
        if not name.startswith("--") or action is None:
            return argument
        if isinstance(action, argparse.BooleanOptionalAction) and has_value:
            if value not in ON_OR_OFF or option.startswith("--no-"):
                raise ConfigError(option, f"is a switch: {option} or --no-{option[2:]}")
            return option if ON_OR_OFF[value] else f"--no-{option[2:]}"
        return f"{option}{has_value}{value}"


def byte_count(text: str) -> int:
    """``2000000000``, ``4G`` and the like."""
    match = re.fullmatch(r"(\d{1,18})([kKmMgG]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 2000000000 or 2G")
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2].lower()]


def count(text: str) -> int:
    """An integer of at least 0."""
    if not re.fullmatch(r"\d{1,18}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return int(text)


def seconds(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    value = _json(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def json_strings(text: str) -> tuple[str, ...]:
    """A JSON list of strings."""
    value = _json(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON list of strings")
    return tuple(value)


def json_speculative_config(text: str) -> SpeculativeConfig:
    """How draft tokens are proposed, as JSON."""
    try:
        return msgspec.json.decode(text, type=SpeculativeConfig)
    except msgspec.MsgspecError as error:
        example = '{"method": "ngram", "num_speculative_tokens": 5}'
        raise argparse.ArgumentTypeError(f"{error}; an example is {example}") from error


def json_profiler_config(text: str) -> ProfilerConfig:
    """How profiles are taken, as JSON."""
    try:
        return msgspec.json.decode(text, type=ProfilerConfig)
    except msgspec.MsgspecError as error:
        example = '{"profiler": "torch", "torch_profiler_dir": "/tmp/profiles"}'
        raise argparse.ArgumentTypeError(f"{error}; an example is {example}") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON") from error
