"""Folders as cameras and Macs leave them."""
import logging

import numpy as np
import pytest
from PIL import Image

from htd_jax.data.user_images import UserImages
from htd_jax.errors import UserError

NAMES = ["a.jpg", "b.GIF", "c.avif", "d.jp2", "e.ppm", "f.webp"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(60, 200, (40, 50, 3), np.uint8))
    for name in NAMES:
        picture.save(folder / name)
    (folder / "._a.jpg").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    for name in ("notes.txt", "raw.cr2"):
        (folder / name).write_text("x")
    return folder


def test_every_suffix_is_read_and_what_is_left_out_is_said(photos, caplog):
    with caplog.at_level(logging.WARNING):
        images = UserImages(str(photos))
    assert [name.rpartition("/")[2] for name in images.names] == NAMES and not images.errors
    assert all(images.image(i).shape == (40, 50, 3) for i in range(len(images)))
    assert caplog.messages == [f"folder {photos}; left out: 1 folder, 2 other files: sub/, notes.txt, raw.cr2"]


def test_a_folder_without_image_says_what_it_has(photos):
    for name in NAMES:
        (photos / name).unlink()
    with pytest.raises(UserError, match="has no image; looked for .jpg.*; left out: 1 folder, 2 other files: sub/"):
        UserImages(photos)


def test_home_folder(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert len(UserImages("~/photos")) == len(NAMES) and UserImages("~/photos/a.jpg").size(0) == (40, 50)
