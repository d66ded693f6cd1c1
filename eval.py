"""Scores a checkpoint on the validation images by the COCO API.

Example:
  python eval.py --config configs/htd_r50.py --checkpoint runs/r50 --output runs/r50/eval
  python eval.py --config configs/htd_r50.py --checkpoint htd_r50.safetensors --config.test.batch_size=8

The output folder gets metrics.json, detections.json (COCO results, ready for the test-dev server), detections.png and
report.html.
"""
import functools

from absl import flags

from htd_jax import cli

_CONFIG = cli.define_config()
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, one saved step, or a .safetensors or .pth file.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for metrics.json, detections.json and report.html.")


def main(arguments: list[str]) -> None:
    cli.check(arguments, checkpoint=_CHECKPOINT.value)
    import jax  # after the command line is checked: the imports take seconds

    from htd_jax import data, mesh as mesh_lib
    from htd_jax.evaluation import coco, restored, runner
    from htd_jax.models import functional

    # ---- data: errors in it are found before a device is touched
    config = _CONFIG.value
    dataset = data.open_dataset(config, "val")
    if _OUTPUT.value:
        runner.make_folder(_OUTPUT.value)

    # ---- devices and model
    if config.distributed:
        mesh_lib.start_processes()
    mesh = mesh_lib.make_mesh()
    state = restored.restore(config, _CHECKPOINT.value)
    restored.check_classes(dataset.categories, config, _CHECKPOINT.value)
    states = (mesh_lib.replicate(state, mesh.local_mesh),)
    detect_fn = functools.partial(runner.compile_detect(functional.functions(config).detect, mesh), states)

    # ---- every image, then the score
    metrics = runner.evaluate(detect_fn, dataset, config, _OUTPUT.value, mesh)
    if jax.process_index() == 0:
        print(coco.table(metrics))


if __name__ == "__main__":
    cli.run(main, __doc__)
