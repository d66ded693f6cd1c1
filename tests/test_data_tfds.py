"""COCO prepared as a TFDS set, and TFDS sets as datasets; all of it without TensorFlow."""
import io
import json
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import synthetic_coco
from ml_collections import ConfigDict
from PIL import Image

from htd_jax.data import open_dataset, pipeline, tfds_index
from htd_jax.data.coco import CocoDataset
from htd_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
from tensorflow_datasets.core import dataset_info, example_serializer, file_adapters, naming, splits  # noqa: E402

from htd_jax import prepare  # noqa: E402
from htd_jax.data.tfds import TfdsDataset  # noqa: E402


def write_coco(folder):
    """The layout of COCO 2017: 12 training, 8 validation and 3 test images."""
    (folder / "annotations").mkdir(parents=True)
    for name, count in (("train2017", 12), ("val2017", 8), ("test2017", 3)):
        synthetic_coco.write(folder / "tmp", count, seed=count)
        (folder / "tmp/images").rename(folder / name)
        target = "image_info_test2017" if name == "test2017" else f"instances_{name}"
        (folder / "tmp/annotations.json").rename(folder / f"annotations/{target}.json")
    path = folder / "annotations/image_info_test2017.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(coco, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    return prepare.prepare(coco, data_dir, shard_bytes=20_000)


def from_coco(folder, split, training=False):
    return CocoDataset(folder / f"annotations/instances_{split}2017.json", folder / f"{split}2017", training)


def assert_same(dataset, reference, tolerance=0.01):
    assert len(dataset) == len(reference) and dataset.categories == reference.categories
    for index in range(len(reference)):
        ours, theirs = dataset.record(index), reference.record(index)
        for field in ("image_id", "name", "height", "width"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert ours.boxes.dtype == np.float32 and ours.labels.dtype == np.int32 and ours.crowd.dtype == bool
        assert ours.boxes.shape == theirs.boxes.shape
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=tolerance)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.crowd, theirs.crowd)


@pytest.mark.parametrize("split, name", [("train", "train"), ("val", "validation")])
@pytest.mark.parametrize("training", [False, True])
def test_prepared_set_equals_the_files(coco, prepared, split, name, training):
    dataset, reference = TfdsDataset(prepared, name, training), from_coco(coco, split, training)
    assert_same(dataset, reference)
    for index in range(len(reference)):
        np.testing.assert_array_equal(dataset.image(index), reference.image(index))


def test_layout_is_the_stock_builders(prepared):
    """Names, types and split names of `coco/2017`, so that other programs read it as that."""
    builder = tfds.builder_from_directory(str(prepared))
    assert (builder.info.full_name, builder.info.file_format.value) == ("coco/2017/1.1.0", "array_record")
    assert set(builder.info.splits) == {"train", "validation", "test"}
    example = builder.as_data_source("train")[3]
    assert example["image"].shape == (150, 150, 3)
    assert example["image/filename"] == b"000103.jpg" and example["image/id"] == 103
    assert set(example["objects"]) == {"id", "area", "bbox", "label", "is_crowd"}
    y1, x1, y2, x2 = example["objects"]["bbox"][0]
    assert 0 <= y1 < y2 <= 1 and 0 <= x1 < x2 <= 1
    assert len(list(prepared.glob("coco-train.array_record-*"))) > 1


def test_test_split_has_images_only(prepared):
    dataset = TfdsDataset(prepared, "test")
    assert len(dataset) == 3 and not any(len(dataset.record(i).boxes) for i in range(3))


def test_real_photographs(shared, tmp_path):
    """Boxes within .01 pixel of the JSON, over all boxes of the small COCO."""
    mini = shared / "data/coco2017_mini"
    directory = prepare.prepare(mini, tmp_path)
    for split, name in (("train", "train"), ("val", "validation")):
        for training in (False, True):
            assert_same(TfdsDataset(directory, name, training), from_coco(mini, split, training))


def test_nothing_imports_tensorflow(coco, tmp_path):
    program = """
import sys
from htd_jax import prepare
from htd_jax.data.tfds import TfdsDataset
dataset = TfdsDataset(prepare.prepare(*sys.argv[1:]), "train", training=True)
assert dataset.image(0).shape[2] == 3 and len(dataset.record(2).boxes) == 3, dataset.record(2)
assert "tensorflow" not in sys.modules
print("images", len(dataset))
"""
    done = subprocess.run([sys.executable, "-c", program, str(coco), str(tmp_path)], capture_output=True, text=True,
                          cwd=pathlib.Path(__file__).parents[1])
    assert done.stdout.strip().endswith("images 9"), done.stderr


def test_resumes_and_keeps_complete_shards(coco, tmp_path, monkeypatch):
    source, data_dir = tmp_path / "coco", tmp_path / "tfds"
    shutil.copytree(coco, source)
    victim = source / "train2017/000108.jpg"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-2] + b"\0\0")  # truncated, of the same size
    with pytest.raises(UserError, match="000108.jpg is truncated"):
        prepare.prepare(source, data_dir, shard_bytes=20_000)
    directory = data_dir / "coco/2017/1.1.0"
    written = {path: path.stat().st_mtime_ns for path in directory.glob("coco-train*")}
    assert written and not (directory / "dataset_info.json").exists()
    victim.write_bytes(whole)
    assert prepare.prepare(source, data_dir, shard_bytes=20_000) == directory
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert not list(directory.glob("partial*"))
    assert_same(TfdsDataset(directory, "train"), from_coco(source, "train"))
    monkeypatch.setattr(prepare, "_write_shard", lambda *_: pytest.fail("nothing was left to write"))
    prepare.prepare(source, data_dir, shard_bytes=20_000)


def test_other_annotations_do_not_join_a_set(coco, tmp_path):
    prepare.prepare(coco, tmp_path / "tfds")
    other = tmp_path / "coco"
    shutil.copytree(coco, other)
    path = other / "annotations/instances_train2017.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="begun with other annotations"):
        prepare.prepare(other, tmp_path / "tfds")


def test_image_stored_turned(tmp_path):
    """TFDS readers ignore EXIF, so an image annotated upright is stored upright."""
    write_coco(tmp_path / "coco")
    path = tmp_path / "coco/train2017/000100.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).rotate(90, expand=True).save(path, exif=exif, quality=95)
    directory = prepare.prepare(tmp_path / "coco", tmp_path / "tfds")
    dataset, reference = TfdsDataset(directory, "train"), from_coco(tmp_path / "coco", "train")
    assert dataset.record(0).height == 120 and dataset.image(0).shape == reference.image(0).shape == (120, 160, 3)
    assert np.abs(dataset.image(0).astype(int) - reference.image(0)).mean() < 3


def test_boxes_beyond_the_image(tmp_path):
    write_coco(tmp_path / "coco")
    path = tmp_path / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0].update(bbox=[-10, 5, 60, 500])
    content["annotations"][1].update(bbox=[30, 30, -5, 10])
    content["annotations"][2].update(ignore=1)
    path.write_text(json.dumps(content))
    dataset = TfdsDataset(prepare.prepare(tmp_path / "coco", tmp_path / "tfds"), "train", training=True)
    np.testing.assert_allclose(dataset.record(0).boxes, [[0, 5, 50, 160]], atol=0.01)
    assert dataset.record(1).crowd.tolist() == [True]  # one box fell away, the other is ignored
    assert len(dataset) == 9


@pytest.mark.parametrize("what", ["nothing", "missing image", "another size"])
def test_prepare_refuses(tmp_path, what, capsys):
    write_coco(tmp_path / "coco")
    match what:
        case "nothing":
            shutil.rmtree(tmp_path / "coco/annotations")
        case "missing image":
            (tmp_path / "coco/train2017/000104.jpg").unlink()
        case "another size":
            Image.new("RGB", (50, 40)).save(tmp_path / "coco/train2017/000104.jpg")
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--coco", str(tmp_path / "coco"), "--tfds", str(tmp_path / "tfds")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ")
    assert ("annotations has none of" if what == "nothing" else "000104.jpg") in error


def make_config(prepared, coco, annotations="instances_val2017.json"):
    name = str(prepared.relative_to(prepared.parents[2]).parent)
    return ConfigDict(dict(
        seed=0, batch_size=2,
        data=dict(source="tfds", tfds=dict(name=name, dir=str(prepared.parents[2])), workers=2, pad_to="bucket",
                  flip=0.5, scale=(192, 128), augment=dict(scale=None, crop=0.0, colour=0.0),
                  val=dict(annotations=str(coco / "annotations" / annotations))),
        test=dict(scale=(192, 128)),
    ))


def test_pipeline_makes_the_same_batches(coco, prepared):
    config = make_config(prepared, coco)
    ours, theirs = open_dataset(config, "train"), from_coco(coco, "train", training=True)
    assert pipeline.steps_per_epoch(ours, config) == pipeline.steps_per_epoch(theirs, config)
    batches = zip(pipeline.train_batches(ours, config), pipeline.train_batches(theirs, config))
    for batch, reference in (next(batches) for _ in range(6)):
        for key in ("image", "size", "padded", "labels", "valid", "index"):
            np.testing.assert_array_equal(batch[key], reference[key])
        np.testing.assert_allclose(batch["boxes"], reference["boxes"], atol=0.02)


def test_ground_truth_is_the_official_json(coco, prepared):
    dataset = open_dataset(make_config(prepared, coco), "val")
    assert dataset.ground_truth() == json.loads((coco / "annotations/instances_val2017.json").read_text())
    assert [c.id for c in dataset.categories] == [7, 3, 90]


@pytest.mark.parametrize("annotations", ["absent.json", "instances_train2017.json", "other.json"])
def test_ground_truth_without_the_json(coco, prepared, annotations):
    """Absent: from the set, in pixels and original ids. Of more images than the set: only the set's."""
    content = json.loads((coco / "annotations/instances_val2017.json").read_text())
    other = {**content, "images": [{**i, "id": i["id"] + 1} for i in content["images"]], "annotations": []}
    (coco / "annotations/other.json").write_text(json.dumps(other))
    truth = open_dataset(make_config(prepared, coco, annotations), "val").ground_truth()
    assert [i["id"] for i in truth["images"]] == [i["id"] for i in content["images"]]
    if annotations != "instances_train2017.json":
        assert len(truth["annotations"]) == len(content["annotations"])
        for ours, theirs in zip(truth["annotations"], content["annotations"]):
            assert all(ours[key] == theirs[key] for key in ("image_id", "category_id", "iscrowd"))
            np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=0.01)


def write_set(directory, features, examples, file_format="array_record", split="train", name="pets"):
    """Writes any TFDS set; TFRecords by hand, as TensorFlow would (its checksums are not looked at)."""
    directory.mkdir(parents=True)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    records = [serializer.serialize_example(features.encode_example(example)) for example in examples]
    template = naming.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, split=split, filetype_suffix=file_format)
    path = pathlib.Path(template.sharded_filepath(shard_index=0, num_shards=1))
    if file_format == "tfrecord":
        path.write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + b"\0" * 4 for r in records))
    else:
        file_adapters.ArrayRecordFileAdapter.write_examples(path, enumerate(records))
    identity = dataset_info.DatasetIdentity(name=name, version="1.0.0", data_dir=str(directory), module_name="")
    info = dataset_info.DatasetInfo(builder=identity, features=features)
    info.set_file_format(file_format)
    size = sum(map(len, records))
    info.set_splits(splits.SplitDict([splits.SplitInfo(
        name=split, shard_lengths=[len(records)], num_bytes=size, filename_template=template)]))
    info.write_to_directory(directory)
    return path


def pets(box_format="REL_YXYX", **more):
    return tfds.features.FeaturesDict({
        "photo": tfds.features.Image(encoding_format="png"),
        "animals": tfds.features.Sequence({
            "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            "place": tfds.features.BBoxFeature(bbox_format=box_format),
        }),
        **more,
    })


def pet(box=(0.1, 0.2, 0.5, 0.6), count=1, size=(40, 80)):
    buffer = io.BytesIO()
    Image.new("RGB", size[::-1], (200, 100, 50)).save(buffer, "PNG")
    buffer.seek(0)
    return dict(photo=buffer, animals=[dict(kind="dog", place=np.array(box))] * count)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_any_set_with_boxes_and_labels(tmp_path, file_format):
    """Features are found by type, whatever their names; ids are numbers from 1."""
    write_set(tmp_path / "pets/1.0.0", pets(), [pet(), pet(count=0), pet(count=2), pet(size=(20, 80))], file_format)
    dataset = TfdsDataset(tmp_path / "pets/1.0.0", "train")
    assert [dataset.record(i).image_id for i in range(4)] == [1, 2, 3, 4]
    assert [tuple(c) for c in dataset.categories] == [(1, "cat"), (2, "dog")]
    record = dataset.record(2)
    assert (record.height, record.width, record.name) == (40, 80, "train[2]")
    np.testing.assert_allclose(record.boxes, [[16, 4, 48, 20]] * 2, atol=1e-4)
    assert record.labels.tolist() == [1, 1] and not record.crowd.any()
    assert dataset.image(2).shape == (40, 80, 3) and (dataset.image(2) == [200, 100, 50]).all()
    assert len(TfdsDataset(tmp_path / "pets/1.0.0", "train", training=True)) == 2
    assert dataset.ground_truth()["annotations"][1]["bbox"] == pytest.approx([16, 4, 32, 16], abs=1e-4)


@pytest.mark.parametrize("box_format, box", [
    ("REL_YXYX", (0.1, 0.2, 0.5, 0.6)), ("REL_XYXY", (0.2, 0.1, 0.6, 0.5)), ("YXYX", (4, 16, 20, 48)),
    ("XYXY", (16, 4, 48, 20)), ("XYWH", (16, 4, 32, 16)),
])
def test_box_formats(box_format, box):
    np.testing.assert_allclose(tfds_index._to_pixels(np.float64([box]), box_format, 40, 80), [[16, 4, 48, 20]])


def test_stock_coco_has_the_official_categories(tmp_path):
    """Neither names nor ids are in the stock set's files."""
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(encoding_format="png"),
        "objects": tfds.features.Sequence({
            "bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=80),
            "is_crowd": np.bool_}),
    })
    objects = [dict(bbox=np.array([0, 0, 1.0, 1.0]), label=79, is_crowd=True)]
    directory = tmp_path / "coco/1.1.0"
    write_set(directory, features, [dict(image=pet()["photo"], objects=objects)], name="coco")
    dataset = TfdsDataset(directory, "train")
    assert dataset.categories[11] == (13, "stop sign") and dataset.categories[79] == (90, "toothbrush")
    assert dataset.record(0).crowd.tolist() == [True] and dataset.record(0).labels.tolist() == [79]


def test_index_is_kept_and_follows_the_set(tmp_path, monkeypatch):
    directory = tmp_path / "pets/1.0.0"
    write_set(directory, pets(), [pet()])
    assert len(TfdsDataset(directory, "train")) == 1
    made = []
    make = tfds_index._make_index
    monkeypatch.setattr(tfds_index, "_make_index", lambda *a: made.append(1) or make(*a))
    TfdsDataset(directory, "train")
    assert not made
    (directory / "detection_index-train.npz").write_bytes(b"damaged")
    TfdsDataset(directory, "train")
    assert len(made) == 1
    index = directory.joinpath("detection_index-train.npz").read_bytes()
    shutil.rmtree(directory)
    write_set(directory, pets(), [pet(), pet()])
    (directory / "detection_index-train.npz").write_bytes(index)
    assert len(TfdsDataset(directory, "train")) == 2 and len(made) == 2


def test_index_of_a_read_only_set(tmp_path, monkeypatch):
    directory = tmp_path / "pets/1.0.0"
    write_set(directory, pets(), [pet()])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = tfds_index._write_index

    def refuse(path, index):
        if path.parent == directory:
            raise PermissionError(13, "Permission denied")
        write(path, index)

    monkeypatch.setattr(tfds_index, "_write_index", refuse)
    assert len(TfdsDataset(directory, "train")) == 1
    assert list((tmp_path / "cache/htd_jax/tfds").glob("*-train.npz"))


def test_bad_sets(tmp_path):
    with pytest.raises(UserError, match="no prepared TFDS set in .*htd_jax.prepare"):
        tfds_index.find_set("coco/2017", tmp_path)
    write_set(tmp_path / "pets/1.0.0", pets(), [pet()])
    with pytest.raises(UserError, match="no split 'validation', only train"):
        TfdsDataset(tmp_path / "pets/1.0.0", "validation")
    no_boxes = tfds.features.FeaturesDict({"photo": tfds.features.Image(encoding_format="png")})
    write_set(tmp_path / "plain/1.0.0", no_boxes, [dict(photo=pet()["photo"])])
    with pytest.raises(UserError, match="cannot train a detector: .* has photo"):
        TfdsDataset(tmp_path / "plain/1.0.0", "train")
    path = write_set(tmp_path / "cut/1.0.0", pets(), [pet(), pet()], "tfrecord")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is truncated"):
        TfdsDataset(tmp_path / "cut/1.0.0", "train")


def test_newest_version_is_found(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        write_set(tmp_path / "pets" / version, pets(), [pet()])
    assert tfds_index.find_set("pets", tmp_path).name == "1.10.0"
    assert tfds_index.find_set("pets/1.9.0", tmp_path).name == "1.9.0"
