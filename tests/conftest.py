"""Hypothesis profiles: ``default``, and ``deep`` (``--hypothesis-profile=deep``) for ten times the examples.

Tests marked ``gpu`` are left out where there is none.
"""

import pytest
from hypothesis import HealthCheck, settings

_SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile("default", max_examples=20, **_SHARED)
settings.register_profile("deep", max_examples=200, **_SHARED)
settings.load_profile("default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needy = [item for item in items if item.get_closest_marker("gpu")]
    if not needy:
        return
    import torch  # which most tests need not wait for

    if not torch.cuda.is_available():
        items[:] = [item for item in items if item not in needy]
        config.hook.pytest_deselected(items=needy)
