"""One folder as data: COCO's, YOLO's and VOC's layouts give the same images and boxes; bad ones are named."""
import json
import logging
import shutil

import numpy as np
import own_folders
import pytest
import synthetic_coco
import yaml

from htd_jax.config import default_config
from htd_jax.data import layouts, open_dataset, voc
from htd_jax.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(folder, content) of the tiny COCO set."""
    folder = tmp_path_factory.mktemp("source")
    return folder, synthetic_coco.write(folder)


WRITERS = dict(coco=own_folders.write_roboflow_coco, yolo=own_folders.write_yolo, voc=own_folders.write_voc)


@pytest.fixture
def folder(source, tmp_path):
    """Writes the set in a layout; returns the folder."""
    def write(kind, **more):
        WRITERS[kind](tmp_path / "mine", *source, **more)
        return tmp_path / "mine"
    return write


def config(root, **keys):
    result = default_config()
    result.data.update(root=str(root), **keys)
    return result


def boxes_by_image(dataset):
    """{file name: sorted rows of class name and box}, without what the layouts cannot say."""
    found = {}
    for i in range(len(dataset)):
        record = dataset.record(i)
        rows = [(dataset.categories[label].name, *box.tolist())
                for box, label in zip(record.boxes, record.labels)]
        found[record.name.rsplit("/", 1)[-1]] = sorted(rows)
    return found


@pytest.mark.parametrize("kind, more", [("coco", {}), ("yolo", {}), ("yolo", dict(names="dict")), ("voc", {})])
def test_every_layout_gives_the_same_boxes(source, folder, kind, more, caplog):
    caplog.set_level("INFO")
    c = config(folder(kind, **more))
    train, val = open_dataset(c, "train"), open_dataset(c, "val")
    assert (len(train), len(val)) == (9, 4)  # every fourth image has no box
    assert f"taken for {kind.upper()}" in caplog.text or kind in str(layouts.find(c.data.root)).lower()
    parts = own_folders.coco_splits(source[1])
    names = {c["id"]: c["name"] for c in source[1]["categories"]}
    for split, dataset in (("train", train), ("valid", val)):
        for name, rows in boxes_by_image(dataset).items():
            image = next(i for i in parts[split]["images"] if i["file_name"] == name)
            expected = sorted((names[a["category_id"]], *np.add(a["bbox"], [0, 0, *a["bbox"][:2]]).tolist())
                              for a in parts[split]["annotations"] if a["image_id"] == image["id"])
            assert [row[0] for row in rows] == [row[0] for row in expected]
            if expected:
                np.testing.assert_allclose([row[1:] for row in rows], [row[1:] for row in expected], atol=0.001)
    assert {c.name for c in train.categories} == {"red", "green", "blue"} and val.categories == train.categories
    record = val.record(0)
    assert val.image(0).shape == (record.height, record.width, 3)
    truth = val.ground_truth()
    assert len(truth["images"]) == 4 and {c["name"] for c in truth["categories"]} == {"red", "green", "blue"}
    c.data.val_split = "test"
    assert len(open_dataset(c, "val")) == 4 and boxes_by_image(open_dataset(c, "val")) != boxes_by_image(val)


def test_difficult_objects_are_crowds(folder):
    val = open_dataset(config(folder("voc")), "val")
    crowds = sum(int(val.record(i).crowd.sum()) for i in range(len(val)))
    assert crowds == sum(a["iscrowd"] for a in val.ground_truth()["annotations"]) == 1


def test_voc_without_lists_holds_images_out_by_name_and_seed(folder, caplog):
    c = config(folder("voc", lists=False), holdout=0.2)
    with caplog.at_level(logging.INFO):
        train, val = open_dataset(c, "train"), open_dataset(c, "val")
    assert ".jpg, less 20% of its images, held out" in caplog.text and ".jpg, 20% of its images, held" in caplog.text
    names = layouts.names_of(val)
    assert len(names) == 4 and not set(names) & set(layouts.names_of(train))
    assert set(names) == set(layouts.names_of(open_dataset(c, "val")))
    c.data.val.annotations = ""  # no validation: nothing is held out
    assert len(open_dataset(c, "train")) > len(train)
    c.data.val.annotations = default_config().data.val.annotations
    c.seed = 1
    assert set(names) != set(layouts.names_of(open_dataset(c, "val")))


def test_annotations_beside_the_images(folder, tmp_path):
    root = folder("voc", lists=False)
    for split in ("train", "valid"):
        (tmp_path / "beside" / split).mkdir(parents=True)
    for path in root.rglob("*.*"):
        shutil.copy(path, tmp_path / "beside" / ("train" if int(path.stem) < 112 else "valid"))
    c = config(tmp_path / "beside")
    assert len(open_dataset(c, "val")) == 8 and len(open_dataset(c, "train")) == 9


@pytest.mark.parametrize("files", [
    {"train.json": "train", "val.json": "valid"}, {"annotations/instances_train.json": "train",
     "annotations/instances_val.json": "valid", "annotations/captions_train.json": "train"}])
def test_cocos_files_and_one_folder_of_images(source, tmp_path, files):
    parts = own_folders.coco_splits(source[1])
    shutil.copytree(source[0] / "images", tmp_path / "images")
    for name, split in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(parts[split]))
    assert len(open_dataset(config(tmp_path), "train")) == 9 and len(open_dataset(config(tmp_path), "val")) == 4


def test_a_folder_within_the_folder_and_a_yaml_alone(folder, tmp_path):
    root = folder("yolo")
    assert len(open_dataset(config(root.parent), "val")) == 4
    assert len(open_dataset(config(root / "data.yaml"), "val")) == 4
    assert len(open_dataset(config(root, source="yolo"), "val")) == 4
    with pytest.raises(UserError, match="has none of the layouts"):
        open_dataset(config(root, source="voc"), "val")


def test_label_studios_exports(source, folder, tmp_path):
    """YOLO with classes.txt in place of data.yaml; COCO as result.json. Neither has splits."""
    root = folder("yolo")
    (root / "data.yaml").unlink()
    (root / "train/classes.txt").write_text("red\ngreen\nblue\n")
    c = config(root / "train", holdout=0.25)
    train, val = (set(layouts.names_of(open_dataset(c, split))) for split in ("train", "val"))
    assert len(val) == 3 and len(train) >= 6 and not train & val
    assert [category.name for category in open_dataset(c, "val").categories] == ["red", "green", "blue"]
    (tmp_path / "coco").mkdir()
    shutil.copytree(source[0] / "images", tmp_path / "coco/images")
    named = [dict(image, file_name=f"images/{image['file_name']}") for image in source[1]["images"]]
    (tmp_path / "coco/result.json").write_text(json.dumps(dict(source[1], images=named)))
    assert len(open_dataset(config(tmp_path / "coco"), "val")) == 2


def test_paths_that_are_set_win(source, folder):
    c = config(folder("yolo"))
    c.data.val.update(annotations=str(source[0] / "annotations.json"), images=str(source[0] / "images"))
    assert len(open_dataset(c, "val")) == 20 and len(open_dataset(c, "train")) == 9
    c.data.val.images = default_config().data.val.images
    with pytest.raises(UserError, match="only one of annotations .* and images .* is set"):
        open_dataset(c, "val")


def test_default_paths_are_known_as_such():
    for split in ("train", "val"):
        assert not layouts.is_set(default_config().data[split])


def test_real_blood_cells(shared):
    c = config(shared / "data/bccd")
    assert (len(open_dataset(c, "train")), len(open_dataset(c, "val"))) == (205, 87)
    c.data.val_split = "test"
    assert len(open_dataset(c, "val")) == 72


def test_polygons_become_their_boxes(folder):
    root = folder("yolo")
    (root / "valid/labels/000113.txt").write_text("1 0.1 0.2 0.5 0.25 0.3 0.75")
    val = open_dataset(config(root), "val")
    record = next(val.record(i) for i in range(4) if "000113" in val.record(i).name)
    scale = [record.width, record.height] * 2
    np.testing.assert_allclose(record.boxes, [np.multiply([0.1, 0.2, 0.5, 0.75], scale)], rtol=1e-5)


@pytest.mark.parametrize("line, message", [
    ("3 0.5 0.5 0.1 0.1", r"class 3, but data\.yaml lists 3, numbered 0 to 2"),
    ("-1 0.5 0.5 0.1 0.1", "class -1"), ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
    ("red 0.5 0.5 0.1 0.1", "'red 0.5 0.5 0.1 0.1' are not numbers"),
    ("0 80 60 20 30", r"the box 80 60 20 30 reaches outside of 0\.\.1"),
    ("0 nan 0.5 0.1 0.1", "the box nan .* reaches outside"), ("0 0.5 0.5 0.1", "3 numbers after the class"),
    ("0 0.5 0.5 0.1 0.1 0.9", "5 numbers after the class"), ("0", "0 numbers after the class")])
def test_bad_label_files_are_named_with_the_line(folder, line, message):
    root = folder("yolo")
    (root / "train/labels/000101.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(UserError, match=rf"000101\.txt, line 3: {message}"):
        open_dataset(config(root), "train")


@pytest.mark.parametrize("change, message", [
    (dict(names=None, nc=None), "has no `names`"), (dict(names={0: "a", 2: "b"}), "must count from 0 without a gap"),
    (dict(train=None, val=None, test=None), "none of the keys train, val and test"),
    (dict(val="nowhere"), "says 'nowhere', but .* does not exist")])
def test_bad_data_yaml(folder, change, message):
    root = folder("yolo")
    content = yaml.safe_load((root / "data.yaml").read_text()) | change
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as error:
        open_dataset(config(root), "val")
    assert "data.yaml" in str(error.value)


def test_broken_yaml_and_missing_labels(folder):
    root = folder("yolo")
    shutil.rmtree(root / "train/labels")
    with pytest.raises(UserError, match=r"none of the 12 images of train has a label file; the first would be"):
        open_dataset(config(root), "train")
    (root / "data.yaml").write_text("names: [a\n")
    layouts.find.cache_clear()
    with pytest.raises(UserError, match=r"data\.yaml is no YAML: .*line"):
        open_dataset(config(root), "train")


@pytest.mark.parametrize("old, new, message", [
    ("<size>.*</size>", "", r"has no <size><height>; add it"), ("<width>160", "<width>0", "0 x 120 pixels"),
    ("<xmin>.*?</xmin>", "<xmin>left</xmin>", r"object 1 \(\w+\): <bndbox><xmin> is 'left'"),
    ("<xmin>.*?</xmin>", "<xmin>155</xmin>", r"object 1 \(\w+\): the box from 155, .* ends before it begins"),
    ("<name>.*?</name>", "<name> </name>", r"object 1 has no <name>"),
    ("</annotation>", "", r"is no XML: .*line 1")])
def test_bad_xml_files_are_named(folder, old, new, message):
    import re
    root = folder("voc")
    path = root / "Annotations/000105.xml"
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    if "160" in old:
        path.write_text(re.sub("<width>[0-9]+", "<width>0", path.read_text(), count=1))
        message = "0 x [0-9]+ pixels"
    with pytest.raises(UserError, match=message) as error:
        open_dataset(config(root), "train")
    assert "000105.xml" in str(error.value)


def test_a_box_of_one_pixel_is_a_box(folder):
    """As in the blood cells of BCCD, where a click made one."""
    path = folder("voc") / "Annotations/000105.xml"
    text = path.read_text().replace("<object>", "<object><name>dot</name><bndbox><xmin>9</xmin><ymin>7</ymin>"
                                    "<xmax>9</xmax><ymax>7</ymax></bndbox></object><object>", 1)
    path.write_text(text)
    annotation = voc.read_annotation(path)
    assert (annotation.names[0], annotation.boxes[0]) == ("dot", (8, 6, 9, 7))


def test_validation_finds_an_image_of_another_size(folder):
    root = folder("voc")
    shutil.copy(root / "JPEGImages/000113.jpg", root / "JPEGImages/000114.jpg")
    assert len(open_dataset(config(root), "train")) == 9
    with pytest.raises(UserError, match=r"000114\.jpg has 150 x 150 pixels .*annotation says"):
        open_dataset(config(root), "val")


def test_bad_lists_and_missing_images(folder):
    root = folder("voc")
    with open(root / "ImageSets/Main/val.txt", "a") as file:
        file.write("absent\n")
    with pytest.raises(UserError, match=r"val\.txt lists absent, which has no XML file"):
        open_dataset(config(root), "val")
    shutil.rmtree(root / "ImageSets")
    (root / "JPEGImages/000105.jpg").unlink()
    layouts.find.cache_clear()
    with pytest.raises(UserError, match=r"000105\.xml has no image of its name"):
        open_dataset(config(root), "val")


def test_folders_that_are_no_data(folder, tmp_path):
    root = folder("yolo")
    archive = shutil.make_archive(tmp_path / "mine", "zip", root)
    cases = {tmp_path / "absent": "does not exist", archive: f"unpack it .unzip {archive} -d {root}. and",
             root / "train": "none of the layouts", root / "valid/labels/000113.txt": "a file; give a folder"}
    for place, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            open_dataset(config(place), "train")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="data.source is 'yolo', but data.root is not set"):
        open_dataset(config("", source="yolo"), "train")
    with pytest.raises(UserError, match="instances_train2017.json does not exist; set config.data.root to the folder"):
        open_dataset(config(""), "train")


def test_two_annotation_files_of_one_split(source, tmp_path):
    for name in ("train.json", "my_train.json"):
        (tmp_path / name).write_text(json.dumps(source[1]))
    with pytest.raises(UserError, match=r"could all be the annotations of train; say which"):
        open_dataset(config(tmp_path), "train")
