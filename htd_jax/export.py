"""Writes a detector as StableHLO that runs without this project, on CPU, CUDA and TPU.

  python -m htd_jax.export --checkpoint runs/r50 --output exported
  python -m htd_jax.export --config configs/htd_r50.py --checkpoint r50.pth --output exported --image 800,1344

The folder gets `detect.stablehlo`, the serialised program with its parameters in it, and `labels.json`: the classes in
the order of the labels, and the program's inputs. docs/export.md runs it in ten lines of Python, with JAX alone.
"""
import json
import os

import jax
import jax.export
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Int32, UInt8
from ml_collections import ConfigDict

from htd_jax import aot, cli, mesh as mesh_lib, paths
from htd_jax.data.padding import STRIDE, round_up
from htd_jax.errors import UserError, writing_to
from htd_jax.evaluation import restored
from htd_jax.models import functional

PLATFORMS = ("cpu", "cuda", "tpu")


def export(config: ConfigDict, checkpoint: str | os.PathLike, output: str | os.PathLike, shape: tuple[int, ...],
           batch_size: int = 1) -> None:
    """Writes `detect.stablehlo` and `labels.json` into the folder `output`.

    Args:
      config: of the model; `config.test` says what is output.
      checkpoint: any form of `--checkpoint`.
      output: created where missing.
      shape: (height, width) of the images that the program takes, multiples of 32.
      batch_size: how many of them at a time.
    Raises UserError: the checkpoint does not fit, the shape is no multiple of 32, the folder cannot be written.
    """
    if len(shape) != 2 or any(side <= 0 or side % STRIDE for side in shape):
        raise UserError(f"--image (={','.join(map(str, shape))}): must be height and width, multiples of {STRIDE}")
    if batch_size < 1:
        raise UserError(f"--batch (={batch_size}): must be at least 1")
    state = restored.restore(config, checkpoint)
    categories = restored.categories(checkpoint, config.model.num_classes)
    config = config.copy_and_resolve_references()
    if config.model.roi_align == "auto":
        config.model.roi_align = "portable"  # kernels are compiled for one device and its versions alone
    detect = functional.functions(config).detect
    run = jax.jit(lambda image, size: detect((state,), batch_of(image, size)))
    inputs = jax.ShapeDtypeStruct((batch_size, *shape, 3), jnp.uint8), jax.ShapeDtypeStruct((batch_size, 2), jnp.int32)
    program = jax.export.export(run, platforms=PLATFORMS)(*inputs)
    placed = "top left, the rest is ignored"
    about = dict(image=dict(shape=inputs[0].shape, dtype="uint8", colours="RGB", placed=placed),
                 size=dict(shape=inputs[1].shape, dtype="int32", order="height, width of each image in its array"),
                 scale=list(config.test.scale), platforms=PLATFORMS,
                 labels=[dict(label=label, id=id_, name=name) for label, (id_, name) in enumerate(categories)])
    folder = paths.of(output)
    with writing_to(f"--output {folder}"):
        paths.make_folder(folder)
        paths.write(folder / "detect.stablehlo", bytes(program.serialize()))
        paths.write(folder / "labels.json", json.dumps(about, indent=1) + "\n")


def batch_of(image: UInt8[Array, "B H W 3"], size: Int32[Array, "B 2"]) -> dict[str, Array]:
    """The batch that `detect` takes, of arrays that hold an image of `size` at their top left."""
    return dict(image=image, size=size, padded=round_up(size), scale=jnp.ones(size.shape, jnp.float32))


def main(arguments: list[str]) -> None:
    args = flags.FLAGS
    cli.check(arguments, checkpoint=args.checkpoint, output=args.output)
    mesh_lib.keep_compiled(args.config.compilation_cache)
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
