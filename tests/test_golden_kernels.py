"""Figures of the original by the accelerators' kernels of RoIAlign, interpreted on a CPU, within the same bounds."""
import pytest
from original import infer, train

pytestmark = pytest.mark.slow
FORMS = pytest.mark.parametrize("form", ["tpu", "gpu"])


@FORMS
def test_inference(form):
    assert [str(figure) for figure in infer.figures("htd_r50", ba_rois=32, form=form) if not figure.holds] == []


@FORMS
def test_training(form):
    run = train.run("htd_r50", form)
    assert {name: error for name, error in train.loss_errors(run).items() if error > train.LOSS} == {}
    errors = train.gradient_errors(run)
    assert errors and {name: norm for name, (norm, _) in errors.items() if norm > train.gradient_bound(name)} == {}
