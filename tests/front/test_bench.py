"""``tandem bench`` on a tiny model."""

from __future__ import annotations

import json

import pytest

from tandem.cli.main import main
from tests.tiny import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("backend", ["reference", "optimized"])
@pytest.mark.parametrize("kind", ["throughput", "latency"])
def test_the_last_line_holds_the_figures(
    kind: str, backend: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    count = "--num-prompts" if kind == "throughput" else "--batch-size"
    lengths = ["--input-len", "8", "--output-len", "4", "--num-iters", "1", count, "3"]
    assert main(["bench", kind, model, "--backend", backend, *lengths]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["backend"], figures["requests"], figures["kind"]) == (backend, 3, kind)
    assert 0 < figures["seconds_to_first_tokens"] < figures["seconds"]
    assert figures["output_tokens_per_second"] == pytest.approx(12 / figures["seconds"], rel=0.05)


def test_lengths_beyond_the_context_are_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "latency", model, "--input-len", "600"]) == 1
    assert "--input-len" in capsys.readouterr().err


def test_counts_must_be_positive(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "throughput", model, "--num-prompts", "0"]) == 1
    assert "--num-prompts" in capsys.readouterr().err
