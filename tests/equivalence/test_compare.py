"""``tandem compare`` tells agreement from difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimized.cache.paged_cache import KeyValues
from tandem.cli.main import main
from tandem.comparison import Divergence
from tests.tiny import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


def test_equal_engines_agree(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the quick\n\nnaïve café\n")
    assert main(["compare", model, "--prompts", str(prompts), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] in ("agree", "tie") and report["dtype"] == "float32"
    assert [prompt["num_tokens"] for prompt in report["prompts"]] == [64, 64]
    assert len(report["stream_differences"]) == 3 and max(report["stream_differences"]) < 1e-4
    assert main(["compare", model]) == 0
    assert "The engines agree" in capsys.readouterr().out


def test_a_bug_is_a_difference_and_its_layer_is_seen(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = KeyValues.attend
    monkeypatch.setattr(KeyValues, "attend", lambda self, q, *rest: right(self, q.flip(1).contiguous(), *rest))
    assert main(["compare", model, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    embedding, first, _ = report["stream_differences"]
    assert report["verdict"] == "differ" and embedding == 0 and first > 1e-3
    assert main(["compare", model]) == 1
    assert "DIFFER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gap", "difference", "dtype", "is_tie"),
    [
        (1e-6, 5.0, "float32", True),
        (1e-4, 1e-4, "float32", True),
        (1e-2, 1e-4, "float32", False),
        (1e-2, 1e-2, "float32", False),
        (1e-2, 1e-2, "bfloat16", True),
    ],
)
def test_rounding_explains_only_what_it_can(gap: float, difference: float, dtype: str, is_tie: bool) -> None:
    assert Divergence(0, (1, 2), gap, difference).is_tie(dtype) is is_tie


@pytest.mark.parametrize(("option", "value"), [("--prompts", "no/such/file"), ("--max-tokens", "0")])
def test_bad_options_are_named(model: str, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", model, option, value]) == 1
    assert option in capsys.readouterr().err
