"""What travels between the processes arrives as it was sent, and nothing else is taken for a message."""

from __future__ import annotations

import io
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem import SamplingParams
from tandem.config import EngineConfig
from tandem.engine import EngineInfo, EngineOutput, EngineRequest, EngineStats, LogprobColumns, TokenLogprobs
from tandem.models.families import read_model_config
from tandem.models.hub import ModelFiles
from tandem.process.transport import (
    AbortRequests,
    AddRequests,
    Failed,
    FromEngine,
    Heartbeat,
    Loading,
    Ready,
    Shutdown,
    Start,
    StepDone,
    ToEngine,
    decode_from_engine,
    decode_to_engine,
    encode,
)
from tandem.process.worker import read_start, write_start

REQUEST = EngineRequest(
    request_id="a",
    prompt_token_ids=[1, 2],
    sampling=SamplingParams(logit_bias={3: 1.0}, stop_token_ids=[4]),
    max_tokens=5,
    seed=2**64 - 1,
    bad_words_token_ids=((1, 2), (3,)),
)
ENTRY = TokenLogprobs(1, -0.5, 1, [1], [-0.5])
COLUMNS = LogprobColumns.of([ENTRY])
OUTPUT = EngineOutput("a", [1], COLUMNS, COLUMNS, "stop", 4, None, 2, 0.5)
INFO = EngineInfo(
    backend="b", device="cpu", dtype="float32", vocab_size=9, max_model_len=8, kv_cache_tokens=8, num_parameters=1
)


@pytest.mark.parametrize(
    "message", [AddRequests([REQUEST]), AbortRequests(["a"]), Shutdown()], ids=lambda m: m.__class__
)
def test_messages_to_the_engine_arrive_as_sent(message: ToEngine) -> None:
    assert decode_to_engine(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [Heartbeat(1.5), Loading(0.5), Ready(INFO), StepDone([OUTPUT], EngineStats(num_running=1)), Failed("x")],
    ids=lambda m: m.__class__,
)
def test_messages_from_the_engine_arrive_as_sent(message: FromEngine) -> None:
    assert decode_from_engine(encode(message)) == message


def test_a_start_message_travels_over_a_pipe() -> None:
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8}
    raw |= {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "rms_norm_eps": 1e-6}
    model = read_model_config(raw | {"max_position_embeddings": 64})
    config = EngineConfig(files=ModelFiles(path="p"), model=model, backend="auto", dtype="float32", max_model_len=8)
    pipe, start = io.BytesIO(), Start(config, "ipc://a", "ipc://b")
    write_start(pipe, start)
    pipe.seek(0)
    assert read_start(pipe) == start


@given(st.binary(max_size=64) | st.binary(max_size=8).map(lambda tail: encode(AddRequests([REQUEST]))[:-4] + tail))
def test_any_other_frame_is_refused(frame: bytes) -> None:
    for decode in (decode_to_engine, decode_from_engine):
        try:
            message = decode(frame)
        except msgspec.MsgspecError:
            continue
        assert isinstance(message, ToEngine | FromEngine)


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
