"""From JPEG to detections.json, against the original's detections on photographs (full size: minutes)."""
import importlib
import json

import numpy as np
import pytest
from original import reference
from pycocotools import mask

from htd_jax import data
from htd_jax.evaluation import model, runner
from htd_jax.weights import files

pytestmark = pytest.mark.slow
FIGURES = {"coco_r50": "htd_r50", "coco_r50_tta": "htd_r50", "coco_r101_dcn": "htd_r101_dcn"}


def config_for(name, golden, shared, folder):
    """The published configuration as the figures were made, over the photographs that they are of."""
    config = importlib.import_module(f"configs.{FIGURES[name]}").get_config()
    config.model.num_classes = 80
    config.data.pad_to = "exact"
    config.test.scale = tuple(golden["scale"])
    config.test.tta = bool(golden["tta"])
    photographs = shared / "data" / "coco2017_mini"
    truth = json.loads((photographs / "annotations" / "instances_val2017.json").read_text())
    truth["images"] = [image for image in truth["images"] if str(image["id"]) in golden["images"]]
    truth["annotations"] = [a for a in truth["annotations"] if str(a["image_id"]) in golden["images"]]
    (folder / "truth.json").write_text(json.dumps(truth))
    config.data.val.update(annotations=str(folder / "truth.json"), images=str(photographs / "val2017"))
    return config


def matched(found, expected):
    """Pairs of results of one class and IoU > .95, greedily: (found, expected)."""
    pairs, free = [], list(found)
    for want in expected:
        same = [f for f in free if (f["image_id"], f["category_id"]) == (want["image_id"], want["category_id"])]
        overlaps = mask.iou([f["bbox"] for f in same], [want["bbox"]], [0]) if same else np.zeros((0, 1))
        if len(same) and overlaps.max() > .95:
            best = same[int(overlaps[:, 0].argmax())]
            free.remove(best)
            pairs.append((best, want))
    return pairs


@pytest.mark.parametrize("name", FIGURES)
def test_detections_on_photographs_are_the_originals(name, shared, tmp_path):
    golden = json.loads((shared / "golden" / f"{name}.json").read_text())
    config = config_for(name, golden, shared, tmp_path)
    files.write(tmp_path / "w.safetensors", reference.weights(FIGURES[name]))
    dataset = data.open_dataset(config, "val")
    detect_fn = model.make_detect_fn(*model.restore(config, tmp_path / "w.safetensors"), config)
    metrics = runner.evaluate(detect_fn, dataset, config, tmp_path)
    found = json.loads((tmp_path / "detections.json").read_text())
    pairs = matched(found, golden["detections"])
    difference = max(abs(f["score"] - want["score"]) for f, want in pairs)
    print(f"{name}: {len(pairs)} of {len(golden['detections'])} matched, {len(found)} found, scores within {difference:.1e}")
    assert metrics["images"] == len(golden["images"])
    assert len(pairs) >= .98 * max(len(found), len(golden["detections"]))
    assert difference <= 1e-3
