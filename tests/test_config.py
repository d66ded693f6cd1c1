"""Configuration: defaults, the five published recipes, checks, the JSON of a workdir."""
import importlib.util
import pathlib

import pytest

from htd_jax import config as config_lib
from htd_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


# name: depth, deformable, groups, epochs, milestones, (base_lr, base_batch), train long, short_range, test scale, nms
RECIPES = {
    "htd_r50": (50, False, 1, 12, (8, 11), (0.02, 16), 1333, None, (1333, 800), "hard"),
    "htd_r101": (101, False, 1, 24, (16, 22), (0.015, 12), 1333, None, (1333, 800), "soft"),
    "htd_r101_ms": (101, False, 1, 24, (16, 22), (0.015, 12), 1600, (400, 1400), (1333, 800), "soft"),
    "htd_r101_dcn": (101, True, 1, 24, (16, 22), (0.015, 12), 1600, (400, 1400), (1333, 800), "soft"),
    "htd_x101_dcn": (101, True, 64, 24, (16, 22), (0.015, 12), 1600, (400, 1400), (1600, 800), "soft"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    c = config_lib.validate(load(name))
    assert RECIPES[name] == (c.model.depth, c.model.deformable, c.model.groups, c.total_epochs, c.milestones,
                             (c.base_lr, c.base_batch), c.data.scale[0], c.data.short_range, c.test.scale, c.test.nms)
    assert config_lib.learning_rate(c) == c.base_lr and c.batch_size == c.base_batch
    assert c.momentum == 0.9 and c.weight_decay == 1e-4 and c.warmup_steps == 500


def test_every_config_is_usable_and_gives_its_command():
    for path in CONFIGS.glob("*.py"):
        config_lib.validate(load(path.stem))
        assert f"--config configs/{path.name}" in path.read_text()


def test_rate_follows_the_batch_unless_set():
    config = config_lib.default_config()
    config.batch_size = 4
    assert config_lib.learning_rate(config) == pytest.approx(0.005)
    config.lr = 0.0123
    assert config_lib.learning_rate(config) == 0.0123


@pytest.mark.parametrize("key, value", [
    ("batch_size", 0), ("dtype", "float16"), ("sampling", "last"), ("data.scale", (800, 1333)),
    ("data.scale", (1.5, 1.)), ("data.short_range", (1400, 400)), ("data.flip", 1.5), ("model.depth", 77),
    ("test.tta_scales", (1333, 800)),
    ("milestones", (11, 8)), ("lr", 0.0), ("ema", 1.0), ("seed", -1), ("total_steps", 0),
    ("momentum", float("nan")), ("lr", float("inf"))])
def test_impossible_value_names_key_and_value(key, value):
    config = config_lib.default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert f"config.{key} " in str(error.value) and repr(value) in str(error.value) and "\n" not in str(error.value)


def test_keys_that_must_agree():
    config = config_lib.default_config()
    config.accumulate = 3
    with pytest.raises(UserError, match="batch_size .=16. must be divisible by config.accumulate .=3."):
        config_lib.validate(config)


def test_json_round_trip_keeps_tuples_and_unset_keys():
    config = load("htd_x101_dcn")
    config.model.num_classes = 3
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert again.test.tta_scales == ((1333, 800), (1333, 640)) and again.total_steps is None
    again.total_steps = 5  # still typed
    with pytest.raises(TypeError):
        again.total_steps = "five"


@pytest.mark.parametrize("text, words", [
    ('{"bogus": 1}', "config.bogus"), ('{"model": {"depth": "fifty"}}', "config.model.depth is 'fifty'"),
    ('{"model": 3}', "config.model"), ('{"seed": null}', "config.seed is None"), ("[1]", "JSON"), ("{", "JSON")])
def test_json_that_does_not_fit(text, words):
    with pytest.raises(UserError, match=words):
        config_lib.from_json(text)


@pytest.mark.parametrize("keys, message", [
    ({"optimizer": "adamw"}, "optimizer is 'adamw', but base_lr is for SGD; set config.lr"),
    ({"patience": 3}, "patience .=3. counts evaluations; set config.eval_every"),
    ({"model.stride_in_1x1": True, "model.depth": 18}, "stride_in_1x1 needs .* depth 50 or 101, not 18")])
def test_key_that_needs_another(keys, message):
    config = config_lib.default_config()
    config.update_from_flattened_dict(keys)
    with pytest.raises(UserError, match=message):
        config_lib.validate(config)
