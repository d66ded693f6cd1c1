"""The loop, with a stand-in for the detector: files, order, resuming, ends of every kind."""
import json
import shutil

import jax
import numpy as np
import pytest
import stand_in
import tiny

from htd_jax import checkpoints, config as config_lib
from htd_jax.errors import UserError
from htd_jax.training import loop


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.write_dataset(folder)
    return folder


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr(loop.functional, "functions", stand_in.functions)


def rows(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def losses(workdir):
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in rows(workdir)]


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_what_a_run_leaves(data, tmp_path, capsys):
    run = tmp_path / "run"
    metrics = loop.train(tiny.config(data, total_steps=7, log_every=3, eval_every=4, checkpoint_every=2), run)
    assert [row["step"] for row in rows(run)] == [1, 3, 6, 7]
    assert {"loss", "loss_count", "lr", "grad_norm", "images_per_second", "images_per_second_per_device", "data_wait",
            "skipped", "eta"} <= set(rows(run)[0])
    assert [row["step"] for row in rows(run, "evaluations.jsonl")] == [4, 7]
    assert rows(run, "evaluations.jsonl")[-1]["AP"] == metrics["AP"] and metrics["images"] == 12
    assert {4, 6, 7} <= set(steps(run)) and len(steps(run)) <= 4  # the last three, and the best
    assert json.loads((run / "config.json").read_text())["model"]["num_classes"] == 2
    assert json.loads((run / "categories.json").read_text()) == [[1, "red"], [2, "green"]]
    assert json.loads((run / "eval" / "metrics.json").read_text())["AP"] == metrics["AP"]
    assert list(run.glob("events.out.tfevents.*"))
    printed = capsys.readouterr()
    assert "AP50" in printed.out and "step 3/7: loss" in printed.err and "images/s" in printed.err
    assert printed.err.endswith(f"the last evaluation: {run}/eval/report.html\n")
    assert b"images/0.png" in next(run.glob("events.out.tfevents.*")).read_bytes()
    tree = checkpoints.restore_params(run)
    assert tree["head"]["fcs"][0]["kernel"].shape == (12, 2) and tree["mean"].shape == (12,)


def test_resumed_equals_uninterrupted_exactly(data, tmp_path):
    keys = dict(checkpoint_every=3, ema=0.5, data__flip=0.5)
    loop.train(tiny.config(data, total_steps=11, **keys), tmp_path / "whole")
    for total in (4, 5, 11):
        loop.train(tiny.config(data, total_steps=total, **keys), tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 11
    whole, parts = (checkpoints.restore_params(tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_rows_beyond_the_checkpoint_come_again_once(data, tmp_path):
    loop.train(tiny.config(data, total_steps=6, checkpoint_every=3), tmp_path)
    want = losses(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as if killed after two more steps, in the midst of a line
        file.write('{"step": 7, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1}\n{"step": 8, "lo')
    loop.train(tiny.config(data, total_steps=8), tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))
    assert losses(tmp_path)[:6] == want


def contents(workdir):
    """What lies in a workdir, folders too, and when each was last changed."""
    paths = [workdir, *workdir.rglob("*")]
    return {str(path): (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("keys", [{}, dict(total_steps=1), dict(lr=.1, test__score=.5), dict(batch_size=4)])
def test_finished_run_started_again_says_so_and_changes_nothing(data, tmp_path, capsys, keys):
    metrics = loop.train(tiny.config(data, total_steps=2), tmp_path)
    before = contents(tmp_path)
    again = loop.train(tiny.config(data, **{"total_steps": 2} | keys), tmp_path)
    assert contents(tmp_path) == before
    assert f"finished: step 2 of {keys.get('total_steps', 2)}; evaluated at step 2" in capsys.readouterr().err
    assert {name: again[name] for name in ("AP", "ARl", "images")} == {k: metrics[k] for k in ("AP", "ARl", "images")}


def test_settings_that_change_when_resuming_are_listed(data, tmp_path, capsys):
    loop.train(tiny.config(data, total_steps=1, lr=.01), tmp_path)
    loop.train(tiny.config(data, total_steps=2, lr=.01, total_epochs=12), tmp_path)
    assert "other settings: total_steps 2 (before: 1)\n" in capsys.readouterr().err
    loop.train(tiny.config(data, total_steps=3, lr=.02, data__flip=0.0), tmp_path)
    listed = "other settings: data.flip 0.0 (before: 0.5), lr 0.02 (before: 0.01), total_steps 3 (before: 2)\n"
    assert listed in capsys.readouterr().err
    loop.train(tiny.config(data, total_steps=5), tmp_path / "new")
    assert "other settings" not in capsys.readouterr().err


def with_categories(data, folder, names):
    """The data with its classes in another order or under other names; ids and boxes stay."""
    content = json.loads((data / "all.json").read_text())
    renamed = dict(zip(("red", "green"), names)) if len(names) == 2 and set(names) != {"red", "green"} else {}
    by_name = {renamed.get(c["name"], c["name"]): c["id"] for c in content["categories"]}
    content["categories"] = [dict(id=by_name.get(name, 50 + k), name=name) for k, name in enumerate(names)]
    path = folder / f"{'_'.join(names)}.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_classes_in_another_order_keep_their_labels_when_resuming(data, tmp_path):
    reordered = with_categories(data, tmp_path, ["green", "red"])
    loop.train(tiny.config(data, total_steps=4), tmp_path / "whole")
    loop.train(tiny.config(data, total_steps=2), tmp_path / "parts")
    files = dict(data__train__annotations=reordered, data__val__annotations=reordered)
    metrics = loop.train(tiny.config(data, total_steps=4, **files), tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / "categories.json").read_text()) == [[1, "red"], [2, "green"]]
    whole, parts = (json.loads((tmp_path / name / "eval" / "metrics.json").read_text()) for name in ("whole", "parts"))
    assert whole == parts and metrics["per_class"]["red"] > -1
    dataset, _, labels = loop.open_data(tiny.config(data, **files), tmp_path / "parts")
    assert [c.name for c in dataset.categories] == ["red", "green"] and labels.tolist() == [1, 0]
    plain, _, _ = loop.open_data(tiny.config(data), tmp_path / "new")
    for i in range(len(plain)):
        np.testing.assert_array_equal(dataset.record(i).labels, plain.record(i).labels)


@pytest.mark.parametrize("names, words", [
    (["red", "Green"], "'Green', class 2 of 2 in the annotations, is not among the 2 of the run in .*; is it 'green'"),
    (["red", "green", "blue"], "the annotations have classes that the run in .* has not: blue; train them in another")])
def test_other_classes_in_the_workdir(data, tmp_path, names, words):
    loop.train(tiny.config(data, total_steps=1), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=words):
        loop.train(tiny.config(data, data__train__annotations=with_categories(data, tmp_path, names)), tmp_path / "run")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("names, labels, words", [
    (["green", "red"], [1, 0], ""), (["green"], [-1, 0], "1 of the 2 classes of the training set are not listed"),
    (["blue", "red", "green"], [1, 2], "1 classes are not among those of the training set, and never found: blue")])
def test_classes_of_validation_are_matched_by_name(data, tmp_path, caplog, names, labels, words):
    content = json.loads((data / "all.json").read_text())
    kept = [c for c in content["categories"] if c["name"] in names]
    content["categories"] = sorted(kept, key=lambda c: names.index(c["name"]))
    content["categories"] += [dict(id=9, name="blue")] if "blue" in names else []
    content["categories"].sort(key=lambda c: names.index(c["name"]))
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in [c["id"] for c in kept]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = tiny.config(data, data__val__annotations=str(tmp_path / "val.json"))
    assert loop.open_data(config, tmp_path / "run")[2].tolist() == labels and words in caplog.text


def test_classes_of_validation_that_differ_late(data, tmp_path):
    names = ["red", "green", *map(str, range(8))]
    train, val = (with_categories(data, tmp_path, n) for n in (names, [*names[:7], "5x", *names[8:]]))
    with pytest.raises(UserError, match="different classes: '5', class 8 of 10 in the training set, is not among"):
        loop.open_data(tiny.config(data, data__train__annotations=train, data__val__annotations=val), tmp_path / "run")


def test_a_validation_set_without_boxes_is_said(data, tmp_path, caplog):
    (tmp_path / "val.json").write_text(json.dumps(json.loads((data / "all.json").read_text()) | {"annotations": []}))
    loop.open_data(tiny.config(data, data__val__annotations=str(tmp_path / "val.json")), tmp_path / "run")
    assert "the validation set has no box" in caplog.text


def test_an_evaluation_that_fails_loses_nothing(data, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise UserError("image file 3.png is truncated")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="3.png is truncated"):
        patch.setattr(loop.runner, "evaluate", fail)
        loop.train(tiny.config(data, total_steps=3), tmp_path)
    assert steps(tmp_path) == [3]
    metrics = loop.train(tiny.config(data, total_steps=3), tmp_path)
    assert rows(tmp_path, "evaluations.jsonl")[-1]["AP"] == metrics["AP"] and len(rows(tmp_path)) == 3


def test_epochs_are_counted_by_images_seen(data, tmp_path):
    keys = dict(total_steps=None, total_epochs=4, milestones=(3,), warmup_steps=0)
    loop.train(tiny.config(data, batch_size=2, **keys | dict(total_epochs=2)), tmp_path)
    assert steps(tmp_path)[-1] == 12  # 6 steps an epoch
    loop.train(tiny.config(data, batch_size=6, **keys), tmp_path)
    assert steps(tmp_path)[-1] == 16  # 2 more epochs of 2 steps
    assert [round(row["lr"], 6) for row in rows(tmp_path)[12:]] == [.01, .01, .001, .001]
    loop.train(tiny.config(data, batch_size=2, **keys), tmp_path)
    assert steps(tmp_path)[-1] == 16  # all epochs are done


def test_evaluation_does_not_change_the_run(data, tmp_path):
    loop.train(tiny.config(data, eval_every=1), tmp_path / "often")
    assert loop.train(tiny.config(data, data__val__annotations=""), tmp_path / "never") is None
    assert losses(tmp_path / "often") == losses(tmp_path / "never")


def test_loss_that_is_not_finite(data, tmp_path):
    with pytest.raises(UserError) as error:
        loop.train(tiny.config(data, total_steps=50, lr=1e25, warmup_steps=0, checkpoint_every=1), tmp_path)
    last = steps(tmp_path)[-1]
    assert f"not finite at step {last + 1}: " in str(error.value) and "loss_count" in str(error.value)
    saved = np.load(tmp_path / f"nonfinite_step_{last + 1}.npz")
    assert saved["image"].shape == (8, 64, 64, 3) and saved["boxes"].shape[::2] == (8, 4)
    assert str([100 + int(i) for i in saved["index"]]) in str(error.value)


@pytest.mark.parametrize("keys, words", [
    (dict(data__train__annotations="/nowhere.json"), "/nowhere.json"),
    (dict(data__val__annotations="/nowhere.json"), "/nowhere.json"),
    (dict(model__num_classes=1), "num_classes .=1. is less than the 2 categories")])
def test_bad_input_leaves_no_workdir(data, tmp_path, keys, words):
    with pytest.raises(UserError, match=words):
        loop.train(tiny.config(data, **keys), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_model_in_the_workdir(data, tmp_path):
    loop.train(tiny.config(data, total_steps=1), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is of another model: params.head.fcs.1.kernel .2, 32. instead of .2, 16."):
        loop.train(tiny.config(data, model__fc_channels=16), tmp_path)
    assert contents(tmp_path) == before


def test_unreadable_images_are_counted_and_many_stop_the_run(data, tmp_path):
    folder = tmp_path / "data"
    tiny.write_dataset(folder)
    (folder / "images" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="more than 1 % of the images"):
        loop.train(tiny.config(folder, total_steps=40, data__val__annotations=""), tmp_path / "run")


def test_workdir_that_cannot_be_made(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the workdir"):
        loop.train(tiny.config(data), tmp_path / "file" / "run")


@pytest.mark.parametrize("scores, ends, best", [
    ([.1, .3, .2, .3, .4], 4, 2), ([.3, .2, .1, .1], 3, 1), ([.1, .2, .3, .4, .5, .6], 6, 6)])
def test_patience_ends_a_run_whose_ap_does_not_improve(data, tmp_path, monkeypatch, capsys, scores, ends, best):
    """Two evaluations without a better one; an equal one is not better."""
    queue = iter(scores)
    monkeypatch.setattr(loop.runner, "evaluate", lambda *_: dict(AP=next(queue), AP50=0.0, images=12))
    monkeypatch.setattr(loop.coco, "METRICS", ("AP",))
    config = tiny.config(data, total_steps=6, eval_every=1, patience=2)
    assert loop.train(config, tmp_path)["AP"] == scores[ends - 1]
    assert [row["step"] for row in rows(tmp_path, "evaluations.jsonl")] == list(range(1, ends + 1))
    assert best in steps(tmp_path)
    assert (f"training ends after step {ends}; the best is checkpoints/{best}" in capsys.readouterr().err) == (ends < 6)
    before = contents(tmp_path)
    assert loop.train(config, tmp_path)["AP"] == scores[ends - 1]  # the stored numbers: nothing is evaluated
    assert contents(tmp_path) == before
    improved = f"AP had not improved in 2 evaluations, the best is checkpoints/{best}"
    said = capsys.readouterr().err
    assert f"finished: step {ends} of 6; evaluated at step {ends}" in said and (improved in said) == (ends < 6)


def test_more_patience_trains_on(data, tmp_path, monkeypatch):
    queue = iter([.3, .2, .1, .4])
    monkeypatch.setattr(loop.runner, "evaluate", lambda *_: dict(AP=next(queue), AP50=0.0, images=12))
    monkeypatch.setattr(loop.coco, "METRICS", ("AP",))
    for patience, last in ((2, 3), (3, 4)):
        loop.train(tiny.config(data, total_steps=4, eval_every=1, patience=patience), tmp_path)
        assert steps(tmp_path)[-1] == rows(tmp_path)[-1]["step"] == last


def test_one_folder_is_enough(data, tmp_path):
    shutil.copytree(data / "images", tmp_path / "mine/images")
    for split in ("train", "val"):
        shutil.copy(data / "all.json", tmp_path / f"mine/{split}.json")
    config = tiny.config(data, total_steps=2, data__root=str(tmp_path / "mine"))
    for split in ("train", "val"):
        config.data[split] = config_lib.default_config().data[split]
    assert loop.train(config, tmp_path / "run")["images"] == 12
    assert checkpoints.load_config(tmp_path / "run").data.root == str(tmp_path / "mine")
    config.data.val.annotations = ""
    assert loop.train(config, tmp_path / "never") is None
