"""A checkpoint's tensors as the engine holds them: matrices that read the same input stand in one.

``FUSED`` says which, and both directions follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from tandem.models.model_config import ModelConfig

# fused name → the checkpoint's names, in the order of the rows
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_FUSED_NAME = {part: fused for fused, parts in FUSED.items() for part in parts}


def fuse(config: ModelConfig, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Place each tensor of the checkpoint into its (part of a) tensor of the engine; they may come in any order."""
    shapes = config.tensor_shapes()
    fused: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        target = fused_name(name)
        if target == name:
            fused[name] = tensor
            continue
        parts = _parts_of(target, shapes)
        if target not in fused:
            rows = sum(shapes[part][0] for part in parts)
            fused[target] = tensor.new_empty((rows, *tensor.shape[1:]))
        start = sum(shapes[part][0] for part in parts[: parts.index(name)])
        fused[target][start : start + tensor.shape[0]] = tensor
    return fused


def unfuse(config: ModelConfig, fused: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The inverse of ``fuse``: the checkpoint's tensors, as views."""
    shapes = config.tensor_shapes()
    for name, tensor in fused.items():
        if name in shapes:
            yield name, tensor
            continue
        parts = _parts_of(name, shapes)
        yield from zip(parts, torch.split(tensor, [shapes[part][0] for part in parts]), strict=True)


def fused_name(name: str) -> str:
    """The engine's tensor that holds the checkpoint's tensor ``name``; experts and fused checkpoints keep theirs."""
    module, _, kind = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    if last not in _FUSED_NAME or ".experts." in name:
        return name
    return f"{parent}.{_FUSED_NAME[last]}.{kind}"


def _parts_of(target: str, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    module, _, kind = target.rpartition(".")
    parent, _, last = module.rpartition(".")
    names = [f"{parent}.{part}.{kind}" for part in FUSED[last]]
    return [name for name in names if name in shapes]
