"""Batches: what is in them, and that nothing but (seed, data, step) decides it."""
import collections
import itertools
import json

import cv2
import numpy as np
import pytest
import synthetic_coco
from ml_collections import ConfigDict

from htd_jax.data import images, padding, pipeline, transforms
from htd_jax.data.coco import CocoDataset
from htd_jax.errors import UserError


def make_config(**data):
    augment = dict(scale=None, crop=0.0, colour=0.0) | data.pop("augment", {})
    defaults = dict(scale=(192, 128), short_range=None, pad_to="bucket", flip=0.5, workers=0, augment=augment)
    return ConfigDict(dict(seed=3, batch_size=4, data={**defaults, **data}, test=dict(scale=(192, 128))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco")
    synthetic_coco.write(path)
    return path


@pytest.fixture(scope="module")
def dataset(folder):
    return CocoDataset(folder / "annotations.json", folder / "images", training=True)


@pytest.fixture(scope="module")
def everything(folder):
    return CocoDataset(folder / "annotations.json", folder / "images")


def take(count, *args, **kwargs):
    iterator = pipeline.train_batches(*args, **kwargs)
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        assert np.array_equal(value, other[key]), key


def test_contents(dataset):
    """Every row is its image, resized, flipped and padded, and its boxes, clipped and padded."""
    flips = collections.Counter()
    for batch in take(12, dataset, make_config()):
        assert batch["skipped"] == () and batch["boxes"].shape == (4, 8, 4)
        for key, kind in dict(image="uint8", size="int32", padded="int32", scale="float32", boxes="float32",
                              labels="int32", valid="bool", index="int32").items():
            assert batch[key].dtype == kind and len(batch[key]) == 4
        for k, index in enumerate(batch["index"]):
            record, (h, w) = dataset.record(index), batch["size"][k]
            assert (h, w) == images.resized_shape(record.height, record.width, (192, 128))
            np.testing.assert_array_equal(batch["scale"][k], np.float32([w / record.width, h / record.height]))
            image = images.resize(dataset.image(index), (h, w))
            flip = not np.array_equal(batch["image"][k, :h, :w], image)
            flips[flip] += 1
            np.testing.assert_array_equal(batch["image"][k, :h, :w], image[:, ::-1] if flip else image)
            assert not batch["image"][k, h:].any() and not batch["image"][k, :, w:].any()
            boxes = transforms.transform_boxes(record.boxes[~record.crowd], batch["scale"][k], (h, w), flip)
            assert batch["valid"][k].sum() == len(boxes) and batch["valid"][k, : len(boxes)].all()
            np.testing.assert_array_equal(batch["boxes"][k, : len(boxes)], boxes)
            np.testing.assert_array_equal(batch["labels"][k, : len(boxes)], record.labels[~record.crowd])
            assert not batch["boxes"][k, len(boxes):].any()
    assert min(flips[True], flips[False]) > 10


def test_boxes_lie_on_their_rectangles(dataset):
    """Seen from the pixels: the middle of a box that nothing overlaps has the colour of its label."""
    hits = total = 0
    for batch in take(8, dataset, make_config(flip=0.5)):
        for k in range(4):
            for box, label in zip(batch["boxes"][k][batch["valid"][k]], batch["labels"][k][batch["valid"][k]]):
                x, y = ((box[:2] + box[2:]) / 2).astype(int)
                hits += batch["image"][k, y, x].argmax() == label and batch["image"][k, y, x].max() > 200
                total += 1
    assert total > 30 and hits / total > 0.85


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_is_a_probability(dataset, flip):
    for batch in take(3, dataset, make_config(flip=flip)):
        for k, index in enumerate(batch["index"]):
            h, w = batch["size"][k]
            image = images.resize(dataset.image(index), (h, w))
            np.testing.assert_array_equal(batch["image"][k, :h, :w], image[:, ::-1] if flip else image)


def test_an_epoch_holds_every_image_in_batches_of_one_orientation(dataset):
    config = make_config()
    steps = pipeline.steps_per_epoch(dataset, config)
    landscape = np.array([dataset.record(i).width > dataset.record(i).height for i in range(len(dataset))])
    assert steps == -(-landscape.sum() // 4) + -(-(~landscape).sum() // 4)
    epochs = [take(steps, dataset, config, start_step=e * steps) for e in range(3)]
    for epoch in epochs:
        indices = np.concatenate([batch["index"] for batch in epoch])
        counts = np.bincount(indices, minlength=len(dataset))
        assert counts.min() == 1 and counts.max() <= 2 and len(indices) == steps * 4
        for batch in epoch:
            assert len(set(landscape[batch["index"]])) == 1
            assert batch["image"].shape[1:3] == ((128, 192) if landscape[batch["index"][0]] else (192, 128))
    orders = [[tuple(batch["index"]) for batch in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2]
    assert {landscape[batch["index"][0]] for batch in epochs[0][:3] + epochs[1][:3]} == {True, False}


def test_a_group_smaller_than_a_batch_is_repeated(dataset):
    config = make_config()
    config.batch_size = 24
    assert pipeline.steps_per_epoch(dataset, config) == 2
    batches = take(2, dataset, config)
    assert set(np.concatenate([b["index"] for b in batches])) == set(range(len(dataset)))


@pytest.mark.parametrize("options", [{}, dict(short_range=(64, 160)), dict(pad_to="exact")])
def test_batches_do_not_depend_on_workers_hosts_or_resumption(dataset, options):
    whole = take(10, dataset, make_config(**options))
    for workers in (1, 3):
        for batch, other in zip(whole, take(10, dataset, make_config(workers=workers, **options)), strict=True):
            assert_equal(batch, other)
    for batch, other in zip(whole[7:], take(3, dataset, make_config(**options), start_step=7), strict=True):
        assert_equal(batch, other)
    hosts = [take(10, dataset, make_config(**options), process_index=p, process_count=2) for p in range(2)]
    for batch, first, second in zip(whole, *hosts, strict=True):
        joined = {key: first[key] + second[key] if key == "skipped" else np.concatenate([first[key], second[key]])
                  for key in batch}
        assert_equal(batch, joined)


def test_seed_changes_order_and_flips(dataset):
    config = make_config()
    config.seed = 4
    ours, theirs = take(6, dataset, make_config()), take(6, dataset, config)
    assert any(not np.array_equal(a["index"], b["index"]) for a, b in zip(ours, theirs))


def test_far_steps_are_as_cheap(dataset):
    assert take(1, dataset, make_config(), start_step=10**9)[0]["index"].min() >= 0


def test_multi_scale_draws_one_scale_per_batch_from_static_shapes(dataset):
    config = make_config(scale=(256, 128), short_range=(64, 192))
    shapes, shorts = padding.buckets((256, 128), (64, 192)), set()
    for batch in take(30, dataset, config):
        assert batch["image"].shape[1:3] in shapes
        short = {int(size.min()) for size, (w, h) in zip(batch["size"], 1 / batch["scale"]) if size.max() < 256}
        assert len(short) <= 1  # of images that the long side does not bound
        shorts |= short
    assert len(shorts) > 10 and min(shorts) >= 64 and max(shorts) <= 192


def test_exact_padding_is_of_the_whole_batch(dataset):
    seen = set()
    for batch in take(10, dataset, make_config(pad_to="exact", scale=(256, 128))):
        shape = tuple(-(-batch["size"].max(0) // 32) * 32)
        assert batch["image"].shape[1:3] == shape and (batch["padded"] == shape).all()
        seen.add(shape)
    for batch in take(10, dataset, make_config(scale=(256, 128))):
        assert (batch["padded"] == -(-batch["size"].max(0) // 32) * 32).all()
    assert len(seen) > 2


def test_hosts_must_share_evenly(dataset):
    with pytest.raises(UserError, match="4 images cannot be shared by 3"):
        pipeline.train_batches(dataset, make_config(), process_count=3)


@pytest.mark.parametrize("pad_to", ["bucket", "exact"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_sees_every_image_once(everything, pad_to, batch_size):
    seen, shapes = [], set()
    for batch in pipeline.eval_batches(everything, make_config(pad_to=pad_to), batch_size):
        assert batch.keys() == {"image", "size", "padded", "scale", "index"} and len(batch["image"]) == batch_size
        shapes.add(batch["image"].shape[1:3])
        real = batch["index"] >= 0
        assert real[0] and not (np.diff(real.astype(int)) > 0).any()
        assert not batch["image"][~real].any() and np.isfinite(batch["scale"]).all() and (batch["size"] > 0).all()
        for k, index in enumerate(batch["index"][real]):
            h, w = batch["size"][k]
            np.testing.assert_array_equal(batch["image"][k, :h, :w], images.resize(everything.image(index), (h, w)))
            assert (batch["padded"][k] == -(-batch["size"][k] // 32) * 32).all()
        if pad_to == "exact":
            assert (batch["padded"] == batch["image"].shape[1:3]).all()
        seen += batch["index"][real].tolist()
    assert sorted(seen) == list(range(20))
    assert pad_to == "exact" or shapes == {(192, 128), (128, 192)}


def test_evaluation_at_another_scale_and_over_hosts(everything):
    config = make_config(workers=2)
    whole = list(pipeline.eval_batches(everything, config, 4, scale=(96, 64)))
    assert {max(batch["image"].shape[1:3]) for batch in whole} == {96}
    hosts = [list(pipeline.eval_batches(everything, config, 4, (96, 64), p, 2)) for p in range(2)]
    for batch, first, second in zip(whole, *hosts, strict=True):
        assert_equal(batch, {key: np.concatenate([first[key], second[key]]) for key in batch})


@pytest.fixture
def damaged(tmp_path):
    """A training set of which image 101 is truncated and 103 of another size than stated."""
    synthetic_coco.write(tmp_path, count=24)
    path = tmp_path / "images" / "000101.jpg"
    path.write_bytes(path.read_bytes()[:200])
    cv2.imwrite(str(tmp_path / "images" / "000103.jpg"), np.zeros((40, 40, 3), np.uint8))
    return CocoDataset(tmp_path / "annotations.json", tmp_path / "images", training=True)


@pytest.mark.parametrize("pad_to", ["bucket", "exact"])
def test_unreadable_images_are_replaced_and_named(damaged, pad_to):
    config = make_config(pad_to=pad_to)
    steps = pipeline.steps_per_epoch(damaged, config)
    batches = take(steps, damaged, config)
    names = [message for batch in batches for message in batch["skipped"]]
    assert any("000101.jpg is truncated" in name for name in names)
    assert any("000103.jpg has 40 x 40" in name for name in names)
    for batch in batches:
        records = [damaged.record(index) for index in batch["index"]]
        assert not {101, 103} & {record.image_id for record in records}
        assert (batch["size"] <= batch["padded"]).all()
        assert len({record.width > record.height for record in records}) == 1
    hosts = [take(steps, damaged, config, process_index=p, process_count=4) for p in range(4)]
    for batch, *rows in zip(batches, *hosts, strict=True):
        np.testing.assert_array_equal(batch["image"], np.concatenate([row["image"] for row in rows]))
        assert batch["skipped"] == sum((row["skipped"] for row in rows), ())


def test_nothing_readable_is_an_error(damaged, tmp_path):
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="images in a row cannot be used, the first: image file .*is empty"):
        take(1, damaged, make_config(workers=2))


def test_an_unreadable_image_stops_an_evaluation(damaged):
    with pytest.raises(UserError, match="000101.jpg is truncated"):
        list(pipeline.eval_batches(damaged, make_config(workers=2), 2))


def test_more_than_one_percent_stops_training(caplog):
    counter = pipeline.SkippedImages(range(1000))
    for _ in range(10):
        counter.add(("a.jpg is empty",), 4)
    assert counter.count == 10
    with pytest.raises(UserError, match=r"more than 1 % .*11 of 1000\), the last: b.jpg"):
        counter.add(("b.jpg is empty",), 4)
    counter = pipeline.SkippedImages(range(100))
    counter.add((), 10_000)
    counter.add(("a.jpg is empty",) * 50, 16)
    assert counter.count == 50


def test_real_photographs_make_the_originals_shapes(shared):
    """The four photographs of the golden figures, through the evaluation pipeline with exact padding."""
    golden = json.loads((shared / "golden/coco_r50.json").read_text())["images"]
    mini = shared / "data/coco2017_mini"
    dataset = CocoDataset(mini / "annotations/instances_val2017.json", mini / "val2017")
    config = make_config(pad_to="exact", workers=0)
    chosen = Subset(dataset, [i for i in range(len(dataset)) if str(dataset.record(i).image_id) in golden])
    batches = list(pipeline.eval_batches(chosen, config, 1, scale=(1333, 800)))
    assert len(batches) == len(golden) == 4
    for batch in batches:
        figures = golden[str(chosen.record(batch["index"][0]).image_id)]
        assert batch["image"].shape[1:3] == tuple(figures["pad_shape"][:2])
        assert batch["size"][0].tolist() == figures["img_shape"][:2]
        np.testing.assert_array_equal(batch["scale"][0], np.float32(figures["scale_factor"][:2]))


class Subset:
    def __init__(self, dataset, rows):
        self._dataset, self._rows = dataset, rows

    def __len__(self):
        return len(self._rows)

    def record(self, index):
        return self._dataset.record(self._rows[index])

    def image(self, index):
        return self._dataset.image(self._rows[index])
