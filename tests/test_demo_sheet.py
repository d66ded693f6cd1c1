"""The sheet of detections that an evaluation leaves behind."""
import numpy as np
from PIL import Image

from htd_jax.data.demo import DemoDataset
from htd_jax.evaluation import drawing


def found_of(record, score):
    count = len(record.labels)
    return dict(boxes=record.boxes, labels=record.labels, scores=np.full(count, score, np.float32))


def test_shows_the_first_images_with_their_boxes(tmp_path):
    dataset = DemoDataset(None, "val")
    records = [dataset.record(i) for i in range(14)]
    drawing.write_sheet(tmp_path / "sure.png", dataset, [found_of(r, 0.9) for r in records])
    drawing.write_sheet(tmp_path / "unsure.png", dataset, [found_of(r, 0.1) for r in records])
    sure, unsure = (np.asarray(Image.open(tmp_path / name), int) for name in ("sure.png", "unsure.png"))
    assert sure.shape == unsure.shape and sure.shape[1] > sure.shape[0] > 3 * 448
    different = np.abs(sure - unsure).max(-1) > 0
    assert 0.005 < different.mean() < 0.3, "boxes are drawn from the threshold on, and nothing else"


def test_an_empty_dataset_leaves_no_sheet(tmp_path):
    drawing.write_sheet(tmp_path / "none.png", DemoDataset(None, "val"), [])
    assert not (tmp_path / "none.png").exists()
