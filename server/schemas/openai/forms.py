"""Fields that ask for answers of some form, in the three ways that clients know.

Wire formats: ``response_format`` of OpenAI's API (``structural_tag`` is vLLM's), ``structured_outputs`` and the older
``guided_*`` of vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tandem.errors import RequestError
from tandem.structured_outputs import StructuredOutputsParams

Schema = dict[str, Any] | bool
Pattern = Annotated[str, Meta(min_length=1)]


# Of JSON Schema's drafts 4 to 2020-12; what a grammar cannot follow among them is found out when it is compiled.
KEYWORDS = frozenset((
    "$anchor", "$comment", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "$vocabulary",
    "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "contains", "contentEncoding",
    "contentMediaType", "contentSchema", "default", "definitions", "dependencies", "dependentRequired",
    "dependentSchemas", "deprecated", "description", "else", "enum", "examples", "exclusiveMaximum",
    "exclusiveMinimum", "format", "id", "if", "items", "maxContains", "maxItems", "maxLength", "maxProperties",
    "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "not", "nullable",
    "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames", "readOnly", "required",
    "then", "title", "type", "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "writeOnly",
))  # fmt: skip
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")  # names to schemas
_INNER = (
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "items",
    "not",
    "oneOf",
    "prefixItems",
)


def check_keywords(schema: Any, param: str) -> None:
    """Refuse keywords that no draft of JSON Schema has: a strict schema means all it says.

    Raises:
        RequestError: naming the keyword and where it stands.
    """
    todo = [(schema, "schema")]
    while todo:
        at, path = todo.pop()
        if isinstance(at, list):
            todo += [(item, f"{path}[{i}]") for i, item in enumerate(at)]
        if not isinstance(at, dict):
            continue
        for key in at:
            if key not in KEYWORDS and not key.startswith("x-"):
                where = (
                    f"{param}: {path} has {key[:100]!r}, which is no keyword of JSON Schema; strict schemas have none"
                )
                raise RequestError(where, param)
        todo += [(at[key], f"{path}.{key}") for key in _INNER if key in at]
        for key in _NAMED:
            if isinstance(at.get(key), dict):
                todo += [(inner, f"{path}.{key}.{name[:100]}") for name, inner in at[key].items()]


class NamedSchema(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """``json_schema`` of a response format. Answers follow the schema whether or not it is called strict."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: Schema | None = None
    description: Annotated[str, Meta(max_length=2**16)] | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Anything."""

    @property
    def form(self) -> StructuredOutputsParams | None:
        """As the engine's side knows it."""
        return None


class JsonObjectFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""

    @property
    def form(self) -> StructuredOutputsParams | None:
        """As the engine's side knows it."""
        return StructuredOutputsParams(json_object=True)


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that follows a schema."""

    json_schema: NamedSchema

    @property
    def form(self) -> StructuredOutputsParams | None:
        """As the engine's side knows it."""
        schema = self.json_schema.schema
        if self.json_schema.strict:
            check_keywords(schema, "response_format")
        return StructuredOutputsParams(json={"type": "object"} if schema is None else schema)


class StructuralTagFormat(msgspec.Struct, frozen=True, tag_field="type", tag="structural_tag"):
    """Free text with tags whose content follows a schema."""

    structures: list[dict[str, Any]]
    triggers: list[str]

    @property
    def form(self) -> StructuredOutputsParams | None:
        """As the engine's side knows it."""
        return StructuredOutputsParams(structural_tag={"structures": self.structures, "triggers": self.triggers})


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat


class FormFields(msgspec.Struct, kw_only=True, frozen=True):
    """At most one of them may be given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsParams | None = None
    guided_json: Schema | str | None = None
    guided_regex: Pattern | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1)] | None = None
    guided_grammar: Pattern | None = None
    guided_whitespace_pattern: Pattern | None = None
    guided_decoding_backend: Literal["auto", "guidance", "llguidance"] | None = None

    @property
    def form(self) -> tuple[str, StructuredOutputsParams | None]:
        """What the answer must look like, and the field that says so.

        Raises:
            RequestError: two fields ask for something.
        """
        forms: dict[str, StructuredOutputsParams] = {}
        if self.response_format is not None and (form := self.response_format.form) is not None:
            forms["response_format"] = form
        if self.structured_outputs is not None:
            forms["structured_outputs"] = self.structured_outputs
        for kind in ("json", "regex", "choice", "grammar"):
            if (value := getattr(self, f"guided_{kind}")) is not None:
                fields = {kind: value, "whitespace_pattern": self.guided_whitespace_pattern}
                forms[f"guided_{kind}"] = StructuredOutputsParams(**fields)
        if len(forms) > 1:
            first, second, *_ = forms
            raise RequestError(f"{first} and {second} both say what the answer must look like", second)
        return next(iter(forms.items())) if forms else ("response_format", None)
