"""``tests.gpu.check`` on a machine without a GPU: all its parts run, and whatever a part does, the others count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import run_tests
from tests.gpu.check import save

ROOT = Path(__file__).parents[2]
PLANTED = """
import sys
from tests.gpu.check import Part, main
sys.exit(main(sys.argv[2:], [Part(n, w, (sys.executable, "-u", "-c", code), c) for n, w, code, c in {parts}]))
"""
SAYS = 'print(\'@figure ["found", {"us": 1}]\')'
LEAVES = f"{SAYS}; import subprocess; p = subprocess.Popen(['sleep', '99']); print('child', p.pid)"
HANGS = f"{LEAVES}; p.wait()"


def check(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu.check", *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def planted(out: Path, seconds: float, *parts: tuple[str, float, str, bool]) -> list[str]:
    """The command that runs parts of a test's own: name, weight, program, and whether it counts."""
    code = PLANTED.format(parts=list(parts))
    return [sys.executable, "-c", code, "-", "--dry", "--out", str(out), "--commit", "c", "--seconds", str(seconds)]


def run_planted(out: Path, seconds: float, *parts: tuple[str, float, str, bool]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(planted(out, seconds, *parts), cwd=ROOT, capture_output=True, text=True)


def parts_in(out: Path) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(out.read_text())["parts"]
    return parts


def is_running(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def child_in(output: str) -> int:
    return next(int(line.split()[-1]) for line in output.splitlines() if "] child " in line)


def test_a_dry_run_goes_through_all_that_a_gpu_would(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = check("--dry", "--out", str(out), "--commit", "cafe")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["machine"]["commit"] == "cafe" and report["machine"]["packages"]["torch"]
    assert list(report["parts"]) == ["limits", "kernels", "engine", "tests", "peers"]
    figures = {name: part["figures"] for name, part in report["parts"].items()}
    errors = [values for part in figures.values() for values in part.values() if "error" in values]
    assert not errors and all(part["status"] == "done" for part in report["parts"].values())
    assert figures["limits"]["limits"].keys() == {"bytes_per_s", "flop_per_s"}
    for op in ("attention decode", "attention prefill", "norm", "gate", "rope", "sample", "mask", "penal", "experts"):
        found = [values for name, values in figures["kernels"].items() if op in name]
        assert found and all(len(values) == 2 and values["us"] > 0 for values in found), op
    for way in ("tiny", "tiny no overlap", "tiny eager"):
        assert figures["engine"][f"{way}, batch 3"]["output_tokens_per_s"] > 0
        assert figures["engine"][f"{way}, compiled while serving"] == {"kernels": 0}
    outcome = figures["tests"]["pytest"]
    assert outcome["passed"] > 90 and outcome["failed"] == 0 and outcome["status"] == 0
    assert figures["peers"]["generate_batch tiny, batch 3"]["output_tokens"] == 18
    assert "[kernels] gate 2: {" in done.stdout, "what is found is printed, with its part"
    assert "tests  done, 1 figures, 0 not begun" in done.stdout


def test_a_part_that_hangs_is_killed_and_costs_only_its_share(tmp_path: Path) -> None:
    """With all that it has started; what it had found stays, and the parts after it have their time."""
    out = tmp_path / "figures.json"
    began = time.monotonic()
    done = run_planted(out, 6, ("hangs", 1, HANGS, True), ("works", 2, SAYS, True))
    assert time.monotonic() - began < 7 and done.returncode == 1
    parts = parts_in(out)
    assert parts["hangs"]["status"].startswith("killed after 2 s")
    assert parts["works"]["status"] == "done"
    assert parts["hangs"]["figures"] == parts["works"]["figures"] == {"found": {"us": 1}}
    assert not is_running(child_in(done.stdout))


def test_a_part_ends_with_its_process_whatever_that_leaves_behind(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    began = time.monotonic()
    done = run_planted(out, 60, ("leaves", 1, LEAVES, True))
    assert time.monotonic() - began < 10 and done.returncode == 0
    assert parts_in(out)["leaves"] == {"status": "done", "figures": {"found": {"us": 1}}} | {
        "seconds": parts_in(out)["leaves"]["seconds"]
    }
    assert not is_running(child_in(done.stdout))


@pytest.mark.parametrize(("counts", "status"), [(True, 1), (False, 0)])
def test_a_part_that_fails_is_reported_and_fails_the_run_if_it_counts(
    tmp_path: Path, counts: bool, status: int
) -> None:
    out = tmp_path / "figures.json"
    fails = f"{SAYS}; print('@figure [\"cut\", '); raise SystemExit('no such device')"
    done = run_planted(out, 60, ("fails", 1, fails, counts), ("works", 1, SAYS, True))
    assert done.returncode == status
    parts = parts_in(out)
    assert parts["fails"]["status"] == "failed with 1" and parts["fails"]["last line"] == "no such device"
    assert parts["fails"]["figures"] == {"found": {"us": 1}} and parts["works"]["status"] == "done"


def test_figures_are_written_as_they_are_found(tmp_path: Path) -> None:
    """Whoever ends the run early keeps them, and ends the part under way."""
    out = tmp_path / "figures.json"
    command = planted(out, 60, ("hangs", 1, HANGS, True))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert "found" in first and parts_in(out)["hangs"]["figures"] == {"found": {"us": 1}}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    assert not is_running(child_in(second))
    assert list(tmp_path.iterdir()) == [out], "no partial file is left"


def test_a_file_of_figures_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Whoever reads it while it is written reads what stood in it."""
    out = tmp_path / "figures.json"
    save({"first": 1}, out)
    with out.open(encoding="utf-8") as opened:
        save({"second": 2}, out)
        assert json.load(opened) == {"first": 1} and json.loads(out.read_text()) == {"second": 2}


def test_missing_packages_are_one_line_that_says_how_to_bring_them(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['msgspec'] = None")
    done = check("--dry", "--out", str(tmp_path / "out"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and not done.stderr
    [line] = done.stdout.splitlines()
    assert "not installed here: msgspec" in line and "pip download" in line and "--find-links" in line
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_nothing_begins(tmp_path: Path) -> None:
    done = check("--out", str(tmp_path / "out"), "--seconds", "20", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, "gpu-check: torch finds no CUDA device here\n")


def test_without_a_repository_the_commit_is_unknown(tmp_path: Path) -> None:
    code = f"from tests.gpu import check; check.ROOT = {str(tmp_path)!r}; print(check.commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "unknown\n"


def test_a_task_that_fails_or_has_no_time_left_spoils_no_other() -> None:
    code = (
        "import time; from tests.gpu.parts import *;"
        "tasks = [Task('long', lambda: 1 / 0, 50.0), Task('bad', lambda: 1 / 0), Task('', lambda: [('good', {})])];"
        "raise SystemExit(run(lambda setting: tasks, Setting(True, {}, time.monotonic() + 20)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    figures = dict(json.loads(line.removeprefix("@figure ")) for line in done.stdout.splitlines())
    assert figures["long"]["not begun"].startswith("it needs 50 s, and")
    assert figures["bad"]["error"].startswith("ZeroDivisionError") and figures["good"] == {}
    assert done.returncode == 1


def test_tests_that_need_what_is_not_installed_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And named: one file that cannot be imported must not end them all."""
    (tmp_path / "test_a.py").write_text("from nowhere.at_all import this\nimport json, missing_too")
    (tmp_path / "test_b.py").write_text("import json\ndef f():\n    import nowhere")
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    want = {"test_a.py": ["missing_too", "nowhere"]}
    assert run_tests.absent([tmp_path]) == run_tests.absent([tmp_path / "test_a.py", tmp_path / "test_b.py"]) == want


def test_what_triton_compiles_is_counted() -> None:
    """Ahead of time here, by the same compiler that a launch would call: else a count of 0 would say nothing."""
    pytest.importorskip("triton")
    code = (
        "from tests.kernels.compile_all import main; from tests.gpu.measure_engine import Compilations\n"
        "with Compilations() as c: main(90, 'fp16 gelu_tanh'); main(90, 'bf16 gelu_tanh'); print('count', c.count)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "count 1", done.stderr
