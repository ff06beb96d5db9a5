"""What the layers ask of the memory of keys and values."""

from __future__ import annotations

from collections.abc import Callable

import torch

# (layer, q [T, H, d], k [T, H_kv, d], v [T, H_kv, d]) → [T, H · d]: rotate q and k, write k and v, attend
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
