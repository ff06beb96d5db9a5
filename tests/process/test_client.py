"""The client and the engine's loop, with a real process between them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tandem import SamplingParams
from tandem.config import ModelOptions, ResolvedModel, resolve
from tandem.errors import EngineDeadError, EngineError, EngineLoadingError
from tandem.generation.generation import Generator
from tandem.generation.outputs import ChoiceDelta
from tandem.process.client import EngineClient
from tandem.process.messages import Abort, Add, ToEngine, encode
from tandem.text.tokenizer import Tokenizer
from tests.process.helpers import connected, eventually, running, supervised
from tests.tiny import write_model

PROMPT = [257, 5, 77, 300]
LONG = SamplingParams(max_tokens=400, ignore_eos=True, temperature=0)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> ResolvedModel:
    return resolve(ModelOptions(model=str(model_dir), dtype="float32", enforce_eager=True))


def generator(client: EngineClient, model: ResolvedModel) -> Generator:
    return Generator(client, Tokenizer.from_directory(model.tokenizer_path), model)


async def collect(
    client: EngineClient, model: ResolvedModel, sampling: SamplingParams, prompt: list[int] = PROMPT
) -> list[ChoiceDelta]:
    return [delta async for deltas in generator(client, model).generate(prompt, sampling) for delta in deltas]


def test_a_thread_and_a_process_serve_the_same(model: ResolvedModel) -> None:
    sampling = SamplingParams(max_tokens=20, seed=3, n=2, logprobs=2, prompt_logprobs=1)

    async def answers(in_process: bool) -> list[list[ChoiceDelta]]:
        async with running(model.engine, in_process=in_process) as (_, client):
            deltas = await collect(client, model, sampling)
            return [[d for d in deltas if d.index == index] for index in (0, 1)]

    by_thread, by_process = asyncio.run(answers(True)), asyncio.run(answers(False))
    for thread, process in zip(by_thread, by_process, strict=True):
        assert [(d.text, d.token_ids, d.logprobs) for d in thread] == [
            (d.text, d.token_ids, d.logprobs) for d in process
        ]
        assert thread[-1].finish_reason == process[-1].finish_reason is not None
    assert by_thread[0][0].prompt_logprobs is not None
    assert by_thread[1][0].prompt_logprobs is None, "the choices share one prompt"


def test_requests_run_side_by_side_and_each_as_if_alone(model: ResolvedModel) -> None:
    async def scenario() -> None:
        async with running(model.engine) as (supervisor, client):
            prompts = [[1, 2, 3], [4], list(range(50))]
            sampling = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
            alone = [await collect(client, model, sampling, prompt) for prompt in prompts]
            together = await asyncio.gather(*(collect(client, model, sampling, prompt) for prompt in prompts))
            for one, other in zip(alone, together, strict=True):
                assert [t for d in one for t in d.token_ids] == [t for d in other for t in d.token_ids]
            assert client.num_unfinished == 0

    asyncio.run(scenario())


def test_an_abort_at_any_time_frees_the_request_and_may_be_repeated(model: ResolvedModel) -> None:
    async def scenario() -> None:
        async with running(model.engine) as (supervisor, client):
            for steps in (0, 1, 5):
                generation = generator(client, model).generate(PROMPT, LONG)
                iterator = aiter(generation)
                for _ in range(steps):
                    await anext(iterator)
                generation.abort()
                generation.abort()
                await eventually(lambda: client.stats.num_running + client.stats.num_waiting == 0)
            generation = generator(client, model).generate(PROMPT, SamplingParams(max_tokens=2))
            assert [d async for deltas in generation for d in deltas][-1].finish_reason
            generation.abort()  # after the end
            assert len(await collect(client, model, SamplingParams(max_tokens=3, ignore_eos=True))) == 3

    asyncio.run(scenario())


def test_a_stop_string_ends_the_work(model: ResolvedModel) -> None:
    async def scenario() -> None:
        async with running(model.engine) as (supervisor, client):
            text = "".join(d.text for d in await collect(client, model, LONG))
            stop = text[10:14]
            deltas = await collect(client, model, SamplingParams(**(_fields(LONG) | {"stop": [stop]})))
            assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
            assert "".join(d.text for d in deltas) == text[: text.index(stop)]
            await eventually(lambda: client.stats.num_running == 0)

    asyncio.run(scenario())


def _fields(sampling: SamplingParams) -> dict[str, object]:
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__}


def test_the_sockets_are_open_to_their_owner_alone(model: ResolvedModel) -> None:
    async def scenario() -> None:
        async with running(model.engine) as (supervisor, _):
            directory = supervisor.endpoint.directory
            assert directory is not None and directory.stat().st_mode & 0o777 == 0o700
            assert sorted(path.name for path in directory.iterdir()) == ["pulses", "requests"]
        assert not directory.exists()

    asyncio.run(scenario())


def test_a_model_that_cannot_be_loaded_is_reported_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path)
    broken = resolve(ModelOptions(model=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")

    async def scenario() -> None:
        async with supervised(broken.engine) as supervisor, connected(supervisor, wait=False) as client:
            with pytest.raises(EngineLoadingError):
                _ = client.info
            with pytest.raises(EngineDeadError) as failure:
                await client.wait_ready()
            assert "\n" not in str(failure.value) and "model.safetensors" in str(failure.value)

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["loading", "serving", "restarting"])
def test_the_engine_ends_with_its_parent(model: ResolvedModel, moment: str) -> None:
    script = f"""
import asyncio, os, signal
from tandem.process.client import EngineClient
from tandem.process.supervisor import Supervisor
from tandem.config import ModelOptions, resolve
async def main():
    supervisor = Supervisor(resolve(ModelOptions(model={model.engine.files.path!r})).engine)
    supervisor.start()
    client = EngineClient(supervisor)
    await client.start()
    if {moment != "loading"}:
        await client.wait_ready()
    if {moment == "restarting"}:
        os.kill(supervisor.process_id, signal.SIGKILL)
        while client.status.state != "restarting" or supervisor.process_id is None:
            await asyncio.sleep(0.001)
    print(supervisor.process_id, supervisor.endpoint.directory, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    process_id, directory = parent.stdout.readline().split()
    child = psutil.Process(int(process_id))
    assert child.is_running() and Path(directory).exists()
    parent.kill()
    parent.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(5)
    assert not child.is_running()
    assert not Path(directory).exists(), "the sockets were left behind"


def test_closing_ends_the_process_and_is_idempotent(model: ResolvedModel) -> None:
    async def scenario() -> None:
        async with running(model.engine) as (supervisor, client):
            process = psutil.Process(supervisor.process_id)
            open_request = asyncio.create_task(collect(client, model, LONG))
            await asyncio.sleep(0.1)
            for _ in range(2):
                await client.close()
                await supervisor.close()
            with pytest.raises(EngineError):
                await open_request
            assert not process.is_running()

    asyncio.run(scenario())


def test_what_is_submitted_in_one_turn_travels_together_and_before_its_abort(
    model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[ToEngine] = []

    def record(message: Any) -> bytes:
        sent.append(message)
        return encode(message)

    async def scenario() -> None:
        async with running(model.engine) as (_, client):
            monkeypatch.setattr("tandem.process.client.encode", record)
            generations = [generator(client, model).generate(PROMPT, LONG) for _ in range(3)]
            assert not sent
            await asyncio.sleep(0)
            [added] = sent
            assert isinstance(added, Add) and sum(map(len, added.request_ids)) == 3

            last = generator(client, model).generate(PROMPT, LONG)
            last.abort()
            assert [type(message) for message in sent[1:]] == [Add, Abort]
            assert sent[1].request_ids == [sent[2].request_ids]
            for generation in generations:
                generation.abort()
            await eventually(lambda: client.stats.num_running == 0)

    asyncio.run(scenario())
