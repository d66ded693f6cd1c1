"""Checkpoints: what is kept, damage of every kind, other models, a full disk, weights alone."""
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax import checkpoint_files, checkpoints as checkpoints_lib, config as config_lib, mesh as mesh_lib
from htd_jax.checkpoints import Checkpoints
from htd_jax.data import Category
from htd_jax.errors import UserError
from htd_jax.training import optimizer as optimizer_lib
from htd_jax.training.state import init_state


def make_state(step=0, width=3, ema=0.0):
    kernel = jax.random.normal(jax.random.key(step), (4000, width))
    params = {"neck": {"convs": {0: {"kernel": kernel}, 1: {"kernel": jnp.ones(2)}}}}
    return complete_state(params, {"neck": {"mean": jnp.full(2, 7.0)}}, step, ema)


def complete_state(params, frozen, step=0, ema=0.0):
    sgd = optimizer_lib.sgd(config_lib.default_config(), lambda _: 0.1)
    state = init_state(params, frozen, sgd, ema) | {"step": jnp.int32(step)}
    return mesh_lib.replicate(state, mesh_lib.make_mesh(jax.devices()[:1]))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(workdir, scores, keep=3, **kind):
    with Checkpoints(workdir, keep) as checkpoints:
        for step, ap in scores.items():
            checkpoints.save(step, make_state(step, **kind))
            if ap is not None:
                checkpoints.score(step, ap)


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def restore(workdir, **kind):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(abstract(make_state(**kind)))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip_and_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, {5: None})
    step, state = restore(tmp_path)
    assert step == 5
    assert_equal(state, make_state(5))


def test_last_and_best_are_kept_also_across_restarts(tmp_path):
    save(tmp_path, {1: 0.1, 2: 0.4, 3: None, 4: 0.2, 5: None, 6: None}, keep=2)
    assert steps(tmp_path) == [2, 5, 6]
    save(tmp_path, {7: 0.3, 8: None, 9: None}, keep=2)
    assert steps(tmp_path) == [2, 8, 9]
    save(tmp_path, {9: None}, keep=2)  # is there already


@pytest.mark.parametrize("text", ["", "{", "[]", '{"AP": "x"}'])
def test_a_damaged_score_is_named(tmp_path, text):
    save(tmp_path, {1: 0.5, 2: 0.1})
    score = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    score.write_text(text)
    with pytest.raises(UserError, match="1/metrics/metrics is not what a run writes there: .*; remove it"):
        Checkpoints(tmp_path)
    score.unlink()
    save(tmp_path, {3: None, 4: None, 5: None}, keep=2)
    assert steps(tmp_path) == [2, 4, 5]


def damage_cut(folder):
    largest(folder).write_bytes(largest(folder).read_bytes()[:100])


def damage_bit(folder):
    data = bytearray(largest(folder).read_bytes())
    data[len(data) // 2] ^= 16
    largest(folder).write_bytes(data)


def damage_list(folder):
    (folder / "state" / "_METADATA").unlink()


def damage_all(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def largest(folder):
    return max((p for p in (folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def damage_missing(folder):
    largest(folder).unlink()


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, damage_list, damage_all, damage_missing])
def test_damaged_newest_is_said_and_the_one_before_used(tmp_path, damage, caplog):
    save(tmp_path, {4: None, 8: None})
    damage(tmp_path / "checkpoints" / "8")
    step, state = restore(tmp_path)
    assert step == 4 and (tmp_path / "damaged-8").is_dir()
    assert_equal(state, make_state(4))
    assert "8 is damaged" in caplog.text
    save(tmp_path, {8: None})
    assert restore(tmp_path)[0] == 8


def forbidden(path):
    def opened(file, *args, **kwargs):
        if str(file).startswith(str(path)):
            raise PermissionError(13, "Permission denied", str(file))
        return open(file, *args, **kwargs)
    return opened


@pytest.mark.parametrize("error", [
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4000 bytes."), MemoryError("4000 bytes"),
    RuntimeError("Unable to initialize backend"), OSError(116, "Stale file handle")])
def test_other_reasons_leave_a_checkpoint_where_it_is(tmp_path, monkeypatch, error):
    save(tmp_path, {4: None, 8: None})

    def fail(*_):
        raise error

    monkeypatch.setattr(Checkpoints, "_read", fail)
    with pytest.raises(UserError, match=f"8 cannot be read, though it may be whole.*{error.args[-1][:20]}"):
        restore(tmp_path)
    assert steps(tmp_path) == [4, 8] and not list(tmp_path.glob("damaged*"))


def test_files_without_permission_are_not_damaged(tmp_path, monkeypatch):
    save(tmp_path, {4: None, 8: None})
    damage_list(tmp_path / "checkpoints" / "8")  # what a list of tensors that cannot be opened looks like
    monkeypatch.setattr(pathlib.Path, "open", forbidden(tmp_path))
    for read in (restore, checkpoints_lib.restore_params):
        with pytest.raises(UserError, match="may be whole, and nothing was changed: PermissionError"):
            read(tmp_path)
    assert steps(tmp_path) == [4, 8]


def test_a_folder_that_is_gone_is_not_damage(tmp_path):
    with pytest.raises(UserError, match="may be whole, and nothing was changed: FileNotFoundError"):
        checkpoint_files.damage(tmp_path / "checkpoints" / "8", FileNotFoundError("state"))


def test_what_travels_with_a_step_is_preferred_to_what_lies_beside(tmp_path):
    config = config_lib.default_config()
    about = dict(config=config.to_dict(), categories=[[3, "Tür"], ["x", "dog"]], epochs=1.5)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(4, make_state(4), about)
        checkpoints.wait()
        assert checkpoints.about(4)["epochs"] == 1.5 and checkpoints.about(5) == {}
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "run" / "checkpoints" / "4", alone)
    for path in (tmp_path / "run", alone):
        assert checkpoints_lib.load_categories(path) == [(3, "Tür"), ("x", "dog")]
        assert checkpoints_lib.load_config(path).to_dict() == config.to_dict()
    assert restore(tmp_path / "run")[0] == 4


def test_all_damaged(tmp_path):
    save(tmp_path, {4: None})
    damage_cut(tmp_path / "checkpoints" / "4")
    with pytest.raises(UserError, match="no checkpoint in .* is whole"):
        restore(tmp_path)
    with pytest.raises(UserError, match="4 is damaged"):
        checkpoints_lib.restore_params(tmp_path)


def test_values_that_are_not_finite_are_refused_by_name(tmp_path):
    """Nothing is moved aside: the files are those that were saved."""
    save(tmp_path, {4: None})
    state = make_state(8)
    state["params"]["neck"]["convs"][1]["kernel"] = jnp.array([1, jnp.inf])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, state)
    for read in (restore, checkpoints_lib.restore_params):
        with pytest.raises(UserError, match=r"checkpoints/8: 1 of 2 values of params.neck.convs.1.kernel are nan"):
            read(tmp_path)
    assert steps(tmp_path) == [4, 8]
    assert checkpoints_lib.restore_params(tmp_path / "checkpoints/4")
    shutil.rmtree(tmp_path / "checkpoints/8")
    assert restore(tmp_path)[0] == 4


def test_another_model_lists_the_tensors(tmp_path):
    save(tmp_path, {4: None})
    with pytest.raises(UserError) as error:
        restore(tmp_path, width=5)
    assert "params.neck.convs.0.kernel (4000, 3) instead of (4000, 5)" in str(error.value)
    assert steps(tmp_path) == [4]  # not damaged: left where it is


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_alone(tmp_path, ema):
    state = make_state(4, ema=ema)
    if ema:
        state["ema"] = jax.tree.map(lambda x: x + 1, state["ema"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state)
    for path in (tmp_path, str(tmp_path / "checkpoints" / "4"), tmp_path / "checkpoints"):
        tree = checkpoints_lib.restore_params(path)
        assert_equal(tree, {"neck": state["ema" if ema else "params"]["neck"] | state["frozen"]["neck"]})
        assert isinstance(tree["neck"]["mean"], np.ndarray)


def test_config_and_categories_lie_beside(tmp_path):
    config = config_lib.default_config()
    config.model.num_classes = 2
    categories = [Category(3, "cat"), Category(9, "dog")]
    save(tmp_path, {4: None})
    with pytest.raises(UserError, match="config.json of the checkpoint .* is missing"):
        checkpoints_lib.load_config(tmp_path)
    checkpoints_lib.write_about(tmp_path, config, categories)
    for path in (tmp_path, tmp_path / "checkpoints" / "4"):
        assert checkpoints_lib.load_config(path).to_dict() == config.to_dict()
        assert checkpoints_lib.load_categories(path) == [(3, "cat"), (9, "dog")]


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        checkpoints_lib.restore_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no checkpoint"):
        checkpoints_lib.restore_params(tmp_path)


def full(*args, **kwargs):
    """What TensorStore says, as seen on a file system of 1 MB."""
    raise ValueError("RESOURCE_EXHAUSTED: Error writing ...: No space left on device [os_error_code='28']")


def test_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="the disk is full; started again, training resumes from step 4"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(4, make_state(4))
            checkpoints.wait()
            checkpoints._manager.save = full
            checkpoints.save(8, make_state(8))
    assert restore(tmp_path)[0] == 4


def test_a_closed_event_loop_is_no_news(monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoints_lib, "_report", seen.append)
    told = [types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "a bug")]
    for unraisable in told:
        checkpoints_lib._quiet(unraisable)
    assert seen == told[1:]


def renamed_state(ba, conv1, bn1, stem):
    """A state whose values tell its tensors apart, with modules under the names given."""
    params = {"neck": {"convs": {0: {"kernel": jnp.full(2, 1.0)}}}, ba: {"fc_reg": {"kernel": jnp.full(3, 2.0)}},
              "backbone": {"layer1": {0: {"kernel": jnp.full(4, 3.0)}}, **stem({conv1: {"kernel": jnp.full(5, 4.0)}})}}
    state = complete_state(params, {"backbone": stem({bn1: {"mean": jnp.full(6, 5.0)}})}, step=4, ema=0.9)
    return state | {part: jax.tree.map(lambda x: x * 2 if x.dtype == jnp.float32 else x | True, state[part])
                    for part in ("optimizer", "ema")}


@pytest.fixture
def earlier(tmp_path):
    """(workdir, state): a run saved when BA was `border` and the stem had no module, and the same as it is now."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, renamed_state("border", "conv1", "bn1", stem=lambda modules: modules))
    return tmp_path, renamed_state("ba", "conv1", "bn1", stem=lambda modules: {"stem": modules})


def test_earlier_names_are_restored_under_todays(earlier):
    workdir, now = earlier
    with Checkpoints(workdir) as checkpoints:
        step, state = checkpoints.restore(abstract(now))
    assert step == 4
    assert_equal(state, now)


def test_weights_alone_of_earlier_names(earlier):
    workdir, now = earlier
    tree = checkpoints_lib.restore_params(workdir)
    ema, frozen = now["ema"], now["frozen"]["backbone"]["stem"]
    stem = ema["backbone"]["stem"] | frozen
    assert_equal(tree, ema | {"backbone": ema["backbone"] | {"stem": stem}})
