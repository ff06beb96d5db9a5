"""Reading weights: whole, sharded, tied, cast, dummy; and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file

import tandem.models.checkpoint
from tandem.config import EngineConfig, ModelOptions, resolve
from tandem.errors import CheckpointError
from tandem.models.checkpoint import available_memory, iterate_weights, load_weights

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
EMBEDDING = "model.embed_tokens.weight"


def config_of(directory: Path, changes: dict[str, Any] | None = None, **options: Any) -> EngineConfig:
    (directory / "config.json").write_text(json.dumps(CONFIG | (changes or {})))
    return resolve(ModelOptions(model=str(directory), **({"dtype": "float32"} | options))).engine


def weights_of(config: EngineConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in config.model.tensor_shapes().items()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def error_of(config: EngineConfig) -> str:
    with pytest.raises(CheckpointError) as error:
        load_weights(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_file(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    weights = weights_of(config)
    save_file(weights | {"model.rotary.inv_freq": torch.ones(3)}, tmp_path / "model.safetensors")
    save_file({"other": torch.ones(1)}, tmp_path / "adapter.safetensors")
    assert_same(load_weights(config), weights)


def test_shards_by_index(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    weights = weights_of(config)
    names = list(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "consolidated.safetensors")  # not in the index
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load_weights(config), weights)
    (tmp_path / "b.safetensors").unlink()
    assert error_of(config) == "model.safetensors.index.json names files that are not there: b.safetensors"


def test_shards_without_index(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    weights = weights_of(config)
    for i, (name, tensor) in enumerate(weights.items()):
        save_file({name: tensor}, tmp_path / f"part-{i:02}.safetensors")
    assert_same(load_weights(config), weights)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "which is not a file beside it"),
        ('{"weight_map": {"a": 3}}', "which is not a file beside it"),
        ('{"weight_map": {"a": ["x"]}}', "which is not a file beside it"),
        ('{"weight_map": {"a": ".."}}', "files that are not there"),
        ('{"weight_map": {"a": ""}}', "files that are not there"),
        ('{"weight_map": {"a": "x\\u0000"}}', "files that are not there"),
        ('{"weight_map": {}}', "the checkpoint lacks"),
        ('{"weight_map": []}', "is not an index of safetensors"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
    ],
)
def test_a_bad_index(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index, errors="surrogateescape")
    assert message in error_of(config_of(tmp_path))


def test_directories_in_place_of_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "model.safetensors is truncated or damaged" in error_of(config_of(tmp_path))
    (tmp_path / "model.safetensors.index.json").mkdir()
    assert "model.safetensors.index.json cannot be read" in error_of(config_of(tmp_path))


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((2**33).to_bytes(8, "little"))
        file.truncate(2**33 + 8)
    assert error_of(config).startswith("model.safetensors is truncated or damaged: ")


def test_tied_embeddings_need_no_output_matrix(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"tie_word_embeddings": True})
    save_file(weights_of(config), tmp_path / "model.safetensors")
    assert "lm_head.weight" not in load_weights(config)
    untied = config_of(tmp_path)
    assert error_of(untied) == "the checkpoint lacks lm_head.weight"


def test_cast(tmp_path: Path) -> None:
    config = config_of(tmp_path, dtype="bfloat16")
    weights = weights_of(config)
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    assert_same(load_weights(config), {name: tensor.half().bfloat16() for name, tensor in weights.items()})


def test_tensors_do_not_refer_to_the_file(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    save_file(weights_of(config), tmp_path / "model.safetensors")
    loaded = load_weights(config)
    (tmp_path / "model.safetensors").write_bytes(b"")  # reading a mapped page would now kill the process
    assert_same(loaded, weights_of(config))


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, load_format="dummy")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    fractions: list[float] = []
    load_weights(config, on_progress=fractions.append)
    assert len(fractions) == len(config.model.tensor_shapes())
    assert fractions == sorted(set(fractions)) and fractions[-1] == 1.0
    assert "Loading weights: 100%" in terminal.getvalue()


def test_no_bar_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_weights(config_of(tmp_path, load_format="dummy"))
    assert capsys.readouterr().err == ""


def test_dummy_weights_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, load_format="dummy", seed=3)
    weights = load_weights(config)
    assert {name: tuple(w.shape) for name, w in weights.items()} == config.model.tensor_shapes()
    smaller = load_weights(config_of(tmp_path, {"num_hidden_layers": 1}, load_format="dummy", seed=3))
    assert_same(smaller, {name: weights[name] for name in smaller})
    assert not torch.equal(weights[EMBEDDING], weights["lm_head.weight"])
    other = load_weights(msgspec.structs.replace(config, seed=4))
    assert not torch.equal(weights[EMBEDDING], other[EMBEDDING])
    assert torch.equal(weights["model.norm.weight"], torch.ones(8))
    assert 0.015 < torch.cat([w.flatten() for w in weights.values() if w.ndim == 2]).std() < 0.025


def test_dummy_norms_act_as_ones_where_an_offset_is_added(tmp_path: Path) -> None:
    weights = load_weights(config_of(tmp_path, {"architectures": ["Gemma2ForCausalLM"]}, load_format="dummy"))
    assert torch.equal(weights["model.norm.weight"], torch.zeros(8))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-2.bin", "weights.pt", "model.pth"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02")
    message = error_of(config_of(tmp_path))
    assert f"only pickled weights ({name})" in message and "safe_serialization=True" in message


def test_no_weights_at_all(tmp_path: Path) -> None:
    assert "has no *.safetensors file" in error_of(config_of(tmp_path))


def test_missing_tensors(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    weights = weights_of(config)
    lost = [name for name in weights if name.startswith("model.layers.1.")]
    save_file({name: tensor for name, tensor in weights.items() if name not in lost}, tmp_path / "model.safetensors")
    assert error_of(config) == f"the checkpoint lacks {', '.join(lost[:3])} and {len(lost) - 3} more"


def test_another_shape(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    save_file(weights_of(config) | {EMBEDDING: torch.ones(21, 8)}, tmp_path / "model.safetensors")
    assert error_of(config) == f"{EMBEDDING} has the shape (21, 8); config.json implies (20, 8)"


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    config = config_of(tmp_path)
    save_file(weights_of(config) | {EMBEDDING: torch.ones(20, 8).to(dtype)}, tmp_path / "model.safetensors")
    assert "quantized checkpoints aren't supported yet" in error_of(config)


def test_damaged_files(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(weights_of(config), file)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:4], b"", b"\xff" * 64, b"{" + whole[1:]):
        file.write_bytes(damaged)
        assert error_of(config).startswith("model.safetensors is truncated or damaged: ")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert error_of(config) == "model.safetensors is a Git LFS pointer, not the weights: run git lfs pull"


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)  # no weights there: the check comes before reading
    needed = sum(w.numel() for w in weights_of(config).values()) * 4
    monkeypatch.setattr(tandem.models.checkpoint, "GIB", 1)
    monkeypatch.setattr(tandem.models.checkpoint, "available_memory", lambda device: needed - 1)
    message = error_of(config)
    assert f"need {needed}.0 GiB in float32, and {needed - 1}.0 GiB are available on cpu" in message
    assert "--dtype bfloat16" in message
    half = msgspec.structs.replace(config, dtype="bfloat16", load_format="dummy")
    assert len(list(iterate_weights(half))) == len(config.model.tensor_shapes())


def test_available_memory_is_plausible() -> None:
    available = available_memory(torch.device("cpu"))
    assert available is None or 1 << 20 < available < 1 << 50


SOURCES = [
    Path(tandem.models.checkpoint.__file__),
    *Path(tandem.models.checkpoint.__file__).parents[2].glob("reference/*.py"),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_nothing_unpickles(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not imported & {"pickle", "marshal", "shelve", "dill"}
    assert not called & {"torch.load", "eval", "exec"}


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tandem.models.checkpoint, "CGROUP", tmp_path)
    device = torch.device("cpu")
    unlimited = available_memory(device)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(device) == pytest.approx(unlimited, rel=0.2)
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_memory(device) == 4000
