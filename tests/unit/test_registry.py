"""Which engine a machine gets."""

from __future__ import annotations

import pytest
import torch

from tandem import registry


@pytest.mark.parametrize(
    ("has_gpu", "has_triton", "best"),
    [(False, False, "optimized"), (False, True, "optimized"), (True, True, "optimized"), (True, False, "reference")],
)
def test_auto_is_the_optimized_engine_wherever_it_can_run(
    has_gpu: bool, has_triton: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(registry, "find_spec", lambda name: object() if has_triton else None)
    assert registry._best_here() == best
