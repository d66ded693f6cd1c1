"""Every image counted once, on one device or eight, one host or two; files that others can read."""
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax.config import default_config
from htd_jax.data import detection_batches
from htd_jax.data.records import Category, Record, coco_ground_truth
from htd_jax.errors import UserError
from htd_jax.evaluation import coco, runner
from htd_jax.mesh import make_mesh

BOX = np.float32([[4, 6, 24, 36]])


class Scenes:
    """n images of two orientations; image i has object BOX of class i % 2, and pixels of value i."""

    categories = (Category(7, "cat"), Category(3, "dog"))

    def __init__(self, n=11):
        self.n = n

    def __len__(self):
        return self.n

    def record(self, i):
        height, width = (40, 60) if i % 3 else (60, 40)
        boxes = BOX if i != 5 else np.zeros((0, 4), np.float32)
        labels = np.full(len(boxes), i % 2, np.int32)
        return Record(f"id{i:03d}", f"{i}.jpg", height, width, boxes, labels, np.zeros(len(boxes), bool))

    def image(self, i):
        record = self.record(i)
        return np.full((record.height, record.width, 3), i, np.uint8)

    def ground_truth(self):
        return coco_ground_truth(self)


def oracle(batch):
    """Finds BOX in every image, of the class that its pixels tell, and a worse box that is invalid."""
    views = batch if isinstance(batch, tuple) else (batch,)
    shown = jnp.stack([view["image"][:, 0, 0, 0] for view in views]).astype(jnp.int32)
    shown = jnp.where((shown == shown[:1]).all(0), shown[0], 99)  # 99: the views differ, a class that does not exist
    rows = len(shown)
    labels = jnp.stack([shown % 2, shown % 2], 1).astype(jnp.int32)
    return {"boxes": jnp.tile(jnp.array(BOX), (rows, 2, 1)), "scores": jnp.tile(jnp.array([.9, 0.]), (rows, 1)),
            "labels": labels, "valid": jnp.stack([shown != 4, jnp.zeros(rows, bool)], 1)}


def settings(**test):
    config = default_config()
    config.test.update({"scale": (96, 64), "max_detections": 2, **test})
    config.data.workers = 0
    return config


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("pad_to", ["exact", "bucket"])
def test_every_image_comes_once_in_its_place(batch_size, pad_to):
    config = settings(batch_size=batch_size)
    config.data.pad_to = pad_to
    detections = runner.collect(oracle, Scenes(), config)
    assert [len(found["scores"]) for found in detections] == [0 if i == 4 else 1 for i in range(11)]
    assert [int(found["labels"][0]) for i, found in enumerate(detections) if i != 4] == [
        i % 2 for i in range(11) if i != 4]


def test_result_does_not_depend_on_batch_size_or_devices():
    one = runner.evaluate(oracle, Scenes(), settings())
    assert runner.evaluate(oracle, Scenes(), settings(batch_size=4)) == one
    assert (one["images"], one["per_class"]["cat"] < 1, one["per_class"]["dog"] < 1) == (11, True, True)
    assert one["AR100"] == pytest.approx((5 / 6 + 1) / 2)  # of six cats one is missed


@pytest.mark.parametrize("pad_to", ["exact", "bucket"])
def test_augmentation_gives_each_batch_one_view_a_scale_of_the_same_images(pad_to):
    config = settings(tta=True, tta_scales=((96, 64), (64, 48), (200, 100)), batch_size=3)
    config.data.pad_to = pad_to
    seen = []
    for index, batch in detection_batches.batches(Scenes(), config, 3):
        assert [view["size"][0].max() for view in batch] == [96, 64, 150]
        for view in batch:
            np.testing.assert_array_equal(view["image"][index >= 0, 0, 0, 0], index[index >= 0])
        seen += index[index >= 0].tolist()
    assert sorted(seen) == list(range(11))
    assert runner.evaluate(oracle, Scenes(), config) == runner.evaluate(oracle, Scenes(), settings())


def test_images_without_any_detection_are_scored():
    def blind(batch):
        return {**oracle(batch), "valid": jnp.zeros((len(batch["image"]), 2), bool)}
    metrics = runner.evaluate(blind, Scenes(), settings())
    assert (metrics["AP"], metrics["AR100"], metrics["images"]) == (0, 0, 11)


@pytest.mark.parametrize("tta", [False, True])
def test_a_set_of_no_images_is_scored_as_nothing(tta, tmp_path):
    metrics = runner.evaluate(oracle, Scenes(0), settings(tta=tta), tmp_path)
    assert metrics["images"] == 0 and {metrics[name] for name in coco.METRICS} == {-1}
    assert json.loads((tmp_path / "detections.json").read_text()) == []


def test_detections_of_classes_that_the_data_does_not_have_are_left_out_aloud(caplog):
    def more(batch):
        found = oracle(batch)
        return {**found, "valid": jnp.ones_like(found["valid"]), "labels": found["labels"].at[:, 1].set(2)}
    assert {len(found["scores"]) for found in runner.collect(more, Scenes(), settings())} == {1}
    assert "11 detections are of classes" in caplog.text


def test_classes_of_a_detector_in_another_order_are_mapped():
    class Reordered(Scenes):
        categories = Scenes.categories[::-1]

        def record(self, i):
            record = super().record(i)
            return dataclasses.replace(record, labels=1 - record.labels)
    same = runner.evaluate(oracle, Reordered(), settings(), labels=np.int32([1, 0]))
    assert same["AP"] == runner.evaluate(oracle, Scenes(), settings())["AP"] > 0
    one = runner.collect(oracle, Scenes(), settings(), labels=np.int32([-1, 1]))
    assert {label for found in one for label in found["labels"].tolist()} == {1}


def test_files_say_what_was_returned_and_score_the_same_again(tmp_path):
    folder = tmp_path / "new" / "folder"
    metrics = runner.evaluate(oracle, Scenes(), settings(), folder)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    results = json.loads((folder / "detections.json").read_text())
    assert results[0] == {"image_id": "id000", "category_id": 7, "bbox": [4, 6, 20, 30], "score": .9}
    assert len(results) == 10
    assert coco.score(Scenes().ground_truth(), results) == metrics
    assert "on 11 images" in (folder / "report.html").read_text()


def test_an_output_folder_that_cannot_be_made_is_an_error_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder .*file/deep"):
        runner.evaluate(lambda batch: pytest.fail("worked"), Scenes(), settings(), tmp_path / "file" / "deep")


def test_an_unreadable_image_stops_the_evaluation_with_its_name():
    class Broken(Scenes):
        def image(self, i):
            if i == 7:
                raise UserError("image file 7.jpg is truncated")
            return super().image(i)
    with pytest.raises(UserError, match="7.jpg is truncated"):
        runner.evaluate(oracle, Broken(), settings())


def test_the_next_batch_is_dispatched_before_the_last_is_fetched():
    log = []

    class Later:
        def __init__(self, value, name):
            self.value, self.name = value, name

        def __array__(self, *args, **kwargs):
            log.append(f"fetch {self.name}")
            return np.asarray(self.value)

    def detect_fn(batch):
        name = sum(entry.startswith("dispatch") for entry in log)
        log.append(f"dispatch {name}")
        found = oracle(batch)
        return {**{k: np.asarray(v) for k, v in found.items()}, "scores": Later(found["scores"], name)}

    list(runner._fetched(detect_fn, detection_batches.batches(Scenes(3), settings(), 1), 3))
    assert log == ["dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "fetch 2"]


def test_a_bug_that_loses_images_is_not_passed_over():
    with pytest.raises(RuntimeError, match="2 of 3 images"):
        runner._by_row(np.array([0, 1, -1]), {name: np.zeros((3, 1), bool) for name in runner.FIELDS}, 3)
    with pytest.raises(RuntimeError, match="2 of 3 images"):
        runner._by_row(np.array([0, 1, 1]), {name: np.zeros((3, 1), bool) for name in runner.FIELDS}, 3)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_hosts_with_two_devices_each_give_the_numbers_of_one(tmp_path):
    port, here = free_port(), pathlib.Path(__file__)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                   "PYTHONPATH": f"{here.parents[1]}:{here.parent}"}
    hosts = [subprocess.Popen([sys.executable, here, str(port), str(i), str(tmp_path)], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(2)]
    outputs = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    expected = runner.evaluate(oracle, Scenes(), settings())
    assert [json.loads(out.splitlines()[-1]) for out, _ in outputs] == [expected, expected]
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == ["detections.json", "detections.png", "metrics.json", "report.html"]


def one_host(port, number, output):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    mesh = make_mesh()
    assert mesh.size == 4

    def detect_fn(batch):
        assert len(batch["image"]) == 2 * mesh.local_mesh.size
        return oracle(batch)

    print(json.dumps(runner.evaluate(detect_fn, Scenes(), settings(batch_size=2), output, mesh)))


if __name__ == "__main__":
    one_host(*sys.argv[1:])
