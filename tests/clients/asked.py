"""The server under test, and what the tests of all libraries ask of it."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from dataclasses import dataclass, field

from pydantic import BaseModel

URL = os.environ["TANDEM_URL"]  # set by run.py
BASE = f"{URL}/v1"
MODEL = os.environ.get("TANDEM_MODEL", "tandem-demo")
KEY = "none"

SUM = "What is 17 plus 25?"
ADA = 'Give me a JSON object with name "Ada" and age 36.'
WEATHER = "What is the weather in Paris?"
WEATHERS = "What is the weather in Paris and in Rome?"


class Person(BaseModel):
    """What ``ADA`` asks for."""

    name: str
    age: int


EXPECTED = Person(name="Ada", age=36)


@dataclass
class Weather:
    """A function that reports the weather and remembers the cities it was asked for."""

    cities: list[str] = field(default_factory=list)

    def get_weather(self, city: str) -> str:
        """Get the current weather in a city"""
        self.cities.append(city)
        return json.dumps({"temperature": 21, "sky": "sunny"})


def user(content: str) -> dict[str, str]:
    """A message."""
    return {"role": "user", "content": content}


def wait_until_idle(seconds: float = 5.0) -> None:
    """Until the server computes nothing."""
    end = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"{URL}/load") as answer:
            load = json.load(answer)
        if load["num_requests_unfinished"] == 0:
            return
        assert time.monotonic() < end, f"still busy: {load}"
        time.sleep(0.02)
