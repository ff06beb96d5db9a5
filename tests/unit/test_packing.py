"""Arrays in one buffer."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from optimized.runner.packing import ALIGNMENT, pack, to_device, views

DTYPES = [torch.int32, torch.int64, torch.float32, torch.float64, torch.bool]
layouts = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), min_size=0, max_size=2).map(tuple)), max_size=6
)


@given(layout=layouts, seed=st.integers(0, 1 << 30))
def test_what_is_packed_is_found_again_and_aligned(
    layout: list[tuple[torch.dtype, tuple[int, ...]]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    arrays = [torch.randint(-9, 9, shape, generator=generator).to(dtype) for dtype, shape in layout]
    buffer, found = pack(arrays)
    assert list(found) == layout
    for x, y in zip(arrays, views(buffer.clone(), found), strict=True):
        assert torch.equal(x, y)
        assert y.storage_offset() * y.itemsize % ALIGNMENT == 0 and y.is_contiguous()


def test_arrays_that_are_on_the_device_stay_as_they_are() -> None:
    x = torch.arange(3)
    assert to_device([x], torch.device("cpu"))[0] is x
