"""The page: complete, without the network, and its examples the right ones."""
import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from htd_jax.data import Category, Record
from htd_jax.evaluation import coco, report

BOX = np.float32([[10, 10, 40, 40]])


class Images:
    """Dataset of n images of 60 x 80 with one object each, and a crowd on the first."""

    categories = (Category(1, "cat"), Category(2, "<b>dog"))

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def record(self, i):
        boxes = np.concatenate([BOX, [[50, 20, 75, 55]]]) if i == 0 else BOX
        return record_of(boxes, np.arange(len(boxes)) == 1, i)

    def image(self, i):
        return np.full((60, 80, 3), 40 * i, np.uint8)

    def ground_truth(self):
        raise AssertionError("the page does without it")


def record_of(boxes, crowd, i=0):
    return Record(i, f"{i}.jpg", 60, 80, np.float32(boxes), np.zeros(len(boxes), np.int32), crowd)


def found(*rows):
    """Detections of one image from (box, label, score)."""
    return {"boxes": np.float32([r[0] for r in rows]).reshape(-1, 4), "labels": np.int32([r[1] for r in rows]),
            "scores": np.float32([r[2] for r in rows])}


def metrics(ap=.5, **per_class):
    return {**dict.fromkeys(coco.METRICS, -1.), "AP": ap, "per_class": per_class}


def test_match_is_greedy_by_class_and_excuses_crowds():
    record = Images(1).record(0)
    rows = found((BOX[0], 0, .9), (BOX[0], 0, .8), (BOX[0], 1, .7), ([55, 25, 70, 50], 0, .6), ([0, 0, 5, 5], 0, .5))
    np.testing.assert_array_equal(report.match(rows, record), [1, 0, 0, -1, 0])
    assert report.match(found(), record).shape == (0,)


def test_match_gives_a_detection_the_free_object_it_covers_best():
    record = record_of([[0, 0, 10, 10], [0, 0, 10, 12]], np.zeros(2, bool))
    rows = found(([0, 0, 10, 12], 0, .9), ([0, 0, 10, 12], 0, .8))
    np.testing.assert_array_equal(report.match(rows, record), [1, 1])


@pytest.fixture
def page(tmp_path):
    detections = [found((BOX[0], 0, .9)), found(), found((BOX[0], 0, .8), ([0, 0, 9, 9], 1, .7)),
                  found((BOX[0], 0, .1))]
    config = ConfigDict({"test": {"score": .05}})
    report.write(tmp_path / "report.html", metrics(cat=.75, **{"<b>dog": -1.}), Images(4), detections, config,
                 "python eval.py --config 'a & b'")
    return (tmp_path / "report.html").read_text()


def test_page_is_well_formed_and_needs_no_network(page):
    class Balance(HTMLParser):
        depth = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "rect"):
                self.depth.append(tag)

        def handle_endtag(self, tag):
            if tag != "rect":
                assert self.depth.pop() == tag

    Balance().feed(page)
    assert Balance.depth == []
    assert not re.search(r"https?://", page)
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)', page))
    assert "$" not in page.split("<script>")[0]


def test_page_has_numbers_classes_command_and_escapes_names(page):
    assert "<td>0.500</td>" in page and "&ndash;" in page
    assert "<td>cat</td><td data-value=\"0.75\">0.750</td><td>4</td><td>3</td>" in page
    assert "<td>&lt;b&gt;dog</td><td data-value=\"-1.0\">&ndash;</td><td>0</td><td>1</td>" in page
    assert "--config 'a &amp; b'" in page.replace("&#x27;", "'")
    assert "&quot;score&quot;: 0.05" in page


def test_best_and_worst_images_are_the_right_ones(page):
    worst, best = page.split("<h3>Worst</h3>")[1].split("<h3>Best</h3>")
    assert re.findall(r"<figcaption>(.*?)<", worst) == ["1.jpg: 0 of 1 found, 0 false", "3.jpg: 0 of 1 found, 0 false"]
    assert re.findall(r"<figcaption>(.*?)<", best) == ["0.jpg: 1 of 1 found, 0 false", "2.jpg: 1 of 1 found, 1 false"]
    first = re.search(r"base64,([^\"]*)", best)[1]
    assert Image.open(io.BytesIO(base64.b64decode(first))).width == 2 * 320 + 8


def test_page_of_no_detections_and_of_no_images(tmp_path):
    for n in (2, 0):
        report.write(tmp_path / "r.html", metrics(-1., cat=-1., dog=-1.), Images(n), [found()] * n, ConfigDict())
        assert f"<h1>AP &ndash; on {n} images</h1>" in (tmp_path / "r.html").read_text()
