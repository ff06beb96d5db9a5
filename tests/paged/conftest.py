"""Here the engine takes on any machine what it takes on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from optimized import engine
from optimized.cache.paged_cache import PagedCache
from optimized.layers import moe
from tests.equivalence.conftest import ties_are_rare

__all__ = ["ties_are_rare"]


@pytest.fixture(scope="package", autouse=True)
def parts_of_a_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "choose_cache", lambda device: PagedCache)
        patch.setattr(moe, "use_triton", lambda x: True)
        yield
