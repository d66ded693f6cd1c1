"""Annotation files as exporters write them: taken where their meaning is plain, refused in one line where it is not."""
import copy
import json
import logging
import shutil

import numpy as np
import pytest
import synthetic_coco
from PIL import Image

from htd_jax.data.coco import CocoDataset
from htd_jax.errors import UserError
from htd_jax.evaluation import coco


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
    def reopen(content, training=False, images=None):
        path = tmp_path / "changed.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return CocoDataset(path, images or folder / "images", training)
    return reopen


def each(content, part, change):
    result = copy.deepcopy(content)
    for entry in result[part]:
        change(entry)
    return result


def own_boxes(dataset):
    """The ground truth as detections, in the order and with the ids that evaluation gives them."""
    ids = [category.id for category in dataset.categories]
    records = [dataset.record(i) for i in range(len(dataset))]
    return [result for r in records for result in coco.to_results(
        r.image_id, dict(boxes=r.boxes[~r.crowd], labels=r.labels[~r.crowd], scores=np.full((~r.crowd).sum(), .9),
                         valid=np.ones((~r.crowd).sum(), bool)), ids)]


def quoted(content):
    """All numbers of images and annotations in quotes."""
    return {**content, **{part: [{key: [str(v) for v in value] if isinstance(value, list) else str(value)
                                  for key, value in entry.items()} for entry in content[part]]
                          for part in ("images", "annotations")}}


def word_ids(content):
    content = each(content, "images", lambda x: x.update(id=f"img_{x['id']}"))
    return each(content, "annotations", lambda x: x.update(id=f"a-{x['id']}", image_id=f"img_{x['image_id']}"))


def nulls(content):
    return each(content, "annotations", lambda x: x.update(area=None, ignore=None, id=None))


def two_spellings(content):
    content = each(content, "annotations", lambda x: x.update(image_id=str(x["image_id"])))
    return each(content, "categories", lambda x: x.update(id=str(x["id"])))


@pytest.mark.parametrize("change", [quoted, word_ids, nulls, two_spellings])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_accepted_is_scored_with_the_ids_of_the_file(reopen, folder, content, change, training):
    plain = CocoDataset(folder / "annotations.json", folder / "images", training)
    odd = reopen(change(content), training)
    for i in range(len(plain)):
        for name in ("boxes", "labels", "crowd"):
            np.testing.assert_array_equal(getattr(plain.record(i), name), getattr(odd.record(i), name))
    results = own_boxes(odd)
    listed = {json.dumps(image["id"]) for image in change(content)["images"]}
    assert {json.dumps(result["image_id"]) for result in results} <= listed  # spelled as the file does
    score = coco.score(odd.ground_truth(), results)
    assert score == coco.score(plain.ground_truth(), own_boxes(plain)) and score["AP"] > .9


@pytest.mark.parametrize("part, change, words", [
    ("images", dict(id=101), r"two images of one id: images\[0\] .000100.jpg. and images\[1\] .000101.jpg. have 101"),
    ("categories", dict(id=2), r"two categories of one id: categories\[0\] .red. and categories\[1\] .green. have 2")])
def test_two_of_one_id_are_both_named(reopen, content, part, change, words):
    content[part][0].update(change)
    content["annotations"] = []
    content["categories"][1]["id"] = 2 if part == "categories" else content["categories"][1]["id"]
    with pytest.raises(UserError, match=words):
        reopen(content)


def test_annotations_null_and_category_names_that_are_numbers(reopen, content):
    content["categories"][0]["name"] = 7
    assert reopen(content).categories[0].name == "7"
    dataset = reopen({**content, "annotations": None})
    assert len(dataset) == 20 and coco.score(dataset.ground_truth(), [])["AP"] == -1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(reopen, content, encoding):
    content["categories"][0]["name"] = "Tür"
    assert reopen(json.dumps(content, ensure_ascii=False).encode(encoding)).categories[0].name == "Tür"


def test_nan_is_null_where_null_may_be_and_named_elsewhere(reopen, content):
    for annotation in content["annotations"]:
        annotation["area"] = float("nan")
    assert len(reopen(content).record(1).boxes)
    content["annotations"][3]["bbox"][2] = float("nan")
    with pytest.raises(UserError, match=r"got `null` - at `\$.annotations\[3\].bbox\[2\]`"):
        reopen(content)


def test_another_encoding_is_named(reopen, content):
    content["categories"][0]["name"] = "Tür"
    with pytest.raises(UserError, match="is not UTF-8 .*: save it as UTF-8"):
        reopen(json.dumps(content, ensure_ascii=False).encode("latin-1"))


def moved(sub):
    return lambda name: sub + name


@pytest.mark.parametrize("spell", [
    moved("images/"), moved("./"), moved("images\\"), moved("/home/me/set%201/images/"), moved("C:\\data\\"),
    lambda name: name.replace(".jpg", ".JPG"), lambda name: "images/" + name.upper(),
    lambda name: name.replace(".jpg", "%2Ejpg")])
def test_file_names_in_other_spellings(reopen, content, spell):
    odd = each(content, "images", lambda x: x.update(file_name=spell(x["file_name"])))
    np.testing.assert_array_equal(reopen(odd).image(3), reopen(content).image(3))


def test_spelling_must_fit_all_files_and_tell_them_apart(reopen, folder, content, tmp_path):
    for sub, number in (("a", 0), ("b", 1)):
        (tmp_path / "in" / sub).mkdir(parents=True)
        shutil.copy(folder / "images" / f"00010{number}.jpg", tmp_path / "in" / sub / "x y.jpg")
    names = ["in\\a\\x%20y.jpg", "in\\b\\x%20y.jpg"]
    two = {**content, "images": [dict(image, file_name=name) for image, name in zip(content["images"], names)]}
    dataset = reopen(two, images=tmp_path / "in")
    assert [dataset.record(i).name for i in range(2)] == ["a/x y.jpg", "b/x y.jpg"]
    two["images"][0]["file_name"], two["images"][1]["file_name"] = "000100.jpg", "c/000101.jpeg"
    with pytest.raises(UserError, match=r"image file c/000101.jpeg .* is not in .*; the nearest name there is 000101"):
        reopen(two, images=folder / "images")


def shares(x):
    x["bbox"] = [x["bbox"][0] / 160, x["bbox"][1] / 120, x["bbox"][2] / 160, x["bbox"][3] / 120]


@pytest.mark.parametrize("change, words", [
    (shares, "of its .* boxes can be learned from: .* narrower or lower than a pixel.*look like shares of the image"),
    (lambda x: x.update(iscrowd=1), r"boxes can be learned from: \d+ around crowds .iscrowd 1."),
    (lambda x: x.update(area=0), r"boxes can be learned from: \d+ of area 0"),
    (lambda x: x.update(ignore=1), r"boxes can be learned from: \d+ marked `ignore`"),
    (lambda x: x.update(image_id=7), "has no usable image")])
def test_nothing_to_learn_is_refused_with_the_reason(reopen, content, change, words):
    with pytest.raises(UserError, match=words):
        reopen(each(content, "annotations", change), training=True)


@pytest.mark.parametrize("training", [False, True])
def test_corners_instead_of_sizes(reopen, content, training):
    def corners(x):
        x["bbox"] = [x["bbox"][0], x["bbox"][1], x["bbox"][0] + x["bbox"][2], x["bbox"][1] + x["bbox"][3]]
    odd = each({**content, "annotations": [a for a in content["annotations"] if inside(a)]}, "annotations", corners)
    with pytest.raises(UserError, match=r"these look like x1, y1, x2, y2: as sizes \d+ of \d+ boxes reach beyond"):
        reopen(odd, training)


def inside(a):
    return a["bbox"][0] + a["bbox"][2] <= 160 and a["bbox"][1] + a["bbox"][3] <= 120


def test_boxes_that_fall_away_are_counted_aloud(reopen, content, caplog):
    content["annotations"][0]["bbox"][2] = .5
    content["annotations"][1]["area"] = 0
    with caplog.at_level(logging.WARNING):
        reopen(content, training=True)
    assert "some are not used: 1 narrower or lower than a pixel, 1 of area 0" in caplog.text


@pytest.fixture
def damaged(folder, tmp_path):
    shutil.copytree(folder / "images", tmp_path / "images")
    return tmp_path / "images"


def test_every_header_of_a_validation_set_is_looked_at(reopen, content, damaged):
    (damaged / "000113.jpg").write_bytes(b"")
    (damaged / "000117.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"000113.jpg is empty .2 of 20 images cannot be used.; replace the file, or"):
        reopen(content, images=damaged)
    assert len(reopen(content, training=True, images=damaged)) == 15  # an image may be skipped there


@pytest.mark.parametrize("factor", [1, 16])
def test_pictures_that_decode_to_black_are_refused(reopen, content, damaged, factor):
    path = damaged / "000105.jpg"
    grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * factor
    Image.fromarray(grey).save(path, "PNG")
    with pytest.raises(UserError, match="000105.jpg has more than 8 bits a value.*they become black.*save it with 8"):
        reopen(content, images=damaged)
