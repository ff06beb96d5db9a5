"""Engines here use the CPU kernels, in processes and in threads; or are stubs."""

from pathlib import Path

import pytest

from tandem import registry
from tests.process.helpers import STUB_WORKER
from tests.tiny import write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, built_kernels: None) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes and threads of engines know the stub."""
    monkeypatch.setitem(registry.ENGINES, "stub", ("tests.process.stub", "StubEngine"))
    monkeypatch.setattr("tandem.process.launch.worker_command", lambda: STUB_WORKER)
