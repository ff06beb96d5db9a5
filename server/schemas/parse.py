"""Bytes to request structs, with errors that name the field."""

from __future__ import annotations

import re
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from server.schemas.unsupported import UNSUPPORTED, Refusals, refuse_unsupported
from tandem.errors import RequestError


class Checked(Protocol):
    """A struct that knows which of its fields contradict each other."""

    def check(self) -> None:
        """Raise ``RequestError`` if any do."""


T = TypeVar("T", bound=Checked)

_PATH = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_LONG_QUOTE = re.compile(r"(['`])(.{100}).+\1", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class BodyParser(Generic[T]):
    """Parses the bodies of one route.

    Args:
        struct: the type of a valid body.
        refusals: fields that are refused by name; all others that the struct has not are ignored.
    """

    def __init__(self, struct: type[T], refusals: Refusals = UNSUPPORTED) -> None:
        self.struct = struct
        self._decode = msgspec.json.Decoder(struct).decode
        self._known = frozenset(struct.__struct_encode_fields__)  # type: ignore[attr-defined]
        self._refusals = refusals
        self.refused = frozenset(refusals) - self._known

    def _read(self, body: bytes | bytearray) -> T:
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            if "`float`" not in str(error):
                raise
            return msgspec.convert(_whole_numbers(msgspec.json.decode(body)), self.struct)

    def parse(self, body: bytes | bytearray) -> tuple[T, list[str]]:
        """The request, and the names of fields that mean nothing here.

        Raises:
            RequestError: not JSON, not of the right shape, or asking for something that cannot be honoured.
        """
        try:
            fields = _decode_fields(body)
            for name in fields:
                if name in self.refused:
                    refuse_unsupported(name, fields[name], self._refusals)
            request = self._read(body)
        except msgspec.ValidationError as error:
            raise explain(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"the body is not valid JSON: {error}", None, "invalid_json") from error
        except RecursionError as error:
            raise RequestError("the body is nested too deeply", None, "invalid_json") from error
        request.check()
        return request, [name for name in fields if name not in self._known and name not in self.refused]


def _whole_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    """Numbers such as 5.0 as the integers that they are; only of the body's own fields, not within them."""
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in fields.items()}


def explain(text: str, place: str = "") -> RequestError:
    """Turn msgspec's account, such as ``Expected `str`, got `int` - at `$.messages[0].role```, into ours.

    Args:
        place: the field that the account is about, if it is not about the whole body.
    """
    match = _PATH.fullmatch(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    path = path.replace("[...]", "")
    path = f"{place}.{path}" if place and path else place or path
    if what.startswith("Expected `int`") and "`key` in" in text:
        return RequestError(f"{path}: its keys must be whole numbers", path, "invalid_type")
    if missing := _MISSING.match(what):
        param = f"{path}.{missing[1]}" if path else missing[1]
        return RequestError(f"{param} is required", param, "missing_required_parameter")
    if unknown := _UNKNOWN.match(what):
        param = f"{path}.{unknown[1][:100]}"
        return RequestError(f"{param!r} is not known here", param, "unknown_parameter")
    plain = _LONG_QUOTE.sub(r"\1\2…\1", what).replace("`", "")
    is_type = plain.startswith("Expected ") and ", got " in plain
    message = f"{path or 'the body'}: {plain[:1].lower()}{plain[1:]}"
    return RequestError(message, path or None, "invalid_type" if is_type else "invalid_value")
