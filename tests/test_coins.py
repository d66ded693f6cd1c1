"""The photograph of coins: every coin has its box, and no piece for training shows one of the validation's."""
import json

from skimage import data

from benchmarks import coins
from htd_jax import config as config_lib
from htd_jax.data import open_dataset


def test_a_coin_is_brighter_than_the_ground_about_it():
    photograph = data.coins().astype(float)
    for x1, y1, x2, y2 in coins.BOXES:
        around = photograph[max(0, y1 - 5):y2 + 5, max(0, x1 - 5):x2 + 5].sum() - photograph[y1:y2, x1:x2].sum()
        area = (min(y2 + 5, 303) - max(0, y1 - 5)) * (min(x2 + 5, 384) - max(0, x1 - 5)) - (y2 - y1) * (x2 - x1)
        assert photograph[y1:y2, x1:x2].mean() > 1.3 * around / area


def test_the_set_is_read(tmp_path):
    coins.write(tmp_path)
    train = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    assert {image["height"] for image in train["images"]} == {65, 85, 150}  # above the lower rows
    config = config_lib.default_config()
    config.data.root = str(tmp_path)
    sets = [open_dataset(config, split) for split in ("train", "val")]
    assert [len(dataset) for dataset in sets] == [45, 1]
    assert [sum(len(dataset.record(i).boxes) for i in range(len(dataset))) for dataset in sets] == [200, 12]
