"""The demo's scenes: the same every time, boxes tight around what shows, splits that share no source item."""
import sys

import numpy as np
import pytest

from htd_jax.data import open_dataset
from htd_jax.data.demo import DemoDataset
from htd_jax.data.demo.painting import paint
from htd_jax.data.demo.scenes import SIZE, VISIBLE, Layout, layout
from htd_jax.data.demo.sources import CLASSES, LETTERS, PHOTOS, load
from htd_jax.errors import UserError


@pytest.fixture(scope="module")
def train():
    return DemoDataset(None, "train")


@pytest.fixture(scope="module")
def records(train):
    return [train.record(i) for i in range(600)]


def scene(split, seed):
    return layout(load(split), np.random.default_rng(seed))


def visible(scene):
    """[scene's sprites] masks of the pixels that each shows."""
    owner = np.full((SIZE, SIZE), -1)
    for k, item in enumerate(scene.placed):
        owner[item.window][item.alpha > VISIBLE] = k
    return [owner == k for k in range(len(scene.placed))]


def test_opens_by_its_name():
    from htd_jax.config import default_config

    config = default_config()
    config.data.source = "demo"
    dataset = open_dataset(config, "val")
    assert tuple(c.name for c in dataset.categories) == CLASSES and len(CLASSES) == 10
    assert [c.id for c in dataset.categories] == list(range(1, 11)) and len(dataset) >= 100


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_scene_depends_on_split_and_index_only(split):
    first, second = DemoDataset(None, split), DemoDataset(None, split)
    forward = [first.image(i) for i in range(4)]
    backward = [second.image(i) for i in reversed(range(4))][::-1]
    for i in range(4):
        np.testing.assert_array_equal(forward[i], backward[i])
        np.testing.assert_array_equal(first.record(i).boxes, second.record(i).boxes)
        np.testing.assert_array_equal(first.record(i).labels, second.record(i).labels)
    assert not np.array_equal(forward[0], forward[1])


def test_splits_differ(train):
    assert not np.array_equal(train.image(0), DemoDataset(None, "val").image(0))


def test_records_agree_with_images(train, records):
    image = train.image(3)
    assert image.shape == (records[3].height, records[3].width, 3) == (SIZE, SIZE, 3) and image.dtype == np.uint8
    for record in records:
        boxes = record.boxes
        assert boxes.dtype == np.float32 and boxes.shape == (len(record.labels), 4)
        assert record.labels.dtype == np.int32 and not record.crowd.any()
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= SIZE).all() and (boxes[:, 2:] - boxes[:, :2] >= 2).all()
    assert len({record.image_id for record in records}) == len(records)


def test_sizes_and_overlaps(records):
    sides = np.concatenate([r.boxes[:, 2:] - r.boxes[:, :2] for r in records]).max(1)
    assert 11 <= sides.min() <= 16 and 150 <= sides.max() <= 200
    assert np.mean(sides < 32) > 0.05 and np.mean(sides > 96) > 0.05
    overlapping = 0
    for r in records:
        low, high = np.maximum(r.boxes[:, None, :2], r.boxes[:, :2]), np.minimum(r.boxes[:, None, 2:], r.boxes[:, 2:])
        overlapping += ((high > low).all(-1).sum() - len(r.boxes)) // 2
    assert overlapping > 0.3 * len(records)


def test_classes_are_balanced(records):
    count = np.bincount(np.concatenate([r.labels for r in records]), minlength=len(CLASSES))
    assert count.min() > 0.7 * count.mean() and count.max() < 1.4 * count.mean()


def test_boxes_are_tight_around_what_shows():
    for seed in range(30):
        drawn = scene("train", seed)
        masks = [m for m, item in zip(visible(drawn), drawn.placed) if item.sprite.label >= 0]
        assert len(masks) == len(drawn.boxes)
        for mask, (x1, y1, x2, y2) in zip(masks, drawn.boxes.astype(int)):
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()


def test_no_object_is_mostly_hidden():
    for seed in range(100):
        drawn = scene("train", seed)
        for mask, item in zip(visible(drawn), drawn.placed):
            assert mask.sum() > 0.4 * np.count_nonzero(item.alpha > VISIBLE)


def test_paint_shows_ink_where_the_box_says():
    """Of a digit alone on grey, the pixels that differ from the grey span its box, to a pixel."""
    grey = {"grey": np.full((SIZE, SIZE, 3), 128, np.uint8)}
    seen = 0
    for seed in range(40):
        for item in scene("train", seed).placed:
            if item.sprite.texture is None and item.sprite.label >= 0:
                alone = Layout((item,), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
                image = paint(alone, grey, np.random.default_rng(seed)).astype(float)
                y, x = np.nonzero(np.abs(image - np.median(image, axis=(0, 1))).mean(-1) > 24)
                own_y, own_x = np.nonzero(item.alpha > VISIBLE)
                got = np.array([x.min(), y.min(), x.max(), y.max()])
                want = np.array([own_x.min(), own_y.min(), own_x.max(), own_y.max()])
                window_y, window_x = item.window
                assert np.abs(got - want - [window_x.start, window_y.start] * 2).max() <= 1
                seen += 1
    assert seen > 50


def test_distractors_have_no_box():
    drawn = [scene("val", seed) for seed in range(50)]
    distractors = [item for s in drawn for item in s.placed if item.sprite.label < 0]
    assert len(distractors) > 50
    assert {item.sprite.source.split()[0] for item in distractors} == {"letter", "lfw", "patch"}
    for s in drawn:
        assert list(s.labels) == [item.sprite.label for item in s.placed if item.sprite.label >= 0]


def test_splits_share_no_source():
    train, val = load("train"), load("val")
    assert not set(PHOTOS["train"]) & set(PHOTOS["val"]) and not set(LETTERS["train"]) & set(LETTERS["val"])
    assert not set(train.photos) & set(val.photos) and train.photos and val.photos
    items = [{s.source for group in part.objects + part.distractors for s in group} for part in (train, val)]
    assert not items[0] & items[1]
    digits = [{s.source for group in part.objects for s in group} for part in (train, val)]
    assert not digits[0] & digits[1] and len(digits[0] | digits[1]) == 1797
    for part in (train, val):
        assert [{s.label for s in group} for group in part.objects] == [{k} for k in range(len(CLASSES))]


def test_splits_share_no_pixels():
    """Not under another name either: no item of validation equals one of training."""
    def contents(part):
        return {(s.field if s.texture is None else s.texture).tobytes()
                for group in part.objects + part.distractors for s in group}

    assert not contents(load("train")) & contents(load("val"))


def test_ground_truth_is_for_every_scene():
    dataset = DemoDataset(None, "val")
    truth = dataset.ground_truth()
    assert len(truth["images"]) == len(dataset) and len(truth["categories"]) == 10
    assert len(truth["annotations"]) == sum(len(dataset.record(i).labels) for i in range(len(dataset)))
    x, y, w, h = truth["annotations"][0]["bbox"]
    np.testing.assert_array_equal(dataset.record(0).boxes[0], [x, y, x + w, y + h])


def test_an_index_outside_is_an_error(train):
    for index in (-1, len(train)):
        with pytest.raises(IndexError, match="scene"):
            train.image(index)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="scikit-learn"):
        load.__wrapped__("train")
