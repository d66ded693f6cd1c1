"""Images and their boxes go to the same place; ids of annotations come back as they were."""
import json

import cv2
import numpy as np
from drawn import floats
from hypothesis import given, strategies as st

from htd_jax.data import images
from htd_jax.data.coco import CocoDataset
from htd_jax.data.transforms import transform_boxes
from htd_jax.evaluation import coco


@st.composite
def scenes(draw):
    """(height, width, box in whole pixels) with the box at least 8 pixels wide and high."""
    height, width = draw(st.integers(20, 200)), draw(st.integers(20, 200))
    x, y = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    return height, width, (x, y, draw(st.integers(x + 8, width)), draw(st.integers(y + 8, height)))


@given(scenes(), st.sampled_from([(64, 64), (160, 96), (400, 300)]), st.booleans())
def test_box_and_pixels_go_to_the_same_place(scene, scale, flip):
    """Painted before, found after: within the pixel that bilinear interpolation blurs, in resized pixels."""
    height, width, (x1, y1, x2, y2) = scene
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    size = images.resized_shape(height, width, scale)
    resized = images.resize(image, size)
    resized = cv2.flip(resized, 1) if flip else resized
    factors = size[1] / width, size[0] / height
    box = transform_boxes(np.float32([(x1, y1, x2, y2)]), factors, size, flip)[0]
    rows, columns = (np.flatnonzero((resized[..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    np.testing.assert_allclose(found, box, atol=max(1, *factors))


@given(floats((9, 4), -50, 250), st.integers(1, 200), st.integers(1, 200))
def test_transformed_boxes_lie_in_the_image_and_flipping_twice_is_nothing(boxes, height, width):
    once = transform_boxes(boxes, (1, 1), (height, width))
    assert (once >= 0).all() and (once <= np.tile([width, height], 2)).all()
    twice = transform_boxes(transform_boxes(once, (1, 1), (height, width), True), (1, 1), (height, width), True)
    np.testing.assert_allclose(twice, once, atol=width * 2e-7)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000), st.integers(0, 1500))
def test_resized_images_fit_their_scale(height, width, short, more):
    shape = images.resized_shape(height, width, (short + more, short))
    assert max(shape) <= short + more and min(shape) <= short and min(shape) >= 1


numbers = st.integers(-2**62, 2**62)


@given(st.lists(numbers, min_size=1, max_size=5, unique=True), st.lists(numbers, min_size=1, max_size=4, unique=True))
def test_ids_come_back_as_they_were(tmp_path_factory, image_ids, category_ids):
    """From the file to labels, to results, to a perfect score."""
    folder = tmp_path_factory.mktemp("ids")
    listed = [dict(id=i, file_name=f"{n}.png", height=64, width=64) for n, i in enumerate(image_ids)]
    truth = [dict(id=n + 1, image_id=i, category_id=category_ids[n % len(category_ids)], bbox=[n, 1, 30, 40],
                  area=1200, iscrowd=0) for n, i in enumerate(image_ids)]
    content = dict(images=listed, annotations=truth, categories=[dict(id=i, name=f"c{i}") for i in category_ids])
    (folder / "a.json").write_text(json.dumps(content))
    for image in listed:
        cv2.imwrite(str(folder / image["file_name"]), np.zeros((64, 64, 3), np.uint8))
    dataset = CocoDataset(folder / "a.json", folder)
    records = [dataset.record(row) for row in range(len(dataset))]
    assert [record.image_id for record in records] == image_ids
    assert [category.id for category in dataset.categories] == category_ids
    results = [result for record in records for result in coco.to_results(
        record.image_id, dict(boxes=record.boxes, labels=record.labels, scores=np.ones(1), valid=np.ones(1)),
        category_ids)]
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == \
        [(a["image_id"], a["category_id"], a["bbox"]) for a in truth]
    assert coco.score(dataset.ground_truth(), results)["AP"] > .999
