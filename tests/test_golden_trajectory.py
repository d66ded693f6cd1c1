"""SGD steps take the original's path: the training step on synthetic batches, and pipeline and step on photographs."""
import pytest
from original import reference, trajectory

pytestmark = pytest.mark.slow


def check(figures):
    wrong = [str(figure) for figure in figures if not figure.holds]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["htd_r50", "htd_r101_dcn"])
def test_synthetic_batches(name):
    if reference.find(f"train_{name.removeprefix('htd_')}.npz") is None:
        pytest.skip(f"the golden figures of {name} are neither in the clone nor beside it")
    check(trajectory.synthetic(name))


def test_photographs(shared, tmp_path):
    check(trajectory.photographs(tmp_path))
