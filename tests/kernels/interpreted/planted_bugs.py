"""The tests of the kernels find bugs: each is planted into a copy of an op's source, with which its tests must fail.

None may reach outside a tensor: the interpreter would follow it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from optimized import kernels
from tests.kernels.interpreted import (
    activation,
    edit_logits,
    moe_matmul,
    paged_attention,
    rms_norm,
    rope_cache,
    sample,
)

TESTS: dict[str, list[Callable[[], None]]] = {
    "paged_attention": [
        partial(paged_attention.test_long_decode_in_splits, None),
        partial(paged_attention.test_long_decode_in_splits, 100),
        paged_attention.test_worst_row,
    ],
    "rope_cache": [rope_cache.test_worst_row],
    "rms_norm": [rms_norm.test_worst_row],
    "activation": [partial(activation.test_worst_row, name) for name in ("silu", "gelu_tanh")],
    "sample": [sample.test_each_row_is_the_definition],
    "moe_matmul": [moe_matmul.test_worst_row],
    "edit_logits": [edit_logits.test_masks_are_the_definition, edit_logits.test_penalties_are_the_definition],
}
MODULES = (activation, edit_logits, moe_matmul, paged_attention, rms_norm, rope_cache, sample)
BUGS = {
    "causal mask off by one": ("paged_attention", "i_key[None, :] <= i_position", "i_key[None, :] <= 1 + i_position"),
    "window off by one": ("paged_attention", "- i_key[None, :] < WINDOW)", "- i_key[None, :] <= WINDOW)"),
    "output not rescaled": ("paged_attention", "b_o * b_rescale[:, None], input", "b_o, input"),
    "sum not rescaled": ("paged_attention", "b_sum * b_rescale + tl.sum(b_p", "b_sum + tl.sum(b_p"),
    "wrong query head": ("paged_attention", "i_kv * GROUP + o_m % GROUP", "i_kv * GROUP + o_m // GROUP % GROUP"),
    "wrong key head": ("paged_attention", "i_kv * stride_k_head", "(i_kv + 1) % tl.num_programs(1) * stride_k_head"),
    "stale slot behind the context": ("paged_attention", "& (i_key < high)", "& (i_key < high + 1)"),
    "freed block before the window": ("paged_attention", "(i_key >= low) &", "(i_key >= low - 1) & (i_key >= 0) &"),
    "page table of another sequence": ("paged_attention", "i_sequence.to(tl.int64) * stride", "0 * stride"),
    "cap applied without scale": ("paged_attention", "softcap * (1 - 2 /", "(1 - 2 /"),
    "a split is left out": (
        "paged_attention",
        "high = i_position // SPLIT + 1",
        "high = (i_position + 1) // SPLIT + 1",
    ),
    "splits weighted alike": ("paged_attention", "b_part * b_weight[:, None]", "b_part"),
    "rotation the other way": ("rope_cache", "b_a * b_cos - b_b * b_sin", "b_a * b_cos + b_b * b_sin"),
    "position off by one": ("rope_cache", "tl.load(p_positions + i_token) * HALF", "(i_token + 1) % 2 * HALF"),
    "unrotated channels not copied": ("rope_cache", "    if REST:\n", "    if False:\n"),
    "values in the slot before": (
        "rope_cache",
        "i_slot % PAGE * stride_values_slot",
        "i_slot // 2 * 2 % PAGE * stride_values_slot",
    ),
    "mean over the padded row": ("rms_norm", "keep_dims=True) / SIZE", "keep_dims=True) / BLOCK_D"),
    "sum not scaled": ("rms_norm", "(b_added * scale)", "(b_added)"),
    "heads as rows of one stride": ("rms_norm", "i_row // inner, i_row % inner", "i_row // inner, i_row * 0"),
    "gate and up swapped": ("activation", "+ SIZE + o_i, mask", "+ o_i, mask"),
    "wrong constant of gelu": ("activation", "0.044715 *", "0.04 *"),
    "k-th value not kept": ("sample", "top_k, False, MASS_SCALE", "top_k - 1, False, MASS_SCALE"),
    "ties cut by top-p": ("sample", "by_p = _least_kept", "by_p = 1e-6 + _least_kept"),
    "mass of what top-k dropped": ("sample", "tl.where(b_z >= left, b_mass, 0.0)", "b_mass"),
    "position and choice swapped": ("sample", "b_position, b_choice, b_zero)", "b_choice, b_position, b_zero)"),
    "highest id of equals": ("sample", "(i_v.to(tl.int64) ^ 0xFFFFFFFF)", "i_v.to(tl.int64)"),
    "min-p strict": ("sample", "(tl.exp(b_score) >= tl.load(p_min_p", "(tl.exp(b_score) > tl.load(p_min_p"),
    "share of another place": ("moe_matmul", "p_share + i_place", "p_share + i_row"),
    "last row of an expert left out": (
        "moe_matmul",
        "i_row < tl.load(p_starts + i_expert + 1)",
        "i_row + 1 < tl.load(p_starts + i_expert + 1)",
    ),
    "bits of the row beside": ("edit_logits", "p_bits + i_slot * stride_bits", "p_bits + i_row * stride_bits"),
    "bits the other way round": ("edit_logits", "b_word >> (i_v % 32)", "b_word >> (31 - i_v % 32)"),
    "prompt not repeated": ("edit_logits", "m_v & (b_count != 0)", "m_v & (b_count & 0x3FFFFFFF != 0)"),
    "presence for each": ("edit_logits", "b_z - b_taken", "b_z - b_taken * b_count.to(tl.float32)"),
    "negative logits divided": ("edit_logits", "b_z * repetition)", "tl.div_rn(b_z, repetition))"),
    "tail of k not masked": ("moe_matmul", "m_k = o_start + o_k < k", "m_k = o_start + o_k < k - 1"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_is_found(bug: str, tmp_path: Path) -> None:
    name, right, wrong = BUGS[bug]
    text = (Path(kernels.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    assert right in text
    file = tmp_path / f"planted_{name}.py"
    file.write_text(text.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    planted = importlib.util.module_from_spec(spec)
    with mock.patch.dict("sys.modules", {file.stem: planted}):  # where dataclasses look their module up
        spec.loader.exec_module(planted)
        tests = next(module for module in MODULES if module.__name__.endswith(f".{name}"))
        with mock.patch.object(tests, "op", planted), pytest.raises(AssertionError):
            for test in TESTS[name]:
                test()
