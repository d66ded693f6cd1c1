"""Decoding, orientation and resizing of image files."""
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from htd_jax.data import images
from htd_jax.errors import UserError

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def sample():
    """Smooth RGB uint8 [60, 80, 3]: compression keeps it, and no two of its corners are alike."""
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([x * 3, y * 4, 255 - x * 2 - y], -1).clip(0, 255).astype(np.uint8)


def encode(image, image_format="JPEG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, image_format, **options)
    return buffer.getvalue()


def close(a, b, tolerance=3):
    assert a.shape == b.shape and a.dtype == np.uint8
    return np.abs(a.astype(int) - b.astype(int)).mean() < tolerance


def test_colour_is_rgb(sample, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(sample, quality=95))
    assert close(images.read(tmp_path / "a.jpg", (60, 80)), sample)


def test_png_is_exact(sample):
    assert np.array_equal(images.decode(encode(sample, "PNG"), "a.png"), sample)


def test_grayscale(sample):
    gray = Image.fromarray(sample).convert("L")
    decoded = images.decode(encode(gray, quality=95), "gray.jpg", (60, 80))
    assert close(decoded, np.stack([np.asarray(gray)] * 3, -1))


def test_cmyk(sample):
    cmyk = Image.fromarray(sample).convert("CMYK")
    assert close(images.decode(encode(cmyk, quality=95), "cmyk.jpg", (60, 80)), sample, 6)


def test_16_bit_png(sample):
    _, data = cv2.imencode(".png", (sample[..., 0].astype(np.uint16) << 8) + 255)
    assert np.array_equal(images.decode(data.tobytes(), "deep.png"), np.stack([sample[..., 0]] * 3, -1))


def test_alpha_is_dropped(sample):
    rgba = np.dstack([sample, np.full((60, 80), 200, np.uint8)])
    assert np.array_equal(images.decode(encode(rgba, "PNG"), "rgba.png"), sample)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_png(sample, transparent):
    palette = Image.fromarray(sample).quantize(64)
    data = encode(palette, "PNG", **({"transparency": 0} if transparent else {}))
    assert np.array_equal(images.decode(data, "p.png"), np.asarray(palette.convert("RGB")))


def test_what_opencv_cannot_read_goes_through_pillow(sample, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: None)
    assert np.array_equal(images.decode(encode(sample, "TIFF"), "a.tif"), sample)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_follows_the_annotation(sample, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(sample, quality=95, exif=exif)
    upright = np.asarray(images.ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert close(images.decode(data, "e.jpg"), upright)
    assert close(images.decode(data, "e.jpg", upright.shape[:2]), upright)
    # A quarter turn changes the size, and then boxes stated in stored pixels are served stored pixels.
    assert close(images.decode(data, "e.jpg", (60, 80)), sample if orientation > 4 else upright)


def test_another_size_than_stated(sample):
    with pytest.raises(UserError, match=r"odd\.jpg has 80 x 60 .* says 70 x 60"):
        images.decode(encode(sample), "odd.jpg", (60, 70))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_truncated(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    data = encode(noise, kind)
    with pytest.raises(UserError, match="cut"):
        images.decode(data[: int(len(data) * share)], "cut")


def test_truncated_behind_a_whole_thumbnail(sample):
    """The thumbnail's end marker is not the image's."""
    data, thumbnail = encode(sample), encode(sample[::4, ::4])
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    assert images.decode(whole, "t.jpg").shape == (60, 80, 3)
    with pytest.raises(UserError, match="truncated"):
        images.decode(whole[:-200], "t.jpg")


def test_progressive_and_trailing_bytes(sample):
    data = encode(sample, progressive=True)
    assert images.decode(data + b"\0" * 100, "p.jpg").shape == (60, 80, 3)
    with pytest.raises(UserError, match="truncated"):
        images.decode(data[: len(data) * 2 // 3], "p.jpg")


def test_missing_empty_and_no_image(tmp_path):
    with pytest.raises(UserError, match="absent.jpg does not exist"):
        images.read(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        images.read(tmp_path)
    with pytest.raises(UserError, match="empty"):
        images.decode(b"", "e.jpg")
    with pytest.raises(UserError, match="not an image"):
        images.decode(b"<html>not found</html>", "n.jpg")


@pytest.mark.parametrize(
    "height, width, scale, shape",
    [
        (480, 640, (1333, 800), (800, 1067)),
        (640, 480, (1333, 800), (1067, 800)),
        (427, 640, (1333, 800), (800, 1199)),
        (640, 640, (1333, 800), (800, 800)),
        (100, 1000, (1333, 800), (133, 1333)),
        (1, 2000, (1333, 800), (1, 1333)),
        (1200, 1600, (512, 320), (320, 427)),
    ],
)
def test_resized_shape(height, width, scale, shape):
    assert images.resized_shape(height, width, scale) == shape


def test_input_equals_the_originals(shared):
    """Mean and rms of the normalised, padded input as the published implementation computed them."""
    golden = json.loads((shared / "golden/coco_r50.json").read_text())
    assert len(golden["images"]) == 4
    for name, figures in golden["images"].items():
        image = images.read(shared / f"data/coco2017_mini/val2017/{int(name):012d}.jpg")
        shape = images.resized_shape(*image.shape[:2], tuple(golden["scale"]))
        assert list(shape) == figures["img_shape"][:2]
        padded = np.zeros((*figures["pad_shape"][:2], 3), np.float32)
        padded[: shape[0], : shape[1]] = (images.resize(image, shape) - MEAN) / STD
        assert padded.mean(dtype=np.float64) == pytest.approx(figures["input_mean"], abs=1e-6)
        assert np.sqrt((padded.astype(np.float64) ** 2).mean()) == pytest.approx(figures["input_rms"], rel=1e-6)
