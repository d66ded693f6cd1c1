"""Detects objects in images and folders of images.

Example:
  python predict.py --config configs/htd_r50.py --checkpoint runs/r50 street.jpg photos/ --output found --score 0.3
  python predict.py --checkpoint runs/r50 street.jpg

A workdir or one of its saved steps brings its own configuration where --config is left out.
Prints a line for each image. The output folder gets each image with its detections drawn on it, and detections.json.
Images that cannot be read are named and skipped; the exit status is then 2.
"""
import sys

from absl import flags

from htd_jax import cli
from htd_jax.errors import UserError


def main(arguments: list[str]) -> None:
    args = flags.FLAGS
    if not arguments:
        raise UserError("no image is given; for example predict.py --checkpoint ... street.jpg photos/")
    cli.check([], checkpoint=args.checkpoint)
    from htd_jax.data.user_images import UserImages  # after the command line is checked: the imports take seconds
    from htd_jax.detector import Detector
    from htd_jax.evaluation import prediction_folder, restored

    # ---- images: errors in them are found before the model is loaded
    images = UserImages(arguments)
    folder = prediction_folder.PredictionFolder(args.output, images)

    # ---- model: it outputs all that is to be shown
    config = args.config
    config.test.score = min(config.test.score, args.score)
    detector = Detector.from_checkpoint((config, args.checkpoint))

    if best := restored.best_score(args.checkpoint):
        print(f"showing scores from {args.score:g} on; F1 was greatest at {best[0]:.3f} ({best[1]})", file=sys.stderr)

    # ---- detections, in the order in which images are processed
    for i, result in detector.stream(images, args.score):
        if isinstance(result, UserError):
            cli.fail(result)
        else:
            print(f"{images.names[i]}: {prediction_folder.summary(result)}", flush=True)
            folder.add(i, result)
    folder.close()
    if images.errors:
        raise UserError(f"{len(images.errors)} of {len(images)} images could not be read")


def command() -> None:
    """The program `predict.py` or htd-predict."""
    cli.define_config()
    flags.DEFINE_string("checkpoint", None, "A workdir, one saved step, or a .safetensors or .pth file.")
    flags.DEFINE_string("output", None, "Folder for the drawn images and detections.json.")
    flags.DEFINE_float("score", 0.3, "The lowest score shown.", lower_bound=0, upper_bound=1)
    cli.run(main, __doc__)


if __name__ == "__main__":
    command()
