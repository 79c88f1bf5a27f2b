"""What tests of many modules begin with."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest bundle at every precision, for all worker processes; a test that changes it changes a copy."""
    from export_tiny import make_bundle  # imports torch, which most tests do without

    return make_bundle(tmp_path_factory)
