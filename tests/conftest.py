"""Hypothesis profiles: ``default``, and ``deep`` (``--hypothesis-profile=deep``) for ten times the examples."""

from hypothesis import HealthCheck, settings

_SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile("default", max_examples=20, **_SHARED)
settings.register_profile("deep", max_examples=200, **_SHARED)
settings.load_profile("default")
