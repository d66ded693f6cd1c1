"""Detections on photographs of COCO, by `eval.py` from a `.pth` of the original's form."""
import pytest
from original import photographs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("photographs")


@pytest.mark.parametrize("name", photographs.CONFIGS)
def test_detections(name, shared, folder):
    check(photographs.figures(name, folder))


def test_bucket_padding_moves_little(shared, folder):
    check(photographs.figures("coco_r50", folder, "--config.data.pad_to=bucket",
                              least=photographs.BUCKET_MATCHED, most=float("inf")))


def check(figures):
    wrong = [str(figure) for figure in figures if not figure.holds]
    assert not wrong, "\n".join(wrong)
