"""Drawings of any size: boxes where they belong, labels inside the image, sheets of the right shape."""
import numpy as np
import pytest
import report_case
from PIL import Image

from htd_jax.evaluation import drawing

GREY = 90


def blank(height, width):
    return np.full((height, width, 3), GREY, np.uint8)


@pytest.mark.parametrize("height, width, factor", [(32, 32, 10), (20, 300, 2), (480, 640, 1), (4000, 3000, 1)])
def test_boxes_lie_where_they_are_stated_at_any_size(height, width, factor):
    image = blank(height, width)
    box = np.array([[.25 * width, .5 * height, .75 * width, .9 * height]])
    drawn = drawing.draw(image, box, [3], [.87], ["a", "b", "c", "traffic light"])
    assert drawn.size == (width * factor, height * factor)
    assert (image == GREY).all()
    pixels = np.asarray(drawn)
    x, y = round(.5 * width * factor), round(.9 * height * factor)
    assert tuple(pixels[y, x]) == drawing.colour(3)  # the lower edge, free of text
    assert tuple(pixels[round(.95 * height * factor), x]) == (GREY, GREY, GREY)


def test_boxes_on_borders_outside_and_of_no_size_do_not_fail():
    boxes = [[-50, -50, 1e6, 1e6], [10, 10, 10, 10], [300, 200, 400, 300], [90, 0, 100, 5], [20, 20, 10, 10]]
    drawn = drawing.draw(blank(200, 300), boxes, range(5), np.linspace(.1, 1, 5))
    assert drawn.size == (600, 400)
    assert (np.asarray(drawn) != GREY).any()


def test_no_boxes_leave_the_image_as_it_is():
    np.testing.assert_array_equal(drawing.draw(blank(400, 300), [], []), blank(400, 300))


def test_the_better_detection_lies_on_top():
    boxes = [[50, 50, 350, 350]] * 2
    pixels = np.asarray(drawing.draw(blank(400, 400), boxes, [0, 1], [.9, .2]))
    assert tuple(pixels[350, 200]) == drawing.colour(0)


def test_classes_differ_in_colour_and_keep_it():
    colours = [drawing.colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    assert drawing.colour(np.int32(7)) == colours[7]


def test_a_pair_shows_both_panels_under_their_captions():
    left, right = Image.new("RGB", (100, 50), "red"), Image.new("RGB", (60, 80), "blue")
    sheet = drawing.beside(("ground truth", left), ("detections", right))
    assert sheet.width == 100 + 8 + 60 and sheet.height > 80
    assert sheet.getpixel((50, sheet.height - 60)) == (255, 0, 0)
    assert sheet.getpixel((130, sheet.height - 10)) == (0, 0, 255)


def test_a_grid_fits_every_picture_into_its_cell():
    images = [Image.new("RGB", size, "red") for size in ((32, 32), (4000, 3000), (100, 900))]
    sheet = drawing.grid(images, cell=(100, 80))
    assert sheet.size == (208, 168)  # 2 x 2 with 8 between
    assert sheet.getpixel((50, 40)) == sheet.getpixel((158, 40)) == sheet.getpixel((50, 128)) == (255, 0, 0)
    assert sheet.getpixel((158, 128)) == (255, 255, 255)
    with pytest.raises(ValueError):
        drawing.grid([])


def test_samples_come_from_all_over_a_set_with_the_detections_that_are_drawn():
    dataset = report_case.Images(13)
    rows = [{"boxes": report_case.BOX, "labels": np.int32([0]), "scores": np.float32([score])}
            for score in np.linspace(0, 1, 13)]
    pictures = drawing.samples(dataset, rows)
    assert list(pictures) == ["0<.jpg", "3<.jpg", "6<.jpg", "9<.jpg", "12<.jpg"]
    right = [np.asarray(picture)[:, 330:] for picture in pictures.values()]
    assert [(half == drawing.colour(0)).all(2).any() for half in right] == [False, False, True, True, True]
    assert drawing.samples(report_case.Images(0), []) == {}
