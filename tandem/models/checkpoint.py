"""Reading a checkpoint's weights: safetensors, one or many files, or random numbers in their place.

Only safetensors are read. Pickled weights can run code when they are opened and are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from tandem.config import EngineConfig
from tandem.errors import CheckpointError
from tandem.models.hub import read_json
from tandem.models.model_config import ModelConfig

logger = logging.getLogger(__name__)

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
READABLE_DTYPES = ("F64", "F32", "F16", "BF16")
PICKLED_PATTERNS = ("pytorch_model*.bin", "*.pt", "*.pth")
DUMMY_STD = 0.02
GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")

OnProgress = Callable[[float], None]


def load_weights(
    config: EngineConfig, device: torch.device | str = "cpu", on_progress: OnProgress | None = None
) -> dict[str, torch.Tensor]:
    """All tensors of ``config.model.tensor_shapes()`` by name, in ``config.dtype`` on ``device``.

    See :func:`iterate_weights` for the arguments and errors.
    """
    return dict(iterate_weights(config, device, on_progress))


def iterate_weights(
    config: EngineConfig, device: torch.device | str = "cpu", on_progress: OnProgress | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the checkpoint's tensors one by one; what is held in memory is only what the caller keeps.

    Everything that can be known before reading is checked first: files, names, shapes, and room in memory.

    Args:
        config: which files, which architecture, and the dtype to cast to. With ``load_format="dummy"`` no file is
            touched: matrices and biases are normal with a standard deviation of 0.02, norms act as ones, and a
            tensor depends on ``config.seed`` and its own name alone.
        device: where the tensors go. They are copies: none refers to a file afterwards.
        on_progress: called with the fraction of bytes read, rising to 1.0.

    Yields:
        Each name of ``config.model.tensor_shapes()`` once, and its tensor.

    Raises:
        CheckpointError: files or tensors are missing, damaged, pickled, quantized, of another shape, or too large.
    """
    device = torch.device(device)
    dtype = TORCH_DTYPES[config.dtype]
    shapes = config.model.tensor_shapes()
    _check_memory(config, shapes, device)
    if config.load_format == "dummy":
        source = _dummy_tensors(config.model, config.seed)
    else:
        source = _stored_tensors(config.files.with_weights(), shapes)
    total = sum(map(math.prod, shapes.values())) * dtype.itemsize
    # disable=None: no bar where standard error is not a terminal
    with tqdm(total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None) as bar:
        done = 0
        for name, tensor in source:
            yield name, tensor.to(device=device, dtype=dtype, copy=True)
            size = math.prod(shapes[name]) * dtype.itemsize
            done += size
            bar.update(size)
            if on_progress is not None:
                on_progress(done / total)


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on ``device`` now; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [limit for limit in (_free_in_machine(), _free_in_container()) if limit is not None]
    return min(limits, default=None)


def _free_in_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _free_in_container() -> int | None:
    """What the limit of this cgroup (version 2) leaves; None where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((CGROUP / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        return max(0, limit - used)
    return None


def _check_memory(config: EngineConfig, shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
    needed = sum(map(math.prod, shapes.values())) * TORCH_DTYPES[config.dtype].itemsize
    available = available_memory(device)
    if available is None or needed <= available:
        return
    smaller = ", --dtype bfloat16" if config.dtype == "float32" else ""
    raise CheckpointError(
        f"the weights need {needed / GIB:.1f} GiB in {config.dtype}, and {available / GIB:.1f} GiB are available on "
        f"{device.type}: a smaller model{smaller} or a machine with more memory would help"
    )


def _dummy_tensors(model: ModelConfig, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in model.tensor_shapes().items():
        if name.endswith("norm.weight"):
            yield name, torch.full(shape, 1.0 - model.norm_offset)
            continue
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        # a CPU generator even for a GPU, so that every device gets the same model
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        yield name, torch.empty(shape).normal_(std=DUMMY_STD, generator=generator)


def _stored_tensors(directory: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
    with contextlib.ExitStack() as stack:
        files = {file: stack.enter_context(_open(file)) for file in _weight_files(directory)}
        owner = {name: file for file, handle in files.items() for name in handle.keys()}  # noqa: SIM118
        missing = [name for name in shapes if name not in owner]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(f"the checkpoint lacks {', '.join(missing[:3])}{more}")
        unused = sorted(owner.keys() - shapes.keys())
        if unused:
            logger.debug("%d tensors of the checkpoint are not used: %s", len(unused), ", ".join(unused))
        for name, shape in shapes.items():
            _check_tensor(files[owner[name]], name, shape)
        # file by file, so that each is read in one go
        for name in sorted(shapes, key=lambda name: owner[name]):
            try:
                yield name, files[owner[name]].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise _damaged(owner[name], error) from error


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint; the index, where there is one, says which."""
    index = next(iter(sorted(directory.glob("*.safetensors.index.json"))), None)
    if index is not None:
        files = [directory / name for name in _indexed_names(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{index.name} names files that are not there: {', '.join(missing)}")
        return files
    single = directory / "model.safetensors"
    files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    if not files:
        raise _no_safetensors(directory)
    return files


def _indexed_names(index: Path) -> list[str]:
    try:
        entries = (read_json(index) or {})["weight_map"].values()
    except (KeyError, AttributeError) as error:
        raise CheckpointError(f"{index.name} is not an index of safetensors: no object weight_map") from error
    for name in entries:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index.name} names {name!r}, which is not a file beside it")
    return sorted(set(entries))


def _no_safetensors(directory: Path) -> CheckpointError:
    pickled = [file.name for pattern in PICKLED_PATTERNS for file in sorted(directory.glob(pattern))]
    if not pickled:
        return CheckpointError(f"{directory} has no *.safetensors file; --load-format dummy runs without")
    return CheckpointError(
        f"{directory} has only pickled weights ({pickled[0]}), which can run code when opened; convert them with "
        "AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True) in transformers"
    )


def _open(file: Path) -> safe_open:
    try:
        with file.open("rb") as stream:
            if stream.read(20).startswith(b"version https://git"):
                raise CheckpointError(f"{file.name} is a Git LFS pointer, not the weights: run git lfs pull")
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _check_tensor(handle: safe_open, name: str, expected: tuple[int, ...]) -> None:
    stored = handle.get_slice(name)  # type: ignore[no-untyped-call]
    shape, dtype = tuple(stored.get_shape()), str(stored.get_dtype())
    if shape != expected:
        raise CheckpointError(f"{name} has the shape {shape}; config.json implies {expected}")
    if dtype not in READABLE_DTYPES:
        raise CheckpointError(f"{name} is stored as {dtype}; quantized checkpoints aren't supported yet")


def _damaged(file: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{file.name} is truncated or damaged: {reason}")
