"""The tiny COCO set of synthetic_coco, written in the other layouts."""
import json
import shutil

import yaml


def coco_splits(content, shares=(("train", 0, 12), ("valid", 12, 16), ("test", 16, 20))):
    """{split: COCO content} of consecutive images."""
    parts = {}
    for split, start, end in shares:
        images = content["images"][start:end]
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        parts[split] = dict(content, images=images, annotations=annotations)
    return parts


def write_roboflow_coco(folder, source, content):
    for split, part in coco_splits(content).items():
        (folder / split).mkdir(parents=True)
        (folder / split / "_annotations.coco.json").write_text(json.dumps(part))
        _copy_images(part, source, folder / split)


def write_yolo(folder, source, content, names="list"):
    """Images without objects get an empty label file or, every second, none."""
    classes = [c["name"] for c in content["categories"]]
    number = {c["id"]: i for i, c in enumerate(content["categories"])}
    for split, part in coco_splits(content).items():
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        _copy_images(part, source, folder / split / "images")
        for image in part["images"]:
            w, h, lines = image["width"], image["height"], []
            for a in (a for a in part["annotations"] if a["image_id"] == image["id"]):
                x, y, bw, bh = a["bbox"]
                lines.append(f"{number[a['category_id']]} {(x + bw / 2) / w} {(y + bh / 2) / h} {bw / w} {bh / h}")
            if lines or image["id"] % 8:
                (folder / split / "labels" / image["file_name"].replace("jpg", "txt")).write_text("\n".join(lines))
    listed = classes if names == "list" else dict(enumerate(classes))
    content = dict(train="../train/images", val="../valid/images", test="../test/images", nc=3, names=listed)
    (folder / "data.yaml").write_text(yaml.safe_dump(content))


def write_voc(folder, source, content, lists=True):
    """With crowds as difficult objects; coordinates from 1, not rounded."""
    name = {c["id"]: c["name"] for c in content["categories"]}
    for kind in ("Annotations", "JPEGImages", *(["ImageSets/Main"] * lists)):
        (folder / kind).mkdir(parents=True)
    _copy_images(content, source, folder / "JPEGImages")
    for image in content["images"]:
        objects = ""
        for a in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = a["bbox"]
            box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            objects += (f"<object><name>{name[a['category_id']]}</name><difficult>{a['iscrowd']}</difficult>"
                        f"<bndbox>{box}</bndbox></object>")
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        path = folder / "Annotations" / image["file_name"].replace("jpg", "xml")
        path.write_text(f"<annotation>{size}{objects}</annotation>")
    if lists:
        for split, part in coco_splits(content).items():
            stems = [image["file_name"].removesuffix(".jpg") for image in part["images"]]
            (folder / f"ImageSets/Main/{split.replace('valid', 'val')}.txt").write_text("\n".join(stems) + "\n")


def _copy_images(part, source, target):
    for image in part["images"]:
        shutil.copy(source / "images" / image["file_name"], target)
