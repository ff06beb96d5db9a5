"""Instructor in each of its modes that a server of OpenAI's API can serve."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import instructor
import openai
import pytest
from asked import ADA, BASE, EXPECTED, KEY, MODEL, Person, user

FIELDS: Any = {"model": MODEL, "messages": [user(ADA)], "temperature": 0, "max_retries": 0}


def client(mode: instructor.Mode) -> Any:
    """A patched client of OpenAI's."""
    return instructor.from_openai(openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0), mode=mode)


JSON_MODES = [instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON]
TOOL_MODES = [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT]


@pytest.mark.parametrize("mode", JSON_MODES + TOOL_MODES)
def test_an_object_of_the_type(mode: instructor.Mode) -> None:
    found = client(mode).chat.completions.create(**FIELDS, response_model=Person)
    assert type(found).__name__ == "Person" and found.model_dump() == EXPECTED.model_dump()


@pytest.mark.parametrize("mode", [instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS])
def test_partial_objects_grow_into_the_whole(mode: instructor.Mode) -> None:
    parts = list(client(mode).chat.completions.create_partial(**FIELDS, response_model=Person))
    assert len(parts) > 1 and parts[-1].model_dump() == EXPECTED.model_dump()


def test_iterables_yield_objects_of_the_type() -> None:
    found = client(instructor.Mode.TOOLS).chat.completions.create(**FIELDS, response_model=Iterable[Person])
    assert all(type(one).__name__ == "Person" for one in found)
