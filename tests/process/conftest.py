"""Engines here use the CPU kernels, in processes and in threads; or are stubs."""

import pytest

from tandem import registry
from tests.process.helpers import STUB_WORKER


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes and threads of engines know the stub."""
    monkeypatch.setitem(registry.ENGINES, "stub", ("tests.process.stub", "StubEngine"))
    monkeypatch.setattr("tandem.process.launch.worker_command", lambda: STUB_WORKER)
