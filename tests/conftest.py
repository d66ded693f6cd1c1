"""Fixtures shared by all tests."""
import pathlib

import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder of golden figures and photographs that lies beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name}/ with golden figures and photographs is not beside this checkout")
    return SHARED
