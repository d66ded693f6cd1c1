"""Boxes and pixels go to the same place: paint the boxes, transform, find them again."""
import numpy as np
import pytest
from test_data_pipeline import assert_equal, make_config, take

from htd_jax.data import augment, transforms
from htd_jax.data.records import Category, Record

SETTINGS = [dict(scale=(0.5, 2.0)), dict(crop=1.0), dict(scale=(0.3, 1.5), crop=0.5, colour=0.8), dict(colour=1.0)]


class Painted:
    """Images, each with three rectangles in colours of their own on black; landscape and portrait."""

    categories = tuple(Category(i, name) for i, name in enumerate(("red", "green", "blue")))

    def __init__(self, count=12):
        rng = np.random.default_rng(0)
        self.records = []
        for i in range(count):
            height, width = (120, 200) if i % 3 else (180, 130)
            lefts = np.array([5, 5 + width // 3, 5 + 2 * width // 3])  # side by side: none hides another
            tops = rng.integers(0, height - 60, 3)
            corners = np.stack([lefts, tops, lefts + width // 3 - 12, tops + rng.integers(25, 60, 3)], 1)
            self.records.append(Record(i, f"{i}", height, width, corners.astype(np.float32),
                                       np.arange(3, dtype=np.int32), np.zeros(3, bool)))

    def __len__(self):
        return len(self.records)

    def record(self, i):
        return self.records[i]

    def image(self, i):
        record = self.records[i]
        image = np.zeros((record.height, record.width, 3), np.uint8)
        for (x1, y1, x2, y2), label in zip(record.boxes.astype(int), record.labels):
            image[y1:y2, x1:x2, label] = 200
        return image


def found(image, label):
    """The box around the pixels in which one colour prevails, jittered or not."""
    lead = image[..., label].astype(int) - np.delete(image, label, -1).max(-1)
    ys, xs = np.nonzero(lead > 0.45 * lead.max())
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


@pytest.mark.parametrize("settings", SETTINGS)
def test_painted_boxes_are_found_again(settings):
    dataset, seen = Painted(), 0
    for batch in take(12, dataset, make_config(augment=settings)):
        assert batch["image"].shape[1:] in ((128, 192, 3), (192, 128, 3))
        assert (batch["padded"] == batch["image"].shape[1:3]).all() and (batch["size"] <= batch["padded"]).all()
        for row in range(4):
            image, size, boxes, labels, valid = (batch[k][row] for k in ("image", "size", "boxes", "labels", "valid"))
            assert not image[size[0]:].any() and not image[:, size[1]:].any()
            for box, label in zip(boxes[valid], labels[valid]):
                np.testing.assert_allclose(found(image, label), box, atol=1.6)  # bilinear edges
                seen += 1
    assert seen > 60


def test_a_box_that_a_window_hides_goes_and_one_that_it_cuts_is_clipped():
    record = Painted().record(1)
    image = Painted().image(1)
    x1, y1, x2, y2 = record.boxes[1].astype(int)
    width = int(x1) + 30 if x2 - x1 > 40 else int(x1) + (x2 - x1) // 2
    shown, cut = augment.cut(image, record, augment.Window(0, 0, record.height, width))
    assert cut.labels.tolist() == [0, 1] and cut.boxes[1].tolist() == [x1, y1, width, y2]
    _, narrow = augment.cut(image, record, augment.Window(0, 0, record.height, int(x1) + (x2 - x1) // 5))
    assert narrow.labels.tolist() == [0]
    assert shown.shape == (record.height, width, 3) and (cut.height, cut.width) == shown.shape[:2]


def test_safe_crop_keeps_every_box_whole():
    rng, windows = np.random.default_rng(0), set()
    for record in Painted().records * 4:
        top, left, height, width = augment.safe_window(record, rng)
        windows.add((top, left, height, width))
        assert (record.boxes[:, :2] >= (left, top)).all()
        assert (record.boxes[:, 2:] <= (left + width, top + height)).all()
        assert left + width <= record.width and top + height <= record.height
    assert len(windows) > 40
    empty = Record(0, "", 100, 80, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
    for _ in range(20):
        _, _, height, width = augment.safe_window(empty, rng)
        assert height >= 50 and width >= 40


def test_colour_jitter_changes_colours_alone_and_is_nothing_at_strength_0():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    changed = [augment.colour(image, 0.8, np.random.default_rng(seed)) for seed in range(8)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in changed)
    assert len({c.tobytes() for c in changed}) == 8
    means = [c.mean() / image.mean() for c in changed]
    assert min(means) < 0.95 and max(means) > 1.05 and 0.5 < min(means) and max(means) < 1.5
    assert np.abs(augment.colour(image, 0.0, np.random.default_rng(0)).astype(int) - image).mean() < 2  # HSV's rounding


def test_draws_depend_on_seed_step_and_row_alone():
    dataset, config = Painted(), make_config(augment=dict(scale=(0.5, 2.0), crop=0.5, colour=0.5))
    whole = take(6, dataset, config)
    for other, batch in zip(take(3, dataset, config, start_step=3), whole[3:]):
        assert_equal(other, batch)
    config.data.workers = 3
    for other, batch in zip(take(6, dataset, config), whole):
        assert_equal(other, batch)
    second = take(6, dataset, config, process_index=1, process_count=2)
    for part, batch in zip(second, whole):
        for key in ("image", "boxes", "size"):
            np.testing.assert_array_equal(part[key], batch[key][2:])
    config.seed = 4
    assert not all(np.array_equal(a["image"], b["image"]) for a, b in zip(take(3, dataset, config), whole))


def test_nothing_drawn_is_what_the_pipeline_does_without():
    """A factor of 1 on images that fill their shape: the same pixels and boxes as without augmentation."""
    dataset = Painted()
    for plain, same in zip(take(6, dataset, make_config()), take(6, dataset, make_config(augment=dict(scale=(1, 1))))):
        for image, size, other, other_size in zip(plain["image"], plain["size"], same["image"], same["size"]):
            np.testing.assert_array_equal(size, other_size)
            np.testing.assert_array_equal(image[:size[0], :size[1]], other[:size[0], :size[1]])
        np.testing.assert_allclose(plain["boxes"], same["boxes"], atol=1e-4)


def test_boxes_of_an_augmented_image_are_flipped_with_it():
    """`transform_boxes` at scale 1 flips them as `cv2.flip` does the pixels."""
    boxes = np.float32([[10, 5, 30, 25]])
    np.testing.assert_array_equal(transforms.transform_boxes(boxes, (1, 1), (50, 100), True), [[70, 5, 90, 25]])
