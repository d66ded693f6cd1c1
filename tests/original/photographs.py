"""`coco_*.json`: from JPEG and `.pth` to detections.json, by `eval.py` as a user calls it."""
import json
import subprocess
import sys

import numpy as np

from htd_jax.weights import files, loading
from original import reference
from original.figures import Figure, match

CONFIGS = {"coco_r50": "htd_r50", "coco_r50_tta": "htd_r50", "coco_r101_dcn": "htd_r101_dcn"}
MATCHED, SCORES = 0.98, 1e-3
BUCKET_MATCHED = 0.95  # under the other way of padding


def figures(name, folder, *options, least=MATCHED, most=SCORES):
    """The figures of `coco_*.json` called `name`, with `options` of eval.py; `folder` is for weights and output."""
    golden = json.loads(reference.find(f"{name}.json").read_text())
    return compare(evaluate(name, golden, folder, options), golden["detections"], least, most)


def compare(ours, golden, least, most):
    """Share of detections matched image by image and the largest difference in score among them."""
    images = sorted({d["image_id"] for d in golden})
    shares, differences = zip(*(match(arrays(ours, i), arrays(golden, i)) for i in images))
    return [Figure("detections matched", float(np.mean(shares)), least, True),
            Figure("scores of the matched", max(differences), most)]


def arrays(results, image_id):
    """(boxes x1 y1 x2 y2, scores, labels) of one image out of COCO results."""
    mine = [result for result in results if result["image_id"] == image_id]
    boxes = np.array([result["bbox"] for result in mine], np.float64).reshape(-1, 4)
    return (np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            np.array([result["score"] for result in mine]), np.array([result["category_id"] for result in mine]))


def evaluate(name, golden, folder, options):
    """What `eval.py` leaves in detections.json for the photographs of `name`, under the golden run's settings."""
    settings = {"model.num_classes": reference.NUM_CLASSES, "data.pad_to": "exact",
                "test.scale": tuple(golden["scale"]), "test.tta": bool(golden["tta"]),
                "data.val.annotations": annotations(golden["images"], folder / f"{name}.json"),
                "data.val.images": reference.SHARED / "data" / "coco2017_mini" / "val2017"}
    subprocess.run([sys.executable, "eval.py", "--config", f"configs/{CONFIGS[name]}.py",
                    "--output", str(folder / name), "--checkpoint", str(checkpoint(CONFIGS[name], folder)),
                    *(f"--config.{key}={value}" for key, value in settings.items()), *options],
                   cwd=reference.ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / name / "detections.json").read_text())


def annotations(image_ids, path):
    """COCO's validation annotations of these photographs alone."""
    folder = reference.SHARED / "data" / "coco2017_mini" / "annotations"
    content = json.loads((folder / "instances_val2017.json").read_text())
    content["images"] = [image for image in content["images"] if str(image["id"]) in image_ids]
    content["annotations"] = [row for row in content["annotations"] if str(row["image_id"]) in image_ids]
    path.write_text(json.dumps(content))
    return path


def checkpoint(name, folder):
    """The weights as the original's trainer saves them, a `.pth`; `.safetensors` where torch is absent."""
    try:
        import torch
    except ImportError:
        torch = None
    path = folder / f"{name}{'.pth' if torch else '.safetensors'}"
    if not path.is_file():
        tensors = loading.complete(reference.weights(name))
        if torch:
            named = {tensor: torch.from_numpy(np.array(array)) for tensor, array in tensors.items()}
            torch.save({"meta": {"epoch": 12}, "state_dict": named}, path)
        else:
            files.write(path, tensors)
    return path
