"""The lines of docs/export.md run an exported program as the detector does."""
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from test_detector import small, stand_in, write_weights

from htd_jax import export
from htd_jax.models import functional

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "export.md"
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.S | re.M)


@pytest.mark.parametrize("size", [(96, 64), (48, 64), (300, 100)])
def test_serving_without_the_package(size, tmp_path, monkeypatch, capsys):
    """With a function of the pixels in the place of `detect`: half of the image, then all of it, by brightness."""
    monkeypatch.setattr(functional, "detect", stand_in)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", size, (181, 181, 181)).save("street.jpg", format="PNG")  # without a JPEG's losses
    export.export(small(), write_weights(tmp_path / "w.safetensors", small()), "exported", (64, 96))
    assert "htd_jax" not in EXAMPLE
    exec(compile(EXAMPLE, str(PAGE), "exec"), {})
    half, whole = (re.fullmatch(r"(.*) (\S+) \[(.*)\]", line).groups() for line in capsys.readouterr().out.splitlines())
    assert half[0] == whole[0] == "class 1"  # 181 % 5
    assert [float(half[1]), float(whole[1])] == pytest.approx([.8 * 181 / 255, 181 / 255], abs=1e-4)
    np.testing.assert_allclose([float(v) for v in half[2].split()], (0, 0, size[0] / 2, size[1]), atol=1e-3)
    np.testing.assert_allclose([float(v) for v in whole[2].split()], (0, 0, *size), atol=1e-3)
