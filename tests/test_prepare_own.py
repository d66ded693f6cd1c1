"""Own folders become COCO JSON and TFDS sets, with splits where there are none."""
import json

import numpy as np
import own_folders
import pytest
import synthetic_coco
from test_data_layouts import boxes_by_image, config

from htd_jax.data import layouts, open_dataset
from htd_jax.data.coco_writer import write_coco
from htd_jax.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return folder, synthetic_coco.write(folder)


@pytest.mark.parametrize("write", [own_folders.write_yolo, own_folders.write_voc, own_folders.write_roboflow_coco])
def test_coco_json_of_every_layout_says_the_same(source, tmp_path, write):
    write(tmp_path / "mine", *source)
    places = write_coco(tmp_path / "mine", tmp_path / "out", dict(val=0.5))
    assert places.keys() == {"train", "val", "test"}
    before, after = config(tmp_path / "mine"), config(tmp_path / "out")
    for split in ("train", "val"):
        old, new = open_dataset(before, split), open_dataset(after, split)
        assert old.categories == new.categories and len(old) == len(new)
        a, b = boxes_by_image(old), boxes_by_image(new)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose([row[1:] for row in a[name]], [row[1:] for row in b[name]], atol=1e-3)
        np.testing.assert_array_equal(new.image(0), old.image(layouts.names_of(old).index(
            next(n for n in layouts.names_of(old) if layouts.names_of(new)[0].endswith(n)))))


def test_splits_where_there_are_none_depend_on_names_and_seed_alone(source, tmp_path):
    own_folders.write_voc(tmp_path / "mine", *source, lists=False)
    names = lambda path: {image["file_name"] for image in json.loads(path.read_text())["images"]}
    parts = {}
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        places = write_coco(tmp_path / "mine", tmp_path / out, dict(val=0.2, test=0.1), seed)
        parts[out] = {split: names(path) for split, (path, _) in places.items()}
    assert parts["a"] == parts["b"] != parts["c"]
    assert {split: len(part) for split, part in parts["a"].items()} == dict(train=14, val=4, test=2)
    assert len(set.union(*parts["a"].values())) == 20
    assert write_coco(tmp_path / "mine", tmp_path / "d", dict(val=0.0)).keys() == {"train"}
    with pytest.raises(UserError, match="20 images are too few for the shares"):
        write_coco(tmp_path / "mine", tmp_path / "e", dict(val=0.99))
    (tmp_path / "f/images").mkdir(parents=True)
    with pytest.raises(UserError, match="images exists already"):
        write_coco(tmp_path / "mine", tmp_path / "f", dict(val=0.2))


def test_tfds_set_of_an_own_folder(source, tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    from htd_jax import prepare
    own_folders.write_yolo(tmp_path / "My cells", *source)
    tfds, coco = tmp_path / "tfds", tmp_path / "j"
    prepare.main(["--root", str(tmp_path / "My cells"), "--tfds", str(tfds), "--json", str(coco)])
    printed = capsys.readouterr().out
    assert "--config.data.tfds.name=my_cells" in printed and f"--config.data.root={coco}" in printed
    c = config("", source="tfds")
    c.data.tfds.update(name="my_cells", dir=str(tfds))
    c.data.val.annotations = str(tfds / "my_cells/1.0.0/coco/annotations/instances_val.json")
    old, new = config(tmp_path / "My cells"), c
    for split in ("train", "val"):
        a, b = (boxes_by_image(open_dataset(which, split)) for which in (old, new))
        assert a.keys() == b.keys()
        assert [category.name for category in open_dataset(new, split).categories] == ["red", "green", "blue"]
        for name in a:
            np.testing.assert_allclose([row[1:] for row in a[name]], [row[1:] for row in b[name]], atol=0.02)


@pytest.mark.parametrize("arguments, message", [
    (["--root", "x"], "say what to write"), (["--coco", "x", "--json", "y"], "say what to write"),
    (["--root", "x", "--json", "y", "--val", "0.6", "--test", "0.6"], "together below 1"),
    (["--root", "absent", "--json", "y"], "does not exist"),
    (["--root", "absent", "--tfds", "y", "--name", "My Set"], "--name is 'My Set'")])
def test_bad_arguments(arguments, message, capsys):
    pytest.importorskip("tensorflow_datasets")
    from htd_jax import prepare
    with pytest.raises(SystemExit) as stop:
        prepare.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err
