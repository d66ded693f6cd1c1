"""The examples of docs/operators.md run and are right."""
import pathlib
import re

import jax
import pytest

import htd_jax.ops

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "operators.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.S | re.M)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.search(r"ops import (\w+)", text)[1])
def test_example(example):
    with jax.numpy_rank_promotion("allow"):  # what users have; our own code must not broadcast between ranks
        exec(compile(example, str(PAGE), "exec"), {})


def test_every_public_operator_is_on_the_page():
    table = PAGE.read_text()
    missing = [name for name in htd_jax.ops.__all__ if name[0].islower() and f"`{name}`" not in table]
    assert len(EXAMPLES) >= 6 and missing == []
