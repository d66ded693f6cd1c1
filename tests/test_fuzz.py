"""Damaged files are read rightly or refused in one line: no other exception, no hang; what is read can be scored."""
import contextlib
import json
import signal

import cv2
import mutations
import numpy as np
import pytest
import synthetic_coco

from htd_jax.data import images, voc, yolo
from htd_jax.data.coco import CocoDataset
from htd_jax.data.user_images import UserImages
from htd_jax.errors import UserError
from htd_jax.evaluation import coco

LONG = pytest.mark.slow
SECONDS = 20  # for one file


@contextlib.contextmanager
def limit(what):
    """Fails after `SECONDS` and where anything but a UserError of one line is raised."""
    def late(*_):
        raise TimeoutError(f"{what} takes longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    except UserError as error:
        assert str(error) and "\n" not in str(error), f"{what}: {error}"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_dataset(dataset):
    """Its records are usable; its own boxes, as detections, can be scored."""
    records = [dataset.record(i) for i in range(len(dataset))]
    ids = [category.id for category in dataset.categories]
    for record in records:
        assert np.isfinite(record.boxes).all() and (record.boxes[:, 2:] >= record.boxes[:, :2]).all()
        assert record.height >= 1 and record.width >= 1
        assert ((0 <= record.labels) & (record.labels < len(ids))).all()
    results = [result for record in records for result in coco.to_results(record.image_id, dict(
        boxes=record.boxes, labels=record.labels, scores=np.full(len(record.boxes), .9),
        valid=np.ones(len(record.boxes))), ids)]
    metrics = coco.score(dataset.ground_truth(), results)
    assert metrics["images"] == len(dataset) and -1 <= metrics["AP"] <= 1
    json.dumps(results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, synthetic_coco.write(folder, count=5)


CASES = pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=LONG)])


@CASES
def test_coco_annotations(folder, tmp_path, cases):
    folder, content = folder
    path, whole = tmp_path / "annotations.json", json.dumps(content).encode()
    accepted = 0
    for case in range(cases):
        rng = np.random.default_rng(case)
        path.write_bytes(mutations.mutated_json(content, rng) if case % 3 else mutations.mutated_bytes(whole, rng))
        training = bool(rng.integers(2))
        with limit(f"annotations of case {case} (training {training})"):
            dataset = CocoDataset(path, folder / "images", training=training)
            accepted += 1
            if not training:
                check_dataset(dataset)
    assert 0.02 * cases < accepted < 0.98 * cases


VOC = b"""<annotation><filename>100.png</filename><size><width>160</width><height>120</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>10</xmin><ymin>12.5</ymin><xmax>60</xmax><ymax>70</ymax>
</bndbox></object><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>160</xmax><ymax>120</ymax></bndbox>
</object></annotation>"""
YAML = b"train: images/train\nval: images/train\nnc: 2\nnames: [cat, dog]\n"
LABELS = b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.1 0.1\n1 0.1 0.1 0.4 0.1 0.4 0.4\n"


def png(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((120, 160, 3), np.uint8))


@CASES
def test_voc_annotations(tmp_path, cases):
    png(tmp_path / "JPEGImages" / "100.png")
    xml = tmp_path / "Annotations" / "100.xml"
    xml.parent.mkdir()
    accepted = 0
    for case in range(cases):
        xml.write_bytes(mutations.mutated_text(VOC, np.random.default_rng(case)))
        with limit(f"VOC annotation of case {case}"):
            dataset = voc.VocFolder(tmp_path).open("train")
            accepted += 1
            check_dataset(dataset)
    assert 0.02 * cases < accepted < 0.98 * cases


@CASES
def test_yolo_labels(tmp_path, cases):
    png(tmp_path / "images" / "train" / "100.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    accepted = 0
    for case in range(cases):
        rng = np.random.default_rng(case)
        files = {tmp_path / "data.yaml": YAML, tmp_path / "labels" / "train" / "100.txt": LABELS}
        for k, (path, content) in enumerate(files.items()):
            path.write_bytes(mutations.mutated_text(content, rng) if case % 2 == k else content)
        with limit(f"YOLO files of case {case}"):
            found = yolo.YoloFolder(tmp_path)
            accepted += 1
            for split in found.splits:
                check_dataset(found.open(split))
    assert 0.02 * cases < accepted < 0.98 * cases


def picture():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=LONG)])
def test_images(kind, tmp_path, cases):
    """Also as a user hands them over, whose size is read from the header before the pixels."""
    whole = cv2.imencode(kind, picture())[1].tobytes()
    path = tmp_path / f"image{kind}"
    for case in range(cases):
        rng = np.random.default_rng(case)
        path.write_bytes(mutations.mutated_bytes(whole, rng))
        with limit(f"{kind} of case {case}"):
            image = images.read(path, (48, 64) if case % 2 else None)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert case % 2 == 0 or image.shape[:2] == (48, 64)
        with limit(f"{kind} of case {case}, given by a user"):
            given = UserImages(path)
            for error in given.errors.values():
                raise error
            assert given.image(0).shape[:2] == tuple(given.size(0))


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (2**31 - 1, 1), (0, 0), (0, 10)])
def test_a_header_that_claims_more_than_there_is(size, tmp_path):
    path = tmp_path / "claims.png"
    path.write_bytes(mutations.png_claiming(*size))
    given = UserImages([path])
    for read in (lambda: images.read(path), lambda: images.read(path, (48, 64)), lambda: given.image(0)):
        with pytest.raises(UserError, match="claims.png"):
            read()
