"""What the inspection of a data set finds: each fault by hand, nothing in sound data, and the page of samples."""
import json
import re
import shutil

import numpy as np
import pytest
import synthetic_coco
import tiny
from PIL import Image

from htd_jax.config import default_config
from htd_jax.data import box_inspection, file_inspection, inspection, open_dataset
from htd_jax.data.content import of_dataset, read_coco
from htd_jax.evaluation import coco, data_page

ANCHORS = (32, 64, 128, 256, 512)


@pytest.fixture
def folder(tmp_path):
    synthetic_coco.write(tmp_path)
    return tmp_path


def changed(folder, change):
    """The Content of the synthetic set after `change(dict)`."""
    content = json.loads((folder / "annotations.json").read_text())
    change(content)
    (folder / "changed.json").write_text(json.dumps(content))
    return read_coco(folder / "changed.json", folder / "images")


def found(content):
    """{state: remarks} of all checks of annotations."""
    result = {"ok": [], "warn": [], "fail": []}
    for check in (box_inspection.entries, box_inspection.boxes, box_inspection.classes):
        for state, remark, _ in check(content):
            result[state].append(remark)
    return result


def test_sound_data_has_nothing_but_counts(folder):
    content = read_coco(folder / "annotations.json", folder / "images")
    results = found(content)
    assert results["fail"] == [] and all("less than 10 boxes" in remark for remark in results["warn"])
    assert any(remark == "5 of 20 images have no box; training leaves them out" for remark in results["ok"])
    counts = re.findall(r"(\w+) (\d+)", next(r for r in results["ok"] if r.startswith("boxes of each class")))
    truth = json.loads((folder / "annotations.json").read_text())["annotations"]
    wanted = {name: sum(a["category_id"] == i and not a["iscrowd"] for a in truth)
              for i, name in ((7, "red"), (3, "green"), (90, "blue"))}
    assert {name: int(count) for name, count in counts} == wanted
    (state, remark, rows), = file_inspection.faults(content, file_inspection.look(content, ""))
    assert state == "ok" and remark.startswith("all 20 image files") and rows == ()


def box(change):
    return lambda content: content["annotations"][0].update(bbox=change(content["annotations"][0]["bbox"]))


@pytest.mark.parametrize("change, state, remark", [
    (box(lambda b: [b[0] - 1000, *b[1:]]), "warn", "1 boxes outside their images"),
    (box(lambda b: [b[0], b[1], 0, b[3]]), "warn", "1 boxes without area"),
    (box(lambda b: [b[0], b[1], b[2], .5]), "warn", "1 boxes of less than a pixel"),
    (box(lambda b: [b[0], b[1], 5000, b[3]]), "warn", "1 boxes more than 2 pixels beyond the edge"),
    (box(lambda b: [b[0], b[1], "x", b[3]]), "fail", "1 boxes that are not four finite numbers (annotation 1000 of"),
    (box(lambda b: b[:3]), "fail", "1 boxes that are not four finite numbers"),
    (lambda c: c["annotations"][0].update(category_id=8), "fail", "1 boxes of a category that is not listed"),
    (lambda c: c["annotations"][0].update(image_id=8), "warn", "1 boxes of an image that is not listed"),
    (lambda c: c["annotations"].append(c["annotations"][0]), "warn", "1 boxes the same as another"),
    (lambda c: c["annotations"].append(c["annotations"][0]), "warn", "1 annotations have the id of an earlier one"),
    (lambda c: c["images"].append(c["images"][0]), "fail", "1 images have the id of an earlier one (100)"),
    (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "warn", "a file that is listed before"),
    (lambda c: c["categories"].append(dict(id=1, name="odd")), "warn", "1 classes have no box (odd)"),
    (lambda c: c["categories"].append(dict(id=1, name="red")), "warn", "have the name of an earlier one (red)"),
    (lambda c: c["categories"].append(dict(id=7, name="odd")), "fail", "1 categories have the id of an earlier one"),
])
def test_a_fault_is_found_and_counted(folder, change, state, remark):
    assert any(remark in line for line in found(changed(folder, change))[state])


def every_box(change):
    def apply(content):
        sizes = {i["id"]: (i["width"], i["height"]) for i in content["images"]}
        for a in content["annotations"]:
            a["bbox"] = change(*a["bbox"], *sizes[a["image_id"]])
    return apply


def test_shares_and_corners_are_told_from_pixels(folder):
    shares = found(changed(folder, every_box(lambda x, y, w, h, W, H: [x / W, y / H, w / W, h / H])))["fail"]
    assert any("look like shares of the image" in remark for remark in shares)
    corners = changed(folder, every_box(lambda x, y, w, h, W, H: [W - 1 - w, H - 1 - h, W - 1, H - 1]))
    assert any("look like x1, y1, x2, y2" in remark for remark in found(corners)["fail"])


def test_box_sizes_beside_anchors(folder):
    content = read_coco(folder / "annotations.json", folder / "images")
    sizes = lambda scale: [r for _, r, _ in box_inspection.against_anchors(content, scale, ANCHORS)]
    keep = ~content.crowd
    factor = 640 / content.sizes[content.image[keep]].max(1)  # the long side decides
    middle = np.median(np.sqrt(content.boxes[keep, 2] * content.boxes[keep, 3]) * factor)
    assert f"half below {middle:.0f}," in sizes((640, 640))[0] and len(sizes((640, 640))) == 1
    assert "100% of the boxes are below half the smallest anchor (32 pixels)" in sizes((40, 40))[1]


def test_files_that_cannot_be_used_are_counted_by_what_is_wrong(folder):
    images = folder / "images"
    (images / "000100.jpg").unlink()
    (images / "000101.jpg").write_bytes(b"")
    (images / "000102.jpg").write_bytes(b"no image")
    Image.new("RGB", (10, 10)).save(images / "000103.jpg")
    whole = (images / "000104.jpg").read_bytes()
    (images / "000104.jpg").write_bytes(whole[:len(whole) * 3 // 4])
    content = read_coco(folder / "annotations.json", images)
    findings = list(file_inspection.faults(content, file_inspection.look(content, "")))
    assert {remark.partition(":")[0]: list(rows) for _, remark, rows in findings} == {
        "1 image files cannot be opened": [0], "1 image files are empty": [1], "1 image files are no images": [2],
        "1 image files are of another size than annotated": [3], "1 image files are damaged": [4]}
    assert "000100.jpg" in findings[0].remark and {state for state, _, _ in findings} == {"fail"}


def test_files_with_equal_bytes_are_found_within_and_across_splits(folder):
    shutil.copy(folder / "images" / "000100.jpg", folder / "images" / "000105.jpg")
    content = read_coco(folder / "annotations.json", folder / "images")
    files = file_inspection.look(content, "")
    (state, remark, rows), = file_inspection.duplicates(content, files)
    assert state == "warn" and "1 image files have the same bytes" in remark and rows == [0, 5]
    assert "000100.jpg = 000105.jpg" in remark
    part = changed(folder, lambda c: c.update(images=c["images"][10:12]))
    (state, remark, rows), = file_inspection.shared(part, file_inspection.look(part, ""), content, files)
    assert "2 of 2 validation images are training images too" in remark and rows == [0, 1]


def configuration(folder):
    config = default_config()
    for split in (config.data.train, config.data.val):
        split.annotations, split.images = str(folder / "annotations.json"), str(folder / "images")
    return config


def test_what_it_accepts_trains_and_is_scored(folder):
    config = configuration(folder)
    inspected = inspection.inspect(config, ANCHORS)
    assert {state for each in inspected.values() for state, _, _ in each.findings} == {"ok", "warn"}
    assert len(open_dataset(config, "train")) == 15
    truth = open_dataset(config, "val").ground_truth()
    results = [dict(a, score=.5) for a in truth["annotations"] if not a["iscrowd"]]
    assert coco.score(truth, results)["AP"] == pytest.approx(1)
    assert any("validation images are training images too" in remark for _, remark, _ in inspected["val"].findings)


def test_an_open_data_set_and_its_file_say_the_same(folder):
    dataset = open_dataset(configuration(folder), "val")
    a, b = of_dataset(dataset, folder / "images"), read_coco(folder / "annotations.json", folder / "images")
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
    for name in ("image", "label", "crowd", "sizes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.names, a.paths) == (b.names, b.paths) and len(file_inspection.look(a, "")) == 20


def test_one_folder_is_inspected_as_its_layout(tmp_path):
    for split in ("train", "val"):
        synthetic_coco.write(tmp_path / split, seed=len(split))
        (tmp_path / split / "annotations.json").rename(tmp_path / split / "_annotations.coco.json")
        [path.rename(tmp_path / split / path.name) for path in (tmp_path / split / "images").iterdir()]
    config = default_config()
    config.data.root = str(tmp_path)
    inspected = inspection.inspect(config, ANCHORS)
    assert [each.content.paths[0] for each in inspected.values()] == [
        tmp_path / split / "000100.jpg" for split in ("train", "val")]
    assert {state for each in inspected.values() for state, _, _ in each.findings} == {"ok", "warn"}


def test_yolo_folders_are_inspected_by_their_boxes(tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.new("RGB", (100, 80)).save(tmp_path / "images" / split / "a.png")
        (tmp_path / "labels" / split / "a.txt").write_text("0 .5 .5 .2 .25\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    config = default_config()
    config.data.root = str(tmp_path)
    train, val = inspection.inspect(config, ANCHORS).values()
    assert train.content.boxes.tolist() == [[40, 30, 20, 20]] and train.files[0].fault == ""
    assert any("1 of 1 validation images are training images too" in remark for _, remark, _ in val.findings)


def test_sources_without_files_are_inspected_too():
    config = default_config()
    config.data.source = "demo"
    inspected = inspection.inspect(config, ANCHORS)["val"]
    assert inspected.files == [] and len(inspected.content.names) == 200
    assert {state for state, _, _ in inspected.findings} == {"ok"}


def test_data_that_cannot_be_read_is_left_to_the_other_checks(folder):
    (folder / "annotations.json").write_text("{")
    assert inspection.inspect(configuration(folder), ANCHORS) == {}


def test_page_of_samples_shows_images_that_findings_name_first(tmp_path):
    tiny.write_dataset(tmp_path)
    (tmp_path / "images" / "5.png").write_bytes(b"no image")
    config = tiny.config(tmp_path)
    data_page.write(tmp_path / "data.html", inspection.inspect(config, ANCHORS))
    text = (tmp_path / "data.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert len(data["rows"]) == 24 and "train: 12 images" in text and "https://" not in text
    assert data["rows"][0]["name"] == "5.png" and "picture" not in data["rows"][0]
    assert all("picture" in row for row in data["rows"][1:12])
    assert len(data["rows"][1]["objects"][0]) == 6
    assert any("are no images" in remark for _, _, remark in data["findings"])
