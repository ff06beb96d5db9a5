"""The conformance suite itself: green where everything is right, and each planted fault is found by its check."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.faults import FAULTS
from tests.conformance.stub.server import KEY, Stub
from tests.server.process import ServerProcess
from tests.tiny import write_model

ROOT = Path(__file__).parents[2]
# the suite's own dependencies are enough for it: no plugin of this project's environment is loaded
ENVIRONMENT = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(report: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The whole suite, and its report."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "conformance/",
        "-q",
        "-p",
        "no:cacheprovider",
        "--report",
        str(report),
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert (report / "report.json").exists(), done.stdout + done.stderr
    return done, json.loads((report / "report.json").read_text())


def failures(report: dict[str, Any]) -> list[str]:
    return [f"{c['level']} {c['name']}: {c['message']}" for c in report["checks"] if c["outcome"] == "failed"]


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running


def test_a_server_that_does_everything_right_is_green(stub: Stub, tmp_path: Path) -> None:
    done, report = run(tmp_path, "--base-url", stub.url, "--api-key", KEY, "--strict")
    assert failures(report) == [] and done.returncode == 0, done.stdout
    assert all(row["state"] == "offered" for row in report["capabilities"])
    passed = sum(check["outcome"] == "passed" for check in report["checks"])
    assert passed > 0.97 * len(report["checks"])


@pytest.fixture(scope="module")
def outcomes(stub: Stub) -> dict[str, tuple[dict[str, str], str]]:
    """Of each fault: what became of the checks that have to find it, and the suite's output."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance.driver", stub.url, KEY],
        input=json.dumps(list(FAULTS.items())),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return {fault: (found, text) for fault, found, text in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(outcomes: dict[str, tuple[dict[str, str], str]], fault: str) -> None:
    found, text = outcomes[fault]
    for check in FAULTS[fault].split():
        own = [outcome for name, outcome in found.items() if name == check or name.startswith(check + "[")]
        assert "failed" in own, f"{check} has not found it: {found or text}"


def test_a_report_shows_request_answer_and_expectation_but_no_key(stub: Stub, tmp_path: Path) -> None:
    options = ("--base-url", f"{stub.url}/wrong/all-indexes-0", "--api-key", KEY, "-k", "test_n and test_chat")
    done, report = run(tmp_path, *options)
    assert done.returncode == 1 and not report["conforms"]
    (failed,) = [check for check in report["checks"] if check["outcome"] == "failed"]
    assert failed["level"] == "MUST" and failed["reference"].startswith("https://platform.openai.com/docs/")
    assert failed["message"].startswith("expected indexes 0, 1, 2")
    assert failed["exchanges"][0]["request"].startswith("curl ") and '"index":0' in failed["exchanges"][0]["answer"]
    for name in ("report.md", "report.json", "report.html"):
        text = (tmp_path / name).read_text()
        assert KEY not in text.replace(report["model"], "") and "expected indexes 0, 1, 2" in text
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert KEY not in done.stdout and "does not conform" in done.stdout


def test_what_is_expected_must_be_offered(stub: Stub, tmp_path: Path) -> None:
    options = ("--base-url", f"{stub.url}/wrong/no-reasoning", "--api-key", KEY, "-k", "reasoning")
    done, report = run(tmp_path / "free", *options)
    assert done.returncode == 0 and {check["outcome"] for check in report["checks"]} == {"not offered"}
    done, report = run(tmp_path / "expected", *options, "--expect", "reasoning")
    assert done.returncode == 1 and len(failures(report)) == 1


def test_a_should_fails_only_a_strict_run(stub: Stub, tmp_path: Path) -> None:
    options = ("--base-url", f"{stub.url}/wrong/no-request-id", "--api-key", KEY, "-k", "test_request_id")
    done, report = run(tmp_path / "free", *options)
    assert done.returncode == 0 and report["conforms"] and len(failures(report)) == 3
    done, report = run(tmp_path / "strict", *options, "--strict")
    assert done.returncode == 1 and not report["conforms"]


def test_a_server_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "conformance/", "--base-url", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 4 and "cannot be reached" in done.stderr and "Traceback" not in done.stderr


def test_it_imports_nothing_of_the_project() -> None:
    own = ("tandem", "server", "tests", "reference", "optimized", "conformance")
    for file in (ROOT / "conformance").rglob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE)
        assert not set(imported) & set(own), file


def test_our_server_with_random_weights_conforms(tmp_path: Path) -> None:
    model = write_model(tmp_path, max_position_embeddings=4096)
    options = ("--served-model-name", "org/tiny", "--enable-request-id-headers", "--api-key", KEY)
    with ServerProcess(model, *options) as server:
        done, report = run(tmp_path / "report", "--base-url", server.url, "--api-key", KEY)
    assert failures(report) == [] and done.returncode == 0, done.stdout
    states = {row["name"]: row["state"] for row in report["capabilities"]}
    assert {name for name, state in states.items() if state == "offered"} >= {"chat", "streaming", "completions"}
