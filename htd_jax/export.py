"""Writes a detector as StableHLO that runs without this project, on CPU, CUDA and TPU.

  python -m htd_jax.export --config configs/htd_r50.py --checkpoint runs/r50 --output exported --image 800,1344 --batch 1

The folder gets `detect.stablehlo`, the serialised program with its parameters in it, and `labels.json`: the classes in the
order of the labels, and what the program takes and gives. In Python, with JAX alone:

  detect = jax.export.deserialize(open("exported/detect.stablehlo", "rb").read())
  found = detect.call(image, size)      # boxes in the pixels of `image`, scores, labels, valid
"""
import json
import pathlib

import jax
import jax.export
import jax.numpy as jnp
from absl import flags

from htd_jax import aot, cli
from htd_jax.errors import UserError
from htd_jax.evaluation import restored
from htd_jax.models import functional

PLATFORMS = ("cpu", "cuda", "tpu")
MULTIPLE = 32  # sides of the images, and of the padding that the detector reckons with


def export(config, checkpoint, output, shape, batch_size=1):
    """Writes `detect.stablehlo` and `labels.json` into the folder `output`.

    Args:
      config: ConfigDict of the model; `config.test` says what is put out.
      checkpoint: any form of `--checkpoint`.
      output: folder, made where it is not there.
      shape: (height, width) of the images that the program takes, multiples of 32.
      batch_size: how many of them at a time.

    Raises:
      UserError: the checkpoint does not fit, the shape is no multiple of 32, the folder cannot be written.
    """
    if len(shape) != 2 or any(side <= 0 or side % MULTIPLE for side in shape):
        raise UserError(f"--image (={','.join(map(str, shape))}): must be height and width, multiples of {MULTIPLE}")
    if batch_size < 1:
        raise UserError(f"--batch (={batch_size}): must be at least 1")
    state = restored.restore(config, checkpoint)
    categories = restored.categories(checkpoint, config.model.num_classes)
    detect = functional.functions(config).detect
    run = jax.jit(lambda image, size: detect((state,), batch_of(image, size)))
    inputs = jax.ShapeDtypeStruct((batch_size, *shape, 3), jnp.uint8), jax.ShapeDtypeStruct((batch_size, 2), jnp.int32)
    program = jax.export.export(run, platforms=PLATFORMS)(*inputs)
    about = dict(image=dict(shape=inputs[0].shape, dtype="uint8", colours="RGB", placed="top left, the rest is not looked at"),
                 size=dict(shape=inputs[1].shape, dtype="int32", order="height, width of each picture in its array"),
                 scale=list(config.test.scale), platforms=PLATFORMS,
                 labels=[dict(label=label, id=id_, name=name) for label, (id_, name) in enumerate(categories)])
    _write(pathlib.Path(output), program.serialize(), about)


def batch_of(image, size):
    """What `detect` takes, of images uint8 `[B, H, W, 3]` that hold pictures of `size [B, 2]` at the top left."""
    padded = -(-size // MULTIPLE) * MULTIPLE
    return dict(image=image, size=size, padded=padded, scale=jnp.ones(size.shape, jnp.float32))


def _write(folder, program, about):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "detect.stablehlo").write_bytes(program)
        (folder / "labels.json").write_text(json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from error


def main(arguments):
    args = flags.FLAGS
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; keys are set as --config.KEY=VALUE")
    for name in ("checkpoint", "output"):
        if not args[name].value:
            raise UserError(f"--{name} is missing; for example --{name} {dict(checkpoint='runs/r50', output='exported')[name]}")
    if not all(side.isdigit() for side in args.image):
        raise UserError(f"--image (={','.join(args.image)}): must be two numbers, as in 800,1344")
    shape = tuple(map(int, args.image)) or aot.largest_bucket(args.config, "detect")
    export(args.config, args.checkpoint, args.output, shape, args.batch)
    print(f"{args.output}: detect.stablehlo and labels.json, for {args.batch} x {shape[0]} x {shape[1]}")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("checkpoint", None, "A workdir, one saved step, or a .safetensors or .pth file.")
    flags.DEFINE_string("output", None, "Folder for detect.stablehlo and labels.json.")
    flags.DEFINE_list("image", [], "Height and width of the images; unset: the larger bucket of test.scale.")
    flags.DEFINE_integer("batch", 1, "Images at a time.")
    cli.run(main, __doc__)
