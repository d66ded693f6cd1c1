"""A tiny COCO-format dataset of coloured rectangles, written by the tests themselves."""
import json

import cv2
import numpy as np

CATEGORIES = [dict(id=7, name="red"), dict(id=3, name="green"), dict(id=90, name="blue")]
SIZES = [(120, 160), (160, 120), (100, 180), (150, 150), (130, 140)]  # height, width


def write(folder, count=20, seed=0, sizes=SIZES):
    """Writes `count` JPEGs of cycling sizes and `annotations.json`; returns the dict of the latter.

    Image 100 + i holds i % 4 boxes, with fractional coordinates; the last box of every fifth image is a crowd.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        pixels = np.full((height, width, 3), 20 + 5 * (i % 40), np.uint8)
        for k in range(i % 4):
            x, y = rng.uniform(0, (width - 50, height - 50)).round(2)
            w, h = rng.uniform(20, 45, 2).round(2)
            category = int(rng.integers(len(CATEGORIES)))
            colour = [(c == category) * 255 for c in (2, 1, 0)]
            cv2.rectangle(pixels, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
            annotations.append(dict(
                id=1000 + len(annotations), image_id=100 + i, category_id=CATEGORIES[category]["id"],
                bbox=[x, y, w, h], area=w * h, iscrowd=int(k == i % 4 - 1 and i % 5 == 0),
            ))
        name = f"{100 + i:06d}.jpg"
        cv2.imwrite(str(folder / "images" / name), pixels)
        images.append(dict(id=100 + i, file_name=name, height=height, width=width))
    content = dict(images=images, annotations=annotations, categories=CATEGORIES)
    (folder / "annotations.json").write_text(json.dumps(content))
    return content
