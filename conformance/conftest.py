"""Options, fixtures, and the notes that the report is made of."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import pages
from .capabilities import PROBES, Capabilities
from .client import Api, Client
from .report import Check, Report, terminal_lines
from .requirement import NOT_RUN

_REPORT = pytest.StashKey[Report]()
_CLIENT = pytest.StashKey[Client]()
_CAPABILITIES = pytest.StashKey[Capabilities]()
_CHECKS = pytest.StashKey[dict[str, Check]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's own options. ``--strict``, with which a SHOULD fails the run, is pytest's."""
    options = parser.getgroup("conformance", "the server to check")
    options.addoption("--base-url", help="where it is, such as http://localhost:8000 (with or without /v1)")
    options.addoption("--model", help="the model to ask; the first that /models lists if not given")
    options.addoption("--api-key", default="", help="sent as a bearer token")
    options.addoption("--expect", default="", help="capabilities that must be there: " + ",".join(PROBES))
    options.addoption("--repeats", type=int, default=3, help="how often what must not vary is repeated (3)")
    options.addoption("--request-timeout", type=float, default=60.0, help="seconds to wait for an answer (60)")
    options.addoption("--max-seconds", type=float, default=900.0, help="no check is begun after so long (900)")
    options.addoption("--report", type=Path, help="a directory for report.md, report.json and report.html")


def pytest_configure(config: pytest.Config) -> None:
    """Reach the server, or say why not before anything is collected."""
    for line in (
        "requirement(level, text, place): what a check demands",
        "group(name, needs): its row in the report",
        "needs(*names): capabilities that it needs",
        "heavy: may leave a server busy, and comes last",
    ):
        config.addinivalue_line("markers", line)
    if config.option.help or config.option.collectonly:
        return
    if not config.option.base_url:
        raise pytest.UsageError("say which server to check: --base-url http://localhost:8000")
    if config.option.repeats < 2:
        raise pytest.UsageError("--repeats: two at least, or nothing can be compared")
    client = Client(config.option.base_url, config.option.api_key, config.option.request_timeout)
    model = config.option.model or _first_model(client)
    api = Api(client, model)
    config.stash[_CLIENT] = client
    config.stash[_CAPABILITIES] = Capabilities(api)
    config.stash[_REPORT] = Report(client.api, model)
    config.stash[_CHECKS] = {}


def _first_model(client: Client) -> str:
    answer = client.get("/models")
    if answer.error:
        raise pytest.UsageError(f"{answer.url} cannot be reached: {answer.error}")
    try:
        return str(answer.json()["data"][0]["id"])
    except (AssertionError, LookupError, TypeError):
        message = f"{answer.url} answers {answer.status} and lists no model: give --model"
        raise pytest.UsageError(message) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One check for each capability that ``--expect`` names."""
    if "expected" in metafunc.fixturenames:
        names = [name.strip() for name in metafunc.config.option.expect.split(",") if name.strip()]
        if unknown := set(names) - set(PROBES):
            raise pytest.UsageError(f"--expect: no such capability: {', '.join(sorted(unknown))}")
        metafunc.parametrize("expected", names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note all checks. Where nothing is expected, that takes no check."""
    if not config.option.expect:
        items[:] = [item for item in items if "expected" not in getattr(item, "fixturenames", ())]
    items.sort(key=lambda item: item.get_closest_marker("heavy") is not None)
    checks = config.stash.get(_CHECKS, None)
    if checks is None:
        return
    for item in items:
        marker, group = item.get_closest_marker("requirement"), item.get_closest_marker("group")
        if marker and group:
            checks[item.nodeid] = Check(item.name, group.kwargs["name"], item.nodeid, **marker.kwargs)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Probe what a check needs; skip it where that is not there."""
    report, capabilities = item.config.stash[_REPORT], item.config.stash[_CAPABILITIES]
    if time.monotonic() - report.began > item.config.option.max_seconds:
        pytest.skip(f"{NOT_RUN}: --max-seconds have passed")
    group = item.get_closest_marker("group")
    names = list(group.kwargs["needs"]) if group else []
    for marker in item.iter_markers("needs"):
        names += marker.args
    for name in names:
        capabilities.demand(name)
    capabilities.api.settle()
    item.config.stash[_CLIENT].exchanges.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note what came of a check. A SHOULD that is not met does not fail the run, unless ``--strict`` says so."""
    outcome: pytest.TestReport = yield
    check = item.config.stash[_CHECKS].get(item.nodeid)
    if check is None:
        return outcome
    if outcome.when == "call" or (outcome.when == "setup" and not outcome.passed):
        error = call.excinfo.value if call.excinfo else None
        check.note(outcome.outcome, error, item.config.stash[_CLIENT].exchanges)
        item.config.stash[_REPORT].add(check)
        if outcome.failed:
            outcome.longrepr = check.failure_text()  # a traceback would show the suite's code, not the server's fault
            if check.level == "SHOULD" and not _is_strict(item.config):
                outcome.outcome = "skipped"
                outcome.wasxfail = check.message
    return outcome


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, and the files that ``--report`` asks for."""
    report = config.stash.get(_REPORT, None)
    if report is None or not report.checks:
        return
    report.finish(config.stash[_CAPABILITIES].findings, _is_strict(config))
    terminalreporter.section(f"conformance of {report.url}, model {report.model}")
    for line in terminal_lines(report):
        terminalreporter.write_line(line)
    if config.option.report:
        for path in pages.write(report, config.option.report):
            terminalreporter.write_line(f"written: {path}")


def _is_strict(config: pytest.Config) -> bool:
    return bool(config.getoption("strict", False))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close the connections."""
    if client := config.stash.get(_CLIENT, None):
        client.close()


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    """The raw client."""
    return request.config.stash[_CLIENT]


@pytest.fixture
def capabilities(request: pytest.FixtureRequest) -> Capabilities:
    """What the server offers."""
    return request.config.stash[_CAPABILITIES]


@pytest.fixture
def api(capabilities: Capabilities) -> Api:
    """The requests that checks send most."""
    return capabilities.api


@pytest.fixture
def repeats(request: pytest.FixtureRequest) -> int:
    """How often what must not vary is repeated."""
    return int(request.config.option.repeats)


@pytest.fixture(scope="session")
def memory() -> Iterator[dict[str, Any]]:
    """Answers that several checks look at: each is asked for once."""
    yield {}
