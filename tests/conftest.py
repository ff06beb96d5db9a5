"""Hypothesis profiles: ``default`` tries the same cases wherever a commit is tested, so that it passes everywhere or
nowhere; ``deep`` (``--hypothesis-profile=deep``) draws ten times as many, others each time; ``planted`` is for bugs
planted by a test, some found by rare cases only, whose smallest example nobody reads.

Tests marked ``gpu`` are left out where there is none. Every process that a test starts computes with one thread and
finds no operations that an earlier run has compiled: either would change a sum in its last bits.
"""

import os
import subprocess
import sys
import tempfile

import pytest
from hypothesis import HealthCheck, Phase, settings

collect_ignore = ["clients"]  # they have environments of their own

_CACHE = tempfile.TemporaryDirectory(prefix="tandem-tests-")
os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": _CACHE.name}

_USUAL = settings(
    settings.get_profile("default"),  # not the one in use, which depends on where Hypothesis believes to run
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("default", _USUAL, max_examples=20, derandomize=True, database=None)
settings.register_profile("deep", _USUAL, max_examples=200)
settings.register_profile(
    "planted",
    settings.get_profile("default"),
    max_examples=100,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("default")


@pytest.fixture(scope="session")
def built_kernels() -> None:
    """CPU kernels are there before the first engine looks for them: it computes its first answer as its last."""
    code = "from optimized.kernels.native import Build, Library; Build(Library()).run()"
    subprocess.run([sys.executable, "-c", code], check=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needy = [item for item in items if item.get_closest_marker("gpu")]
    if not needy:
        return
    import torch  # which most tests need not wait for

    if not torch.cuda.is_available():
        items[:] = [item for item in items if item not in needy]
        config.hook.pytest_deselected(items=needy)
