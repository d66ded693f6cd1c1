"""Figures of the original by the accelerators' forms, as a CPU computes them, within the same bounds."""
import pytest
from original import infer, train

from htd_jax.models import layers

pytestmark = pytest.mark.slow
FORMS = pytest.mark.parametrize("form", ["tpu", "gpu"])


@FORMS
def test_inference(form):
    assert [str(figure) for figure in infer.figures("htd_r50", ba_rois=32, form=form) if not figure.holds] == []


@FORMS
def test_training(form):
    check_gradients(train.run("htd_r50", form))


def test_training_with_norms_in_kernels(monkeypatch):
    monkeypatch.setattr(layers, "norm_of_map", layers.norm_in_kernel)
    check_gradients(train.run.__wrapped__("htd_r50"))


def check_gradients(run):
    assert {name: error for name, error in train.loss_errors(run).items() if error > train.LOSS} == {}
    errors = train.gradient_errors(run)
    assert errors and {name: norm for name, (norm, _) in errors.items() if norm > train.gradient_bound(name)} == {}
