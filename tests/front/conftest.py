"""Engines here use the CPU kernels, in processes and in threads."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def with_kernels(built_kernels: None) -> None:
    """They are built."""
