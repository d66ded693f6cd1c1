"""Every figure of the original for one image, from the backbone to the detections."""
import pytest
from original import infer, reference


def check(name, ba_rois):
    if reference.find(f"infer_{name.removeprefix('htd_')}.npz") is None:
        pytest.skip(f"the golden figures of {name} are neither in the clone nor beside it")
    wrong = [str(figure) for figure in infer.figures(name, ba_rois) if not figure.holds]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["htd_r50"])
def test_weights_are_those_of_the_original(name):
    assert reference.checksum(reference.weights(name)) == pytest.approx(reference.CHECKSUMS[name], abs=1e-3)


def test_r50():
    check("htd_r50", ba_rois=128)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["htd_r101", "htd_r101_dcn", "htd_x101_dcn"])
def test_others(name):
    assert reference.checksum(reference.weights(name)) == pytest.approx(reference.CHECKSUMS[name], abs=1e-3)
    check(name, ba_rois=1000)
