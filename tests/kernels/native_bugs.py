"""The tests of the C++ kernels have teeth: each of these bugs, planted in a source, makes one of them fail.

Run by ``test_native.py`` in a process of its own, for more examples than the tests themselves need.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optimized.kernels import native
from tests.kernels import test_native as tests

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")

BUGS: dict[str, tuple[Callable[[], None], str, str, str]] = {
    "mean over one more": (tests.test_norm, "rms_norm.cpp", "(size) + eps", "(size + 1) + eps"),
    "every head the first": (tests.test_norm, "rms_norm.cpp", "row % num_inner * inner", "0 * inner"),
    "wrong constant of gelu": (tests.test_gated, "activation.cpp", "0.044715f", "0.04f"),
    "gate taken for up": (tests.test_gated, "activation.cpp", "gate + size;", "gate;"),
    "rotation the other way": (
        tests.test_rotation_and_write,
        "rope_cache.cpp",
        "a * cos[i] - b * sin[i]",
        "a * cos[i] + b * sin[i]",
    ),
    "unrotated channels not copied": (
        tests.test_rotation_and_write,
        "rope_cache.cpp",
        "std::copy(x + 2 * half, x + d, y + 2 * half);",
        "",
    ),
    "window off by one": (
        tests.test_attention,
        "paged_attention.cpp",
        "tile.context - window)",
        "tile.context - window - 1)",
    ),
    "pieces weighted alike": (
        tests.test_attention,
        "paged_attention.cpp",
        "weight = exp_of(piece[d()] - greatest)",
        "weight = 1.0f",
    ),
    "cap without scale": (tests.test_attention, "paged_attention.cpp", "softcap * (1.0f - 2.0f /", "(1.0f - 2.0f /"),
    "last keys left out": (
        tests.test_attention,
        "paged_attention.cpp",
        "mine[i] += w[j] * widen(v[j * d + i])",
        "mine[i] += 0",
    ),
    "tokens of a tile see as much as the last": (
        tests.test_attention,
        "paged_attention.cpp",
        "std::min(end, tile.context + t) - begin",
        "end - begin",
    ),
    "block of another sequence": (
        tests.test_attention,
        "paged_attention.cpp",
        "tables + sequence * ",
        "tables + 0 * ",
    ),
    "head of a block": (tests.test_attention, "paged_attention.cpp", "* num_kv_heads + head) *", "* num_kv_heads) *"),
    "chunk sees its future": (tests.test_attention, "paged_attention.cpp", "- (starts[s + 1] - 1 - t)", ""),
    "bits of the row beside": (tests.test_masks, "edit_logits.cpp", "bits + slots[r]", "bits + rows[r]"),
    "a NaN overlooked": (tests.test_masks, "edit_logits.cpp", "is_spoiled ? NAN : all", "all"),
    "prompt counted as output": (
        tests.test_penalties,
        "edit_logits.cpp",
        "row[i] & (IN_PROMPT - 1)",
        "row[i] & (2 * IN_PROMPT - 1)",
    ),
    "penalties of another row": (tests.test_penalties, "edit_logits.cpp", "= presence[r]", "= presence[0]"),
    "some one of equals": (
        tests.test_greatest_of_a_row,
        "sample.cpp",
        "std::find(x + start, x + end, value) - x",
        "end - 1",
    ),
    "no number overlooked": (
        tests.test_greatest_of_a_row,
        "sample.cpp",
        "is_spoiled ? NAN : greatest",
        "greatest",
    ),
    "k-th value not kept": (tests.test_draw, "sample.cpp", "return kept[k - 1];", "return kept[0];"),
    "mass of what top-k dropped": (
        tests.test_draw,
        "sample.cpp",
        "std::max(least, greatest + static_cast<float>(WEIGHTLESS))",
        "greatest + static_cast<float>(WEIGHTLESS)",
    ),
    "one lost between halves": (
        tests.test_filters_of_a_great_vocabulary,
        "sample.cpp",
        "first = middle;",
        "first = middle + 1;",
    ),
    "min-p forgotten": (tests.test_draw, "sample.cpp", "least_of_share(min_p[r])", "NEVER"),
    "what was dropped is drawn": (
        tests.test_draw,
        "sample.cpp",
        "(z[start + i] >= least) & (x >= deepest)",
        "x >= deepest",
    ),
    "position and choice swapped": (
        tests.test_draw,
        "sample.cpp",
        "c1 = key.position, c2 = key.choice",
        "c1 = key.choice, c2 = key.position",
    ),
    "too much passed over": (tests.test_draw, "sample.cpp", "greatest + NOISE_MAX", "greatest"),
    "rows of another task": (tests.test_matmul, "matmul.cpp", "from + (start + r) * x_stride", "from + r * x_stride"),
    "first inputs again": (tests.test_matmul, "matmul.cpp", "block + p * 2 * WIDTH, from", "block, from"),
    "bias of the first outputs": (tests.test_matmul, "matmul.cpp", "widen(b[first + i])", "widen(b[i])"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, name, right, wrong = BUGS[bug]
    sources = tmp_path / "kernels"
    shutil.copytree(native.SOURCES, sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (sources / name).read_text(encoding="utf-8")
    assert right in text
    (sources / name).write_text(text.replace(right, wrong), encoding="utf-8")
    monkeypatch.setattr(native, "SOURCES", sources)
    monkeypatch.setattr(native, "FLAGS", tuple(flag.replace("-O3", "-O1") for flag in native.FLAGS))  # built sooner
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = native.Library()
    native.Build(library).run()
    assert library.is_loaded
    monkeypatch.setattr(tests, "kernels", lambda: library)
    with pytest.raises(AssertionError):
        test()
