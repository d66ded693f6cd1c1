"""The page: complete, without the network, its images in order and within their budget."""
import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import report_case
from ml_collections import ConfigDict
from PIL import Image

from htd_jax.evaluation import coco, image_rows, matches, pages, report, restored, run_logs


def data_of(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[1])


@pytest.fixture
def page(tmp_path):
    return report_case.write(tmp_path / "report.html")


def test_page_is_well_formed_and_needs_no_network(page):
    class Balance(HTMLParser):
        depth = []

        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                self.depth.append(tag)

        def handle_endtag(self, tag):
            assert self.depth.pop() == tag

    Balance().feed(page.read_text())
    assert Balance.depth == []
    assert set(re.findall(r"https?://[^\"]*", page.read_text())) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r'(src|href)="', page.read_text())


def test_page_has_numbers_and_classes_and_escapes_names(page):
    text, data = page.read_text(), data_of(page)
    metrics = report_case.metrics()
    assert f"<h1>AP {metrics['AP']:.3f} on 5 images</h1>" in text and "--config &#x27;a &amp; b&#x27;" in text
    assert dict(data["numbers"]) == {name: metrics[name] for name in coco.METRICS}
    assert "<b>dog" not in text and [c["name"] for c in data["classes"]] == ["<b>dog", "cat"]
    dog, cat = data["classes"]
    assert (dog["objects"], dog["detections"], dog["ap"]) == (0, 1, -1)
    assert (cat["objects"], cat["detections"]) == (5, 4) and cat["ap"] == metrics["per_class"]["cat"]
    assert f"predict.py --score {metrics['best_f1_score_threshold']:.3f}" in text


def test_rows_say_what_was_found_worst_first(page):
    rows = data_of(page)["rows"]
    assert [row["name"] for row in rows] == ["1<.jpg", "2<.jpg", "3<.jpg", "0<.jpg", "4<.jpg"]
    assert rows[2]["objects"] == [[1, 0, 125, 167, 375, 500]] and rows[2]["detections"] == [
        [1, 299, matches.KINDS.index("background"), -1, 750, 833, 125, 83]]
    assert rows[3]["objects"][1][:2] == [1, 1]  # a crowd
    assert rows[3]["detections"] == [[1, 900, matches.RIGHT, 0, 125, 167, 375, 500]]


def test_pictures_are_small_jpegs(page):
    pictures = [row["picture"] for row in data_of(page)["rows"]]
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert image.size == (80, 60) and image.format == "JPEG" and abs(np.asarray(image).mean() - 40) < 3
    wide = Image.open(io.BytesIO(base64.b64decode(pages.jpeg(np.zeros((500, 1000, 3), np.uint8)))))
    assert wide.size == (480, 240)


def test_the_page_keeps_to_its_budget(monkeypatch):
    monkeypatch.setattr(pages, "PICTURES", 150)
    monkeypatch.setattr(pages, "ROWS", 250)
    kept = list(pages.within_budget([({"k": i}, lambda i=i: {"k": i, "picture": "x" * 80}) for i in range(10)]))
    assert [("picture" in row) for row in kept] == [True, True] + [False] * 6
    assert sum(len(pages.to_json(row)) + 1 for row in kept) <= 250


def test_a_page_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PICTURES", 1)
    text = report_case.write(tmp_path / "a.html").read_text()
    assert "the 1 images with the most errors have a picture, 4 are listed by their numbers only." in text
    monkeypatch.setattr(pages, "PICTURES", 0)
    monkeypatch.setattr(pages, "ROWS", 150)
    page = report_case.write(tmp_path / "b.html")
    left = 5 - len(data_of(page)["rows"])
    assert 0 < left < 5 and f"and {left} best ones are not listed" in page.read_text()


def test_wrong_counts_false_detections_and_missed_objects():
    found = matches.read(report_case.evaluation())
    assert image_rows.wrong(found, 5, .5).tolist() == [0, 1, 1, 1, 0]
    assert image_rows.wrong(found, 5, .0).tolist() == [0, 1, 1, 2, 0]
    assert image_rows.wrong(found, 5, 1.).tolist() == [1, 1, 1, 1, 1]


def test_page_of_no_detections_and_of_no_images(tmp_path):
    for dataset in (report_case.Images(2), report_case.Images(0)):
        evaluation = coco.evaluation(dataset.ground_truth(), [])
        metrics = coco.metrics(evaluation, dataset.ground_truth()["categories"])
        report.write(tmp_path / "r.html", metrics, evaluation, dataset, ConfigDict())
        assert len(data_of(tmp_path / "r.html")["rows"]) == len(dataset)
        assert "no score is better than another" in (tmp_path / "r.html").read_text()


def test_training_logs_are_thinned_and_a_cut_off_line_is_left_out(tmp_path):
    rows = [json.dumps({"step": step, "loss": 1 / step, "lr": .1, "x_loss": None}) for step in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 1001, "lo']))
    (tmp_path / "evaluations.jsonl").write_text('{"step": 500, "AP": 0.25, "images": 5}\n')
    logs = run_logs.read(tmp_path)
    assert list(logs["losses"]) == ["loss"] and logs["losses"]["loss"][:2] == [[1, 1], [4, .25]]
    assert 300 < len(logs["losses"]["loss"]) <= 400 and logs["scores"] == {"AP": [[500, .25]]}
    assert run_logs.read(None) is None and run_logs.read(tmp_path / "weights.pth") is None


def test_the_best_score_of_a_workdir_is_proposed(tmp_path):
    (tmp_path / "eval").mkdir()
    assert restored.best_score(tmp_path) is None and restored.best_score("weights.pth") is None
    path = tmp_path / "eval" / "metrics.json"
    path.write_text(json.dumps(report_case.metrics()))
    assert restored.best_score(tmp_path) == (.6, path)
    path.write_text(json.dumps({"best_f1_score_threshold": -1}))
    assert restored.best_score(tmp_path) is None
