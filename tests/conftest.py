"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Machines that share their cores stall now and then; a law that holds slowly still holds.
settings.register_profile("geodino", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("geodino")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the repository; tests that need it are skipped where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"development data not found at {folder}")
    return folder
