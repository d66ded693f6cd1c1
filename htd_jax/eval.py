"""Scores a checkpoint on the validation images by the COCO API.

Example:
  python eval.py --config configs/htd_r50.py --checkpoint runs/r50 --output runs/r50/eval
  python eval.py --config configs/htd_r50.py --checkpoint htd_r50.safetensors --config.test.batch_size=8
  python eval.py --checkpoint runs/r50

A workdir or one of its saved steps brings its own configuration where --config is left out.
The output folder gets metrics.json, detections.json (COCO results, ready for the test-dev server), detections.png and
report.html.
"""
import functools

from absl import flags

from htd_jax import cli


def main(arguments: list[str]) -> None:
    args = flags.FLAGS
    cli.check(arguments, checkpoint=args.checkpoint)
    import jax  # after the command line is checked: the imports take seconds

    from htd_jax import data, mesh as mesh_lib
    from htd_jax.evaluation import coco, restored, runner
    from htd_jax.models import functional

    # ---- data: errors in it are found before a device is touched
    config = args.config
    dataset = data.open_dataset(config, "val")
    if args.output:
        runner.make_folder(args.output)

    # ---- devices and model
    mesh_lib.keep_compiled(config.compilation_cache)
    if config.distributed:
        mesh_lib.start_processes()
    mesh = mesh_lib.make_mesh()
    state = restored.restore(config, args.checkpoint)
    labels = restored.check_classes(dataset.categories, config, args.checkpoint)
    states = (mesh_lib.replicate(state, mesh.local_mesh),)
    detect_fn = functools.partial(runner.compile_detect(functional.functions(config).detect, mesh), states)

    # ---- every image, then the score
    metrics = runner.evaluate(detect_fn, dataset, config, args.output, mesh, labels, run=args.checkpoint)
    if jax.process_index() == 0:
        print(coco.table(metrics))


def command() -> None:
    """The program `eval.py` or htd-eval."""
    cli.define_config()
    flags.DEFINE_string("checkpoint", None, "A workdir, one saved step, or a .safetensors or .pth file.")
    flags.DEFINE_string("output", None, "Folder for metrics.json, detections.json and report.html.")
    cli.run(main, __doc__)


if __name__ == "__main__":
    command()
