"""Which code runs: ours and the installed packages', never what lies in the working directory or beside a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.safe_path import safe_path
from tests.server.process import ROOT, ServerProcess

HOSTILE = ("optimized", "reference", "tandem", "server", "zmq")
FILES = ("torch", "json", "random", "msgspec", "asyncio", "sitecustomize", "logging", "signal")
TRAP = "import pathlib; pathlib.Path(__file__).with_suffix('.executed').touch(); raise SystemExit('hostile')\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory full of modules that must not be executed."""
    for name in HOSTILE:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TRAP)
    for name in FILES:
        (tmp_path / f"{name}.py").write_text(TRAP)
    return tmp_path


def executed(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.executed"))


def test_a_server_in_a_hostile_directory_serves_and_executes_nothing_of_it(hostile: Path, model_dir: Path) -> None:
    command = [str(Path(sys.executable).parent / "tandem"), "serve"]
    with ServerProcess(model_dir, command=command, cwd=hostile) as server:
        answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
        assert answer.status_code == 200
    assert executed(hostile) == []


def test_a_script_beside_hostile_files_has_a_clean_worker(hostile: Path) -> None:
    """Python itself puts the script's folder first for the script; here it holds no trap but those for the worker."""
    for path in (*(hostile / f"{name}.py" for name in FILES), *(hostile / name for name in HOSTILE)):
        path.rename(path.with_name(f"later_{path.name}"))
    script = hostile / "script.py"
    script.write_text(
        """
import asyncio, pathlib, sys
from tandem.process.supervisor import Supervisor
from tandem.process.client import EngineClient
from tests.process.stub import register, stub_config
import tandem.process.launch, msgspec
here = pathlib.Path(__file__).parent
for path in list(here.glob("later_*")):
    path.rename(path.with_name(path.name.removeprefix("later_")))
tandem.process.launch.worker_command = lambda: [sys.executable, "-P", "-m", "tests.process.stub"]
async def main():
    supervisor = Supervisor(stub_config())
    supervisor.start()
    client = EngineClient(supervisor)
    await client.start()
    print((await client.wait_ready()).backend)
    await client.close()
    await supervisor.close()
register()
asyncio.run(main())
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "stub\n", done.stderr
    assert executed(hostile) == []


@pytest.mark.parametrize("name", ["reference", "optimized"])
@pytest.mark.parametrize("form", ["package", "file"])
def test_another_package_under_the_name_of_ours_is_one_clear_error(tmp_path: Path, name: str, form: str) -> None:
    if form == "package":
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TRAP)
    else:
        (tmp_path / f"{name}.py").write_text(TRAP)
    script = tmp_path / "script.py"
    script.write_text(
        f"from tandem import LLM\ntry:\n    LLM(backend={name!r})\nexcept Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.startswith(f"ConfigError --backend: another module named {name!r}"), done.stderr
    assert str(tmp_path) in done.stdout and done.stdout.count("\n") == 1
    assert executed(tmp_path) == []


def test_another_package_named_server_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text(TRAP)
    command = [sys.executable, "-m", "tandem.cli", "serve"]  # Python puts the working directory first
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: server: another module named 'server' hides")
    assert done.stderr.count("\n") == 1 and executed(tmp_path) == []


def test_the_safe_path_keeps_everything_else_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = str(ROOT)
    assert safe_path(["", ".", "/a", str(tmp_path), "/b"]) == [own, "/a", "/b"]
    assert safe_path(["/a", own, "/b"]) == ["/a", own, "/b"]
    script = tmp_path / "scripts" / "x.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script))
    assert safe_path([str(script.parent), own, "/a"]) == [own, "/a"]
    monkeypatch.chdir(ROOT)
    assert safe_path(["/a", own]) == ["/a", own]
