"""An engine that dies, stops or hangs: who notices, how fast, what clients see, and that the next request works."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tandem.errors import EngineDeadError, EngineLoadingError, EngineStalledError
from tandem.process import exit_reason
from tandem.process.client import EngineClient
from tandem.process.supervisor import Supervisor
from tests.process.helpers import connected, eventually, finish, request, running, supervised, works
from tests.process.stub import stub_config

pytestmark = pytest.mark.usefixtures("stub")


def pid_of(supervisor: Supervisor) -> int:
    assert supervisor.process_id is not None
    return supervisor.process_id


async def comes_back(client: EngineClient) -> None:
    await eventually(lambda: client.status.state == "ready", 20)
    await eventually(lambda: client.stats.num_running == 0)
    assert await works(client)


def test_a_killed_engine_is_restarted_and_its_requests_fail_at_once() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client):
            streams = [client.submit([request(max_tokens=4000), request(max_tokens=4000)]) for _ in range(3)]
            for stream in streams:
                await stream.next()
            call = asyncio.create_task(client.call("replace_weights", "slow"))
            await asyncio.sleep(0.1)
            assert client.num_unfinished == 6
            killed = pid_of(supervisor)
            began = time.monotonic()
            os.kill(killed, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(EngineDeadError, match=r"was killed \(SIGKILL\); it is being restarted"):
                    await finish(stream)
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await call
            seconds = time.monotonic() - began
            print(f"SIGKILL: {len(streams)} streams failed after {seconds:.3f} s")
            assert seconds < 1
            assert client.status.state == "restarting" and "\n" not in client.status.detail
            assert client.num_unfinished == client.stats.num_running == 0
            with pytest.raises(EngineLoadingError, match="SIGKILL"):
                client.submit([request()])
            await comes_back(client)
            print(f"SIGKILL: ready again after {time.monotonic() - began:.3f} s")
            assert pid_of(supervisor) != killed

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("salt", "reason"),
    [
        ("raise", "has failed: RuntimeError"),
        ("add raises", "has failed: RuntimeError"),
        ("exit 0", "has ended unexpectedly with status 0"),
        ("exit 7", "has ended unexpectedly with status 7"),
        ("kill", "was killed (SIGKILL)"),
    ],
)
def test_whatever_ends_an_engine_is_said_and_mended(salt: str, reason: str) -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            neighbour = client.submit([request(max_tokens=4000)])
            await neighbour.next()
            culprit = client.submit([request(salt)])
            for stream in (neighbour, culprit):
                with pytest.raises(EngineDeadError, match=re.escape(f"the engine process {reason}; it is being")):
                    await finish(stream)
            await comes_back(client)

    asyncio.run(scenario())


def test_an_exception_in_a_thread_is_mended_too() -> None:
    async def scenario() -> None:
        async with running(in_process=True) as (_, client):
            with pytest.raises(EngineDeadError, match=r"has failed: RuntimeError; it is being"):
                await finish(client.submit([request("raise")]))
            await comes_back(client)

    asyncio.run(scenario())


def test_the_killer_of_processes_that_want_too_much_memory_is_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 3\noom 5\noom_kill 5\noom_group_kill 0\n")
    monkeypatch.setattr(exit_reason, "_counters", lambda: [events, tmp_path / "none"])

    async def scenario() -> None:
        async with running() as (supervisor, client):
            stream = client.submit([request(max_tokens=4000)])
            await stream.next()
            events.write_text(events.read_text().replace("oom_kill 5", "oom_kill 6"))
            os.kill(pid_of(supervisor), signal.SIGKILL)
            with pytest.raises(EngineDeadError, match=r"\(SIGKILL\), probably by the system for want of memory; it"):
                await finish(stream)
            await comes_back(client)
            os.kill(pid_of(supervisor), signal.SIGKILL)  # the counter stands still
            await eventually(lambda: client.status.state == "restarting")
            assert "memory" not in client.status.detail

    asyncio.run(scenario())


def test_the_counters_of_this_machine_can_be_read() -> None:
    assert exit_reason.count_oom_kills() >= 0
    assert all(file.is_absolute() for file in exit_reason._counters())


def test_a_stopped_engine_is_unhealthy_and_its_streams_go_on_when_it_returns() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client):
            stream = client.submit([request(max_tokens=500)])
            await stream.next()
            os.kill(pid_of(supervisor), signal.SIGSTOP)
            seconds = await eventually(lambda: client.status.state == "unhealthy", 4)
            print(f"SIGSTOP: unhealthy after {seconds:.3f} s")
            assert 1 < seconds < 2.5
            with pytest.raises(EngineStalledError, match="no heartbeat"):
                client.submit([request()])
            await asyncio.sleep(1)
            assert client.num_unfinished == 1
            os.kill(pid_of(supervisor), signal.SIGCONT)
            outputs = await finish(stream)
            assert outputs[-1].finish_reason == "length"
            assert client.status.state == "ready" and await works(client)

    asyncio.run(scenario())


def test_an_engine_that_stays_silent_is_replaced() -> None:
    async def scenario() -> None:
        async with running(stall_timeout=3) as (supervisor, client):
            stream = client.submit([request(max_tokens=4000)])
            await stream.next()
            began = time.monotonic()
            os.kill(pid_of(supervisor), signal.SIGSTOP)
            with pytest.raises(EngineStalledError, match="no heartbeat for 3"):
                await finish(stream)
            assert 2.5 < time.monotonic() - began < 5
            await eventually(lambda: client.status.state == "restarting")
            assert "has sent no heartbeat" in client.status.detail and "memory" not in client.status.detail
            await comes_back(client)

    asyncio.run(scenario())


def test_an_engine_that_is_stuck_in_a_step_is_replaced() -> None:
    async def scenario() -> None:
        async with running(stall_timeout=2) as (_, client):
            slow = client.submit([request("pause 1", max_tokens=2)])
            assert len(await finish(slow)) == 2, "a long step is no stall"
            began = time.monotonic()
            with pytest.raises(EngineStalledError, match="stuck in a step for 2"):
                await finish(client.submit([request("hang")]))
            assert 1.9 < time.monotonic() - began < 4
            await comes_back(client)

    asyncio.run(scenario())


def test_a_thread_that_is_stuck_fails_its_requests_and_may_come_back() -> None:
    async def scenario() -> None:
        async with running(in_process=True, stall_timeout=1) as (_, client):
            with pytest.raises(EngineStalledError, match="stuck in a step for 1"):
                await finish(client.submit([request("pause 3", max_tokens=4000)]))
            assert client.status.state == "unhealthy"
            await comes_back(client)

    asyncio.run(scenario())


def test_without_a_stall_timeout_a_step_may_last() -> None:
    async def scenario() -> None:
        async with running(stall_timeout=0) as (_, client):
            assert len(await finish(client.submit([request("pause 3", max_tokens=2)]))) == 2

    asyncio.run(scenario())


def test_a_front_that_was_held_up_itself_accuses_nobody() -> None:
    async def scenario() -> None:
        async with running(stall_timeout=2) as (_, client):
            stream = client.submit([request(max_tokens=1000)])
            await stream.next()
            time.sleep(3)
            await stays_ready(client)
            assert (await finish(stream))[-1].finish_reason == "length"

    asyncio.run(scenario())


def test_when_front_and_engine_were_stopped_together_nobody_is_accused() -> None:
    async def scenario() -> None:
        async with running(stall_timeout=2) as (supervisor, client):
            stream = client.submit([request("pause 4", max_tokens=500)])
            await asyncio.sleep(0.3)
            os.kill(pid_of(supervisor), signal.SIGSTOP)
            time.sleep(3)
            os.kill(pid_of(supervisor), signal.SIGCONT)
            await stays_ready(client)
            assert (await finish(stream))[-1].finish_reason == "length"

    asyncio.run(scenario())


async def stays_ready(client: EngineClient, seconds: float = 0.6) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(0.01)
        assert client.status.state == "ready", client.status


def test_after_so_many_restarts_it_gives_up() -> None:
    async def scenario() -> None:
        async with running(max_restarts=2) as (supervisor, client):
            for _ in range(2):
                with pytest.raises(EngineDeadError, match="it is being restarted"):
                    await finish(client.submit([request("kill")]))
                await comes_back(client)
            with pytest.raises(EngineDeadError, match="2 restarts in 10 minutes are the limit"):
                await finish(client.submit([request("kill")]))
            assert "limit" in await asyncio.wait_for(supervisor.wait_dead(), 1)
            assert client.status.state == "dead" and supervisor.process_id is None
            with pytest.raises(EngineDeadError):
                client.submit([request()])

    asyncio.run(scenario())


def test_old_deaths_are_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.process.supervisor.RESTART_WINDOW_SECONDS", 1.0)

    async def scenario() -> None:
        async with running(max_restarts=1) as (_, client):
            for _ in range(3):
                with pytest.raises(EngineDeadError, match="restart 1 of 1"):
                    await finish(client.submit([request("kill")]))
                await comes_back(client)
                await asyncio.sleep(1.1)

    asyncio.run(scenario())


def test_an_engine_that_cannot_be_built_is_not_tried_again(tmp_path: Path) -> None:
    obstacle = tmp_path / "obstacle"
    obstacle.write_text("")

    async def scenario() -> None:
        async with supervised(stub_config(str(obstacle))) as supervisor:
            assert await asyncio.wait_for(supervisor.wait_dead(), 10) == "there is a file in the way"
            async with connected(supervisor, wait=False) as client:
                with pytest.raises(EngineDeadError, match="^there is a file in the way$"):
                    await client.wait_ready()

    asyncio.run(scenario())


def test_an_engine_that_cannot_be_built_again_counts_as_dying_again(tmp_path: Path) -> None:
    obstacle = tmp_path / "obstacle"

    async def scenario() -> None:
        async with running(stub_config(str(obstacle)), max_restarts=2) as (supervisor, client):
            obstacle.write_text("")
            os.kill(pid_of(supervisor), signal.SIGKILL)
            await eventually(lambda: "restart 2 of 2" in client.status.detail, 10)
            assert "there is a file in the way" in client.status.detail
            obstacle.unlink()
            await comes_back(client)

    asyncio.run(scenario())


def test_a_process_that_cannot_be_started_counts_as_dying_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(max_restarts=2) as (supervisor, client):
            with monkeypatch.context() as patch:
                patch.setattr("tandem.process.launch.worker_command", lambda: ["/nowhere/python"])
                os.kill(pid_of(supervisor), signal.SIGKILL)
                await eventually(lambda: "restart 2 of 2" in client.status.detail)
                assert "cannot be started: No such file" in client.status.detail
            await comes_back(client)

    asyncio.run(scenario())


def test_closing_while_a_restart_is_due_leaves_no_process() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client):
            for _ in range(2):  # the second restart waits for a second
                await eventually(lambda: client.status.state == "ready", 20)
                os.kill(pid_of(supervisor), signal.SIGKILL)
                await eventually(lambda: client.status.state == "restarting")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert not [child for child in psutil.Process().children() if "tests.process.stub" in child.cmdline()]
            await asyncio.sleep(0.02)

    asyncio.run(scenario())
