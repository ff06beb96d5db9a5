"""How much memory the KV cache gets, decided before any of it is taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tandem.checkpoint import TORCH_DTYPES, available_memory
from tandem.config import EngineConfig
from tandem.errors import CheckpointError

GIB = 1 << 30
CPU_SHARE = 0.5  # of free memory; the rest is for activations, the system and the model's own text side


@dataclass(frozen=True, slots=True)
class Budget:
    """The cache's size.

    Attributes:
        num_blocks: of ``block_size`` tokens each.
        bytes_per_token: all that a token takes in the cache.
        block_size: tokens.
    """

    num_blocks: int
    bytes_per_token: int
    block_size: int

    def __str__(self) -> str:
        tokens = self.num_blocks * self.block_size
        size = tokens * self.bytes_per_token / GIB
        return f"KV cache: {tokens} tokens in {self.num_blocks} blocks of {self.block_size}, at most {size:.2f} GiB"


def budget(config: EngineConfig, device: torch.device) -> Budget:
    """Blocks for the requests that can run at once, or for as many of them as fit into the memory there is.

    Raises:
        CheckpointError: there is no room even for one request of full length.
    """
    s, model = config.scheduler, config.model
    per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * TORCH_DTYPES[config.dtype].itemsize
    if s.enable_prefix_caching:
        per_token *= 2  # a row to work in, and a block that can be found again
    blocks_of_one = -(-config.max_model_len // s.block_size)
    most = s.max_num_seqs * blocks_of_one
    room = s.kv_cache_memory_bytes
    if room is None:
        free = available_memory(device)
        room = most * s.block_size * per_token if free is None else int(free * CPU_SHARE)
    num_blocks = min(most, room // (per_token * s.block_size))
    if num_blocks < 1:
        raise CheckpointError(
            f"a KV cache of {room / GIB:.2f} GiB holds not even one block of {s.block_size} tokens; a smaller "
            "--block-size or more --kv-cache-memory-bytes would do"
        )
    return Budget(num_blocks, per_token, s.block_size)
