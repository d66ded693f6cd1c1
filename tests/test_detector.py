"""`Detector`: whatever is handed over, the same detections; bad input by name.

Most tests put a simple function of the pixels in the place of `detect`, which takes half a minute to compile for each
shape; the last ones take the real one.
"""
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic_coco
from flax import nnx
from PIL import Image

import htd_jax
from htd_jax import checkpoints
from htd_jax.config import default_config
from htd_jax.data.coco_classes import NAMES
from htd_jax.data.records import Category
from htd_jax.detector import Detection, Detector, ImageDetections
from htd_jax.errors import UserError
from htd_jax.evaluation import coco, restored, runner
from htd_jax.models import functional
from htd_jax.models.detect import detect
from htd_jax.models.htd import build
from htd_jax.weights import files, loading


def small(**test):
    config = default_config()
    config.model.update(depth=18, width=4, fpn_channels=8, fc_channels=8, ba_channels=4, ba_out_channels=8, ba_groups=2,
                        num_classes=5)
    config.test.update({"scale": (96, 64), "nms_pre": 20, "proposals": 20, "score": .05, "batch_size": 2, **test})
    config.data.workers = 0
    return config


def write_weights(path, config, seed=0):
    """Random values; small, so that scores are spread and boxes stay in the image."""
    model, rng = nnx.eval_shape(lambda: build(config.model, nnx.Rngs(0))), np.random.default_rng(seed)
    tree = jax.tree.map(lambda leaf: rng.normal(0, .3, leaf.shape).astype(np.float32), loading.tree_of(model))
    tensors = {name: abs(t) + .5 if name.endswith("running_var") else t for name, t in loading.export(tree).items()}
    files.write(path, tensors)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors", small())


def stand_in(model, batch, config):
    """Three detections an image: the whole of it, its left half, and one that is invalid; scored by brightness."""
    assert model.num_classes == 5 and config.test.score == .05
    height, width = (batch["size"] / batch["scale"][:, ::-1]).T
    inside = (jnp.arange(batch["image"].shape[2])[None] < batch["size"][:, 1:])[:, None, :, None]
    bright = (batch["image"] * inside).sum((1, 2, 3)) / batch["size"].prod(1) / 3 / 255
    zero, rows = jnp.zeros_like(width), len(width)
    return {"boxes": jnp.stack([jnp.stack([zero, zero, width * k, height], -1) for k in (.5, 1, 1)], 1),
            "scores": jnp.stack([bright * .8, bright, bright], -1),
            "labels": jnp.tile(batch["image"][:, :1, 0, 0].astype(jnp.int32) % 5, (1, 3)),
            "valid": jnp.tile(jnp.array([True, True, False]), (rows, 1))}


@pytest.fixture(scope="module")
def detector(weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "detect", stand_in)
        yield Detector.from_checkpoint((small(), weights))


def pixels(seed=0, height=60, width=90):
    tiles = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return tiles.repeat(10, 0).repeat(10, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for i, (height, width) in enumerate([(60, 90), (90, 60), (60, 90), (50, 50), (30, 200)]):
        Image.fromarray(pixels(i, height, width)).save(path / f"{i}.png")
    (path / "notes.txt").write_text("no image")
    return path


def test_it_is_what_the_readme_imports(detector):
    assert htd_jax.Detector is Detector and htd_jax.Detection is Detection
    with pytest.raises(AttributeError, match="Detektor"):
        htd_jax.Detektor  # noqa: B018


def test_detections_of_one_image_best_first(detector):
    label = int(pixels()[0, 0, 0]) % 5
    found = detector.predict(pixels(), score=.1)
    bright = pixels().mean() / 255
    assert [(d.label, d.label_id) for d in found] == [(f"class {label}", label)] * 2
    assert [d.score for d in found] == pytest.approx([bright, .8 * bright], abs=.02)
    np.testing.assert_allclose([d.box for d in found], [[0, 0, 90, 60], [0, 0, 45, 60]], rtol=1e-6)
    assert type(found[0].score) is float and type(found[0].box[0]) is float
    assert json.dumps(found[0].box)
    assert detector.predict(pixels(), score=.9 * found[0].score) == found[:1]


def test_any_form_of_an_image_gives_the_same(detector, folder):
    expected = detector.predict(pixels())
    assert expected
    for form in (folder / "0.png", str(folder / "0.png"), Image.fromarray(pixels()), jax.numpy.asarray(pixels())):
        assert detector.predict(form) == expected


def close(a, b):
    assert [d.label_id for d in a] == [d.label_id for d in b]
    np.testing.assert_allclose([d.score for d in a], [d.score for d in b], atol=1e-5)
    np.testing.assert_allclose([d.box for d in a], [d.box for d in b], atol=1e-2)


def test_folders_and_lists_keep_their_order_whatever_the_batches(detector, folder):
    each = [detector.predict(folder / f"{i}.png") for i in range(5)]
    assert [len(found) for found in each] == [2] * 5
    for together in (detector.predict(folder), detector.predict([pixels(i, *size) for i, size in enumerate(
            [(60, 90), (90, 60), (60, 90), (50, 50), (30, 200)])]), detector.predict([folder])):
        assert len(together) == 5
        for a, b in zip(each, together):
            close(a, b)
    assert detector.predict([]) == []
    assert detector.predict([folder / "1.png"]) == [each[1]]


def test_grey_images_are_three_equal_channels(detector):
    grey = pixels()[..., 0]
    expected = detector.predict(np.stack([grey] * 3, -1))
    assert detector.predict(grey) == expected
    assert detector.predict(Image.fromarray(grey)) == expected
    rgba = Image.fromarray(pixels()).convert("RGBA")
    assert detector.predict(rgba) == detector.predict(pixels())


def test_boxes_are_in_the_pixels_that_a_viewer_shows(detector, tmp_path):
    upright = Image.fromarray(pixels(1, 90, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying; viewers turn it by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert detector.predict(tmp_path / "turned.png") == detector.predict(upright)


@pytest.mark.parametrize("given, message", [
    (np.zeros((4, 5, 3), np.float32), r"array 0 is float32 \[4, 5, 3\]; give uint8"),
    (np.zeros((4, 5, 4), np.uint8), r"array 0 is uint8 \[4, 5, 4\]"),
    (np.zeros((0, 5, 3), np.uint8), r"array 0 is uint8 \[0, 5, 3\]"),
    ([np.zeros((9, 9), np.uint8), np.zeros((2, 4, 5, 3), np.uint8)], r"array 1 is uint8 \[2, 4, 5, 3\]"),
    (7, "cannot detect in a int"), (None, "cannot detect in a NoneType"),
    ("missing.jpg", "missing.jpg does not exist"),
])
def test_bad_input_is_named(detector, given, message):
    with pytest.raises(UserError, match=message):
        detector.predict(given)


def test_bad_files_are_named_and_do_not_stop_the_others(detector, folder, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    whole = (folder / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:len(whole) // 2])
    for name in ("text.jpg", "cut.png"):
        with pytest.raises(UserError, match=name):
            detector.predict(tmp_path / name)
    from htd_jax.data.user_images import UserImages
    user_images = UserImages([tmp_path, folder / "0.png"])
    results = dict(detector.stream(user_images))
    assert [type(results[i]) for i in range(3)] == [UserError, UserError, ImageDetections]
    assert results[2] == detector.predict(folder / "0.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no image; looked for .jpg"):
        detector.predict(tmp_path / "empty")
    with pytest.raises(UserError, match=r"score \(=30\)"):
        detector.predict(pixels(), score=30)


def test_checkpoint_forms_and_their_errors(weights, tmp_path, detector):
    config = tmp_path / "config.py"
    config.write_text("from tests_small import get_config")
    with pytest.raises(UserError, match="config.py cannot be used: ModuleNotFoundError"):
        Detector.from_checkpoint((config, weights))
    with pytest.raises(UserError, match="has no configuration beside it"):
        Detector.from_checkpoint(weights)
    with pytest.raises(UserError, match="no such file"):
        Detector.from_checkpoint((small(), tmp_path / "none.safetensors"))
    other = small()
    other.model.fc_channels = 16
    with pytest.raises(UserError, match="does not fit the model: .* of another shape"):
        Detector.from_checkpoint((other, weights))
    with pytest.raises(UserError, match="batch_size"):
        Detector.from_checkpoint((small(), weights), batch_size=0)


def write_workdir(path, weights, config, names):
    tree = restored.restore(config, weights)
    state = {"params": {k: v for k, v in tree.items() if k != "backbone"}, "frozen": {"backbone": tree["backbone"]}}
    checkpoints.write_about(path, config, [Category(3 * i, name) for i, name in enumerate(names)])
    with checkpoints.Checkpoints(path) as written:
        written.save(7, state)


@pytest.fixture(scope="module")
def workdir(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    write_workdir(path, weights, small(), "abcde")
    return path


@pytest.mark.parametrize("keys, listed", [
    ({}, ""), ({"test.nms": "soft"}, "test.nms soft (the run's: hard)"),
    ({"test.scale": (64, 32)}, "test.scale (64, 32) (the run's: (96, 64))"),
    ({"dtype": "bfloat16", "data.pad_to": "exact"}, "data.pad_to exact (the run's: bucket), dtype bfloat16 (the run's"),
    ({"test.score": .9}, "test.score 0.9 (the run's: "), ({"test.score": 0.0}, ""),  # lowered by predict.py's --score
    ({"test.batch_size": 3, "model.roi_align": "products", "seed": 3, "lr": .5, "data.root": "x"}, ""),
    ({"model.num_classes": None}, "")], ids=str)
def test_keys_that_are_not_as_in_the_run_are_listed(workdir, caplog, keys, listed):
    """Those that change detections."""
    config = small()
    config.update_from_flattened_dict(keys)
    restored.restore(config, workdir)
    lines = [record.getMessage() for record in caplog.records if "not as in the run" in record.getMessage()]
    assert len(lines) == bool(listed)
    if listed:
        assert lines[0].startswith(f"not as in the run of {workdir}: {listed}")
        assert lines[0].count("(the run's") == len(keys)


@pytest.mark.parametrize("text, score", [('{"best_f1_score_threshold": 0.25}', .25), ("{", None), ("", None),
                                         ("[]", None), ('{"best_f1_score_threshold": null}', None),
                                         ('{"best_f1_score_threshold": -1}', None)])
def test_the_best_score_of_the_last_evaluation(tmp_path, text, score):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "metrics.json").write_text(text)
    assert (restored.best_score(tmp_path) or [None])[0] == score


def test_a_backbone_alone_is_no_detector(weights, tmp_path):
    backbone = {name: array for name, array in files.read(weights).items() if name.startswith("backbone.")}
    files.write(tmp_path / "backbone.safetensors", backbone)
    config = small()
    config.model.num_classes = None
    with pytest.raises(UserError, match="backbone.safetensors has no classifier, so it is no whole detector"):
        restored.restore(config, tmp_path / "backbone.safetensors")


def test_names_of_classes_that_are_damaged_are_an_error(workdir, tmp_path):
    """No reason to take them in the order of the annotations."""
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "categories.json").write_text("[1]")
    with pytest.raises(UserError, match="categories.json is not what a run writes"):
        restored.check_classes([(k, name) for k, name in enumerate("abcde")], small(), tmp_path / "run")


def test_a_workdir_brings_its_configuration_and_names(weights, tmp_path, detector):
    config, names = small(), ("ant", "bee", "cat", "dog", "eel")
    write_workdir(tmp_path, weights, config, names)
    for source in (tmp_path, tmp_path / "checkpoints" / "7", (small(), str(tmp_path))):
        trained = Detector.from_checkpoint(source)
        assert trained.categories == tuple((3 * i, name) for i, name in enumerate(names))
        found = trained.predict(pixels())
        assert [(d.label, d.score, d.box) for d in found] == [
            (names[d.label_id], d.score, d.box) for d in detector.predict(pixels())]
    assert restored.check_classes(trained.categories, config, tmp_path).tolist() == [0, 1, 2, 3, 4]
    assert restored.check_classes(trained.categories[::-1][:2], config, tmp_path).tolist() == [-1, -1, -1, 1, 0]
    with pytest.raises(UserError, match="different classes: 'eel', class 5 of 5 .*; is it 'Eel' there"):
        restored.check_classes([*trained.categories[:4], Category(9, "Eel")], config, tmp_path)
    with pytest.raises(UserError, match="8: no such file or folder"):
        Detector.from_checkpoint(tmp_path / "checkpoints" / "8")


def test_the_number_of_classes_comes_from_the_weights_and_names_from_coco(tmp_path):
    config = small()
    config.model.num_classes = 80
    write_weights(tmp_path / "w.safetensors", config)
    config.model.num_classes = None
    detector = Detector.from_checkpoint((config, tmp_path / "w.safetensors"))
    assert (detector.config.model.num_classes, config.model.num_classes) == (80, None)
    assert tuple(name for _, name in detector.categories) == NAMES and detector.categories[-1] == (90, "toothbrush")


def test_a_large_image_is_the_sum_of_its_tiles(detector, tmp_path):
    large = pixels(3, 60, 150)
    Image.fromarray(large).save(tmp_path / "large.png")
    for image in (large, tmp_path / "large.png"):
        found = detector.predict(image, score=0, tile=(60, 90), overlap=.3)
        left, right = detector.predict([large[:, :90], large[:, 60:]], score=0)
        both = np.concatenate([left.boxes, right.boxes + np.float32([[60, 0, 60, 0]])])
        assert sorted(found.boxes.tolist()) == sorted(both.tolist()) and len(found) == 4
        assert sorted(found.labels) == sorted([*left.labels, *right.labels])
        assert (np.diff(found.scores) <= 0).all()
        assert found.draw().size == (450, 180)  # three times as large, for the labels
    with pytest.raises(UserError, match="none.png"):
        detector.predict(tmp_path / "none.png", tile=(60, 90))
    with pytest.raises(UserError, match="overlap"):
        detector.predict(large, tile=(60, 90), overlap=1)


def test_evaluation_scores_what_is_predicted(detector, tmp_path):
    truth = synthetic_coco.write(tmp_path)
    data = dict(annotations=tmp_path / "annotations.json", images=tmp_path / "images")
    with pytest.raises(UserError, match="small.safetensors has 5 classes, but the annotations list 3"):
        detector.evaluate(**data)
    truth["categories"] = [dict(id=id_, name=name) for id_, name in detector.categories]
    for annotation in truth["annotations"]:
        annotation["category_id"] = annotation["category_id"] % 5 + 1
    data["annotations"].write_text(json.dumps(truth))
    found = detector.predict(tmp_path / "images", score=0)
    results = [row for image, one in zip(truth["images"], found, strict=True) for row in one.to_coco(image["id"])]
    metrics = detector.evaluate(**data, output=tmp_path / "out")
    assert results and metrics == coco.score(truth, results)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    with pytest.raises(UserError, match="needs a dataset"):
        detector.evaluate(annotations="val.json")


def test_threads_may_share_a_detector(detector):
    expected, found = detector.predict(pixels()), [None] * 4
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, detector.predict(pixels()))) for i in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert found == [expected] * 4


@pytest.mark.slow
def test_restored_model_is_the_model(weights):
    config = small()
    state = restored.restore(config, weights)
    model = build(config.model, nnx.Rngs(1))
    loading.put(model, loading.load_into(loading.tree_of(model), loading.load_tensors(weights)))
    batch = {"image": np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8), "size": np.int32([[64, 96]]),
             "padded": np.int32([[64, 96]]), "scale": np.ones((1, 2), np.float32)}
    expected = jax.jit(lambda m, b: detect(m, b, config))(model, batch)
    found = runner.compile_detect(functional.functions(config).detect)((state,), batch)
    assert found["valid"].any()
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-4)
