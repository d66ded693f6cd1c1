"""Fixtures shared by all tests, and where they run: on the CPU, with what they compile kept in .cache/."""
import os
import pathlib

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# Before JAX is imported; processes that tests start inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Properties: few examples, always the same; `--hypothesis-profile=long` draws many new ones. The first compiles.
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None, database=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=500, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("quick")


@pytest.fixture(scope="session")
def shared():
    """The folder of golden figures and photographs that lies beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name}/ with golden figures and photographs is not beside this checkout")
    return SHARED
