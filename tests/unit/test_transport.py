"""What travels between the processes arrives as it was sent, and nothing else is taken for a message."""

from __future__ import annotations

import io
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tandem import SamplingParams
from tandem.config import EngineConfig
from tandem.engine import EngineInfo, EngineOutput, EngineRequest, EngineStats, LogprobColumns, TokenLogprobs
from tandem.errors import ConfigError
from tandem.models.families import read_model_config
from tandem.models.hub import ModelFiles
from tandem.process.messages import (
    Abort,
    Add,
    Broken,
    Built,
    Bye,
    Call,
    Ending,
    Failure,
    FrameError,
    FromEngine,
    Heartbeat,
    Hello,
    Method,
    Probe,
    ReplaceWeights,
    Reply,
    ResetPrefixCache,
    Sleep,
    Start,
    StartProfile,
    Step,
    StepBody,
    ToEngine,
    WakeUp,
    Welcome,
    decoder,
    encode,
)
from tandem.process.profiler import ProfilerConfig
from tandem.process.submission import Prompt, Shared, pack, unpack
from tandem.process.transport import Endpoint, listen, make_socket_directory
from tandem.process.worker import read_report, read_start, write_frame

ENTRY = TokenLogprobs(1, -0.5, 1, [1], [-0.5])
COLUMNS = LogprobColumns.of([ENTRY])
OUTPUT = EngineOutput("a", [1], COLUMNS, COLUMNS, "stop", 4, None, 2, 0.5)
INFO = EngineInfo(
    backend="b", device="cpu", dtype="float32", vocab_size=9, max_model_len=8, kv_cache_tokens=8, num_parameters=1
)


@pytest.mark.parametrize(
    "message",
    [Hello(1, 0), Add(1, 2, 3, [["a"], []]), Abort(1, 2, ["a"]), Call(1, 2, "c"), Probe(1, 2), Bye(1, 2)],
    ids=lambda m: m.__class__,
)
def test_messages_to_the_engine_arrive_as_sent(message: ToEngine) -> None:
    assert decoder(ToEngine)(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [Welcome(1, 0, 2), Step(1, 2, ["a"]), Reply(1, 2, "c"), Broken(1, 2, "why")],
    ids=lambda m: m.__class__,
)
def test_messages_from_the_engine_arrive_as_sent(message: FromEngine) -> None:
    assert decoder(FromEngine)(encode(message)) == message


@pytest.mark.parametrize(
    "body",
    [
        StepBody([OUTPUT], EngineStats(num_running=1)),
        INFO,
        Heartbeat(1, 0.5, False, 1.5, EngineStats()),
        Failure("a", "b"),
    ],
    ids=lambda m: m.__class__,
)
def test_bodies_arrive_as_sent(body: Any) -> None:
    assert decoder(type(body))(encode(body)) == body


@pytest.mark.parametrize("method", [ResetPrefixCache(), Sleep(2), WakeUp(), ReplaceWeights("p"), StartProfile()])
def test_methods_arrive_as_sent(method: Method) -> None:
    assert decoder(Method)(encode(method)) == method


def test_start_and_reports_travel_over_pipes() -> None:
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8}
    raw |= {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "rms_norm_eps": 1e-6}
    model = read_model_config(raw | {"max_position_embeddings": 64})
    config = EngineConfig(files=ModelFiles(path="p"), model=model, backend="auto", dtype="float32", max_model_len=8)
    pipe, start = (
        io.BytesIO(),
        Start(config, Endpoint.over_tcp("tcp://a:7"), 3, ProfilerConfig(torch_profiler_dir="/p")),
    )
    write_frame(pipe, start)
    pipe.seek(0)
    assert read_start(pipe) == start
    assert read_start(pipe) is None, "the parent is gone"
    reports = io.BytesIO()
    for report in (Built(), Ending("why")):
        write_frame(reports, report)
    half = io.BytesIO(reports.getvalue()[:-1])
    reports.seek(0)
    assert [read_report(reports) for _ in range(3)] == [Built(), Ending("why"), None]
    assert [read_report(half) for _ in range(2)] == [Built(), None]


@given(st.binary(max_size=64) | st.binary(max_size=8).map(lambda tail: encode(Add(1, 2, 1, [["a"]]))[:-4] + tail))
def test_any_other_frame_is_refused(frame: bytes) -> None:
    for kind in (ToEngine, FromEngine, StepBody, Prompt, Shared, Method, Heartbeat, Failure):
        try:
            message = decoder(kind)(frame)
        except FrameError as error:
            assert "\n" not in str(error)
            continue
        assert isinstance(message, kind)


# ---------------------------------------------------------------------- submissions

ids = st.lists(st.integers(0, INFO.vocab_size - 1), min_size=1, max_size=4)
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    allowed_token_ids=st.none() | ids,
    logit_bias=st.none() | st.dictionaries(st.integers(0, 8), st.floats(-100, 100)),
    stop=st.lists(st.text(min_size=1), max_size=2),
)


@st.composite
def submissions(draw: st.DrawFn) -> list[EngineRequest]:
    """Requests that share some of what they can share."""
    prompts, parameters = (
        draw(st.lists(ids, min_size=1, max_size=3)),
        draw(st.lists(samplings, min_size=1, max_size=2)),
    )
    words = draw(st.lists(st.lists(ids.map(tuple), max_size=2).map(tuple), min_size=1, max_size=2))
    return [
        EngineRequest(
            request_id=f"r{number}",
            prompt_token_ids=(prompt := draw(st.sampled_from(prompts))),
            sampling=draw(st.sampled_from(parameters)),
            max_tokens=draw(st.integers(0, INFO.max_model_len - len(prompt))),
            seed=draw(st.integers(0, 2**64 - 1)),
            choice_index=draw(st.integers(0, 200)),
            eos_token_ids=draw(st.sampled_from([(), (1, 2)])),
            bad_words_token_ids=draw(st.sampled_from(words)),
            priority=draw(st.integers(-(2**31), 2**31)),
            cache_salt=draw(st.sampled_from(["", "salt"])),
            arrival_time=draw(st.floats(0, 1e9)),
            group=draw(st.sampled_from(["", "group"])),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


@given(submissions())
def test_requests_arrive_as_sent(requests: list[EngineRequest]) -> None:
    packed = pack(requests)
    bodies = [*packed.shared, *packed.prompts]
    arrived = list(unpack(INFO, len(packed.shared), packed.request_ids, bodies, str))
    assert arrived == requests and not packed.refused


def test_what_choices_share_travels_once_and_is_shared_in_the_engine() -> None:
    prompts = [[i % 9 for i in range(1000)] for _ in range(2)]
    sampling = SamplingParams(allowed_token_ids=range(9), n=50)
    words = ((1, 2),) * 100
    requests = [
        EngineRequest(
            request_id=f"{p}-{i}",
            prompt_token_ids=prompt,
            sampling=sampling,
            max_tokens=1,
            seed=p,
            choice_index=i,
            bad_words_token_ids=words,
        )
        for p, prompt in enumerate(prompts)
        for i in range(50)
    ]
    packed = pack(requests)
    assert (len(packed.shared), len(packed.prompts)) == (1, 2)
    assert sum(map(len, packed.prompts)) < 2 * (4 * 1000 + 50 * 30)
    info = msgspec.structs.replace(INFO, max_model_len=2000, kv_cache_tokens=2000)
    arrived = list(unpack(info, 1, packed.request_ids, [*packed.shared, *packed.prompts], str))
    assert arrived == requests
    assert len({id(r.prompt_token_ids) for r in arrived if isinstance(r, EngineRequest)}) == 2
    assert len({id(r.sampling) for r in arrived if isinstance(r, EngineRequest)}) == 1


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address", ["", "5555", "tcp://", "tcp://a", "tcp://:5", "tcp://a:0", "tcp://a:65535", "tcp://a:x", "udp://a:5"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--engine-address"):
        Endpoint.over_tcp(address)


def test_every_engine_over_tcp_has_a_secret_of_its_own() -> None:
    one, other = (Endpoint.over_tcp("tcp://127.0.0.1:5555") for _ in range(2))
    assert one.secret != other.secret and len(one.secret) == 64
    assert one.heartbeats == "tcp://127.0.0.1:5556"


def test_sockets_have_short_paths_whatever_the_place_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    runtime = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    directory = make_socket_directory()
    try:
        assert directory.parent == runtime and directory.stat().st_mode & 0o777 == 0o700
        with zmq.Context() as context:
            listen(context, zmq.ROUTER, Endpoint.in_directory(directory).requests, "").close()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
        last = make_socket_directory()
        assert last.parent == Path("/tmp")
        last.rmdir()
        monkeypatch.setattr("tandem.process.transport.MAX_UNIX_PATH", 20)
        with pytest.raises(ConfigError, match="TMPDIR: Unix sockets need a writable directory"):
            make_socket_directory()
    finally:
        shutil.rmtree(runtime)


@given(st.integers(0, 4), st.integers(0, 5), st.randoms())
def test_columns_give_back_the_entries(num_positions: int, num_top: int, draw: random.Random) -> None:
    entries = [
        TokenLogprobs(
            draw.randrange(1 << 32),
            -draw.randrange(1 << 20) / 1024,
            draw.randrange(1, 1 << 32),
            [draw.randrange(1 << 32) for _ in range(num_top)],
            [-draw.randrange(1 << 20) / 1024 for _ in range(num_top)],
        )
        for _ in range(num_positions)
    ]
    columns = LogprobColumns.of(entries)
    assert list(columns) == entries and len(columns) == num_positions
