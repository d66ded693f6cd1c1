"""Reading of COCO annotation files: the original's filters, and errors that name what is wrong."""
import copy
import json

import numpy as np
import pytest
import synthetic_coco

from htd_jax.data import open_dataset
from htd_jax.data.coco import CocoDataset
from htd_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco")
    synthetic_coco.write(path)
    return path


@pytest.fixture
def content(folder):
    return json.loads((folder / "annotations.json").read_text())


@pytest.fixture
def reopen(folder, tmp_path):
    """Opens the synthetic images with other annotations."""

    def reopen(content, training=False):
        path = tmp_path / "changed.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return CocoDataset(path, folder / "images", training)

    return reopen


def reference(content, image):
    """The original's `_parse_ann_info`, transcribed: boxes, labels (of boxes and crowds), crowd flags."""
    label_of = {c["id"]: i for i, c in enumerate(content["categories"])}
    boxes, labels, crowd = [], [], []
    for a in content["annotations"]:
        if a["image_id"] != image["id"] or a.get("ignore", False):
            continue
        x, y, w, h = a["bbox"]
        inter_w = max(0, min(x + w, image["width"]) - max(x, 0))
        inter_h = max(0, min(y + h, image["height"]) - max(y, 0))
        if inter_w * inter_h == 0 or a["area"] <= 0 or w < 1 or h < 1:
            continue
        boxes.append([x, y, x + w, y + h])
        labels.append(label_of[a["category_id"]])
        crowd.append(bool(a.get("iscrowd", 0)))
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32), np.array(crowd, bool)


def assert_same_as_reference(dataset, content):
    by_id = {image["id"]: image for image in content["images"]}
    for index in range(len(dataset)):
        record = dataset.record(index)
        image = by_id[record.image_id]
        assert (record.name, record.height, record.width) == (image["file_name"], image["height"], image["width"])
        for ours, theirs in zip((record.boxes, record.labels, record.crowd), reference(content, image)):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("training", [False, True])
def test_records_equal_the_originals(folder, content, training):
    dataset = CocoDataset(folder / "annotations.json", folder / "images", training)
    assert len(dataset) == (15 if training else 20)  # every fourth image has no annotation
    assert [c.name for c in dataset.categories] == ["red", "green", "blue"]
    assert_same_as_reference(dataset, content)
    assert any(dataset.record(i).crowd.any() for i in range(len(dataset)))


@pytest.mark.parametrize("training, images", [(False, 343), (True, None)])
def test_real_records_equal_the_originals(shared, training, images):
    mini = shared / "data/coco2017_mini"
    path = mini / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    annotated = {a["image_id"] for a in content["annotations"]}
    dataset = CocoDataset(path, mini / "train2017", training)
    assert len(dataset) == (images or len(annotated)) and len(dataset.categories) == 80
    assert [c.id for c in dataset.categories] == sorted(c.id for c in dataset.categories)
    assert_same_as_reference(dataset, content)


@pytest.mark.parametrize(
    "change",
    [
        dict(ignore=1), dict(area=0), dict(bbox=[5, 5, 0.9, 20]), dict(bbox=[5, 5, 20, 0.9]),
        dict(bbox=[160, 5, 20, 20]), dict(bbox=[-20, 5, 20, 20]), dict(bbox=[5, 5, -4, 20]),
    ],
)
def test_a_box_that_falls_away_leaves_its_image(reopen, content, change):
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in (101, 102)]
    next(a for a in content["annotations"] if a["image_id"] == 101).update(change)
    content["annotations"] = [a for k, a in enumerate(content["annotations"]) if k == 0 or a["image_id"] == 102]
    dataset = reopen(content, training=True)
    assert len(dataset) == 2 and dataset.record(0).image_id == 101
    assert dataset.record(0).boxes.shape == (0, 4) and dataset.record(0).labels.shape == (0,)


def test_training_leaves_out_small_images_and_keeps_those_with_crowds_only(reopen, content):
    content["images"][1]["width"] = 31
    crowd_image = content["images"][2]["id"]
    for a in content["annotations"]:
        a["iscrowd"] = int(a["image_id"] == crowd_image)
    dataset = reopen(content, training=True)
    ids = [dataset.record(i).image_id for i in range(len(dataset))]
    assert 101 not in ids and crowd_image in ids
    assert dataset.record(ids.index(crowd_image)).crowd.all()


def test_optional_keys(reopen, content):
    for a in content["annotations"]:
        del a["area"], a["iscrowd"], a["id"]
        a["segmentation"] = {"counts": "x", "size": [1, 2]}
    assert sum(len(reopen(content).record(i).boxes) for i in range(20)) == len(content["annotations"])


def test_image_list_without_annotations_serves_validation_only(reopen, content):
    del content["annotations"]
    dataset = reopen(content)
    assert len(dataset) == 20 and not len(dataset.record(3).boxes)
    with pytest.raises(UserError, match="has no 'annotations'"):
        reopen(content, training=True)


def test_annotations_of_unlisted_images_are_not_used(reopen, content):
    dataset = reopen({**content, "images": content["images"][:4]}, training=True)
    assert [dataset.record(i).image_id for i in range(len(dataset))] == [101, 102, 103]
    assert len(dataset.record(2).boxes) == 3


def test_ground_truth_is_the_file(folder, content):
    assert CocoDataset(folder / "annotations.json", folder / "images", True).ground_truth() == content


def test_image_has_the_size_of_its_record(folder):
    dataset = CocoDataset(folder / "annotations.json", folder / "images")
    for index in range(5):
        record = dataset.record(index)
        assert dataset.image(index).shape == (record.height, record.width, 3)


def broken(content, what):
    content = copy.deepcopy(content)
    first = content["annotations"][0]
    match what:
        case "category":
            first["category_id"] = 999
        case "box":
            first["bbox"] = [1, 2, 3]
        case "text box":
            first["bbox"] = ["a", 2, 3, 4]
        case "no box":
            del first["bbox"]
        case "no size":
            del content["images"][0]["height"]
        case "zero size":
            content["images"][0]["height"] = 0
        case "twice":
            content["images"].append(content["images"][0])
        case "two categories":
            content["categories"].append(content["categories"][0])
        case "no categories":
            content.update(categories=[], annotations=[])
        case "no images":
            content["images"] = []
        case "nothing annotated":
            content["annotations"] = []
        case "image":
            content["images"][2]["file_name"] = "absent.jpg"
            content["images"][3]["file_name"] = "sub/absent.jpg"
    return content


@pytest.mark.parametrize(
    "what, message",
    [
        ("category", r"annotation 1000 of image 101 has category id 999"),
        ("box", r"not a COCO detection file: .*length 4.*annotations\[0\]\.bbox"),
        ("text box", r"float.*annotations\[0\]\.bbox"),
        ("no box", r"`bbox`.*annotations\[0\]"),
        ("no size", r"`height`.*images\[0\]"),
        ("zero size", r"image 000100\.jpg is 160 x 0 pixels"),
        ("twice", "two images of one id"),
        ("two categories", "two categories of one id"),
        ("no categories", "no categories"),
        ("no images", "no usable image"),
        ("nothing annotated", "no usable image: none of its 20"),
    ],
)
def test_bad_content(reopen, content, what, message):
    with pytest.raises(UserError, match=message) as error:
        reopen(broken(content, what), training=True)
    assert "changed.json" in str(error.value) and "\n" not in str(error.value)


def test_missing_images_are_named_at_once(reopen, content):
    message = r"image file absent\.jpg of .*changed\.json is not in .*, nor are 1 others of 20"
    with pytest.raises(UserError, match=message):
        reopen(broken(content, "image"))


@pytest.mark.parametrize(
    "text, message",
    [("", "is empty"), (" \n", "is empty"), ('{"images": [', "is not JSON"), ("[]", "`object`"), ("{}", "`images`"),
     ('{"images": {}}', r"`array`.*images")],
)
def test_bad_files(reopen, text, message):
    with pytest.raises(UserError, match=message):
        reopen(text)


def test_missing_files(folder, tmp_path):
    with pytest.raises(UserError, match="absent.json does not exist"):
        CocoDataset(tmp_path / "absent.json", folder)
    with pytest.raises(UserError, match="cannot be read"):
        CocoDataset(tmp_path, folder)
    with pytest.raises(UserError, match="image folder .*absent.* does not exist"):
        CocoDataset(folder / "annotations.json", tmp_path / "absent")


def test_open_dataset_by_config(folder):
    ml_collections = pytest.importorskip("ml_collections")
    files = dict(annotations=str(folder / "annotations.json"), images=str(folder / "images"))
    config = ml_collections.ConfigDict(dict(data=dict(source="coco", root="", train=files, val=files)))
    assert len(open_dataset(config, "train")) == 15
    assert len(open_dataset(config, "val")) == 20
    config.data.source = "csv"
    with pytest.raises(UserError, match="data.source is 'csv'.*coco, yolo, voc, tfds, demo"):
        open_dataset(config, "val")
