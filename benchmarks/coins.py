"""A small set of real data without a download, and the README's picture: coins of one photograph.

    python -m benchmarks.coins coins
    python train.py --config configs/finetune.py --workdir runs/coins --config.data.root=coins \\
        --config.batch_size=2 --config.train.roi_samples=64 --config.train.proposals=300 \\
        --config.total_steps=120 --config.eval_every=0
    python predict.py --checkpoint runs/coins coins/images/lower.png --output found

Of its four rows of coins the upper two, cut in 45 pieces, are for training, the lower two for validation. The
photograph (Brooklyn Museum, no known copyright restrictions) comes with scikit-image. The README's figures are of the
ImageNet backbone that Detectron publishes (`--config.model.stride_in_1x1=True`).
"""
import argparse
import itertools
import json
import pathlib

from PIL import Image
from skimage import data

COLUMNS = 0, 74, 127, 182, 243, 300, 384  # between the coins of the upper rows
ROWS = (0, 85), (85, 150), (0, 150)
LOWER = 0, 150, 384, 303
BOXES = (  # x1, y1, x2, y2 of the coins, row by row
    (21, 34, 68, 75), (80, 38, 121, 75), (131, 28, 180, 74),
    (191, 29, 240, 74), (255, 33, 297, 73), (304, 15, 365, 73),
    (24, 103, 68, 146), (83, 107, 123, 146), (133, 109, 174, 146),
    (185, 104, 227, 145), (245, 95, 297, 145), (317, 105, 357, 145),
    (25, 178, 63, 217), (79, 174, 125, 217), (134, 178, 175, 217),
    (188, 170, 237, 216), (250, 172, 298, 217), (315, 155, 380, 218),
    (18, 232, 75, 288), (92, 245, 136, 288), (143, 236, 202, 287),
    (219, 240, 270, 287), (275, 239, 327, 289), (335, 247, 382, 289),
)


def write(folder: pathlib.Path) -> None:
    """Writes the set in COCO's layout: images/, annotations/instances_{train,val}.json."""
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    photograph = data.coins()
    upper = {f"upper_{top}_{bottom}_{left}_{right}": (left, top, right, bottom) for top, bottom in ROWS
             for (i, left), (j, right) in itertools.combinations(enumerate(COLUMNS), 2) if j - i > 1}
    for split, windows in (("train", upper), ("val", {"lower": LOWER})):
        content = _cut(photograph, windows, folder / "images")
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _cut(photograph, windows, folder):
    """Saves windows of the photograph; their annotations as COCO has them."""
    images, annotations = [], []
    for name, (left, top, right, bottom) in windows.items():
        Image.fromarray(photograph[top:bottom, left:right]).save(folder / f"{name}.png")
        images.append(dict(id=len(images), file_name=f"{name}.png", width=right - left, height=bottom - top))
        for x1, y1, x2, y2 in BOXES:
            if left <= x1 and x2 <= right and top <= y1 and y2 <= bottom:
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=images[-1]["id"], category_id=1, iscrowd=0,
                    bbox=[x1 - left, y1 - top, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1)))
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name="coin")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where to write it")
    write(parser.parse_args().folder)
