"""Converts weights: from the original's files to a workdir that eval.py and train.py read, and back.

Examples:
  python -m htd_jax.convert htd_r50.pth runs/original --config configs/htd_r50.py   (-> a workdir)
  python -m htd_jax.convert runs/r50 htd_r50.safetensors                            (-> the original's names)
  python -m htd_jax.convert htd_r50.pth htd_r50.safetensors --config configs/htd_r50.py
  python -m htd_jax.convert faster_rcnn.pth resnet50.safetensors --backbone
  python -m htd_jax.convert R-50.pkl resnet50.safetensors --backbone                (Detectron2's; Keras' .h5 too)
  python -m htd_jax.convert resnet50_caffe.pth resnet50.safetensors --backbone --bgr   (MMDetection's *_caffe)

SRC is a .safetensors, .pth, .pkl or .h5 file, a workdir (its latest step), one saved step, or hf:OWNER/NAME. DST ends
in .safetensors or is the folder of a new workdir. --config says which model a file holds; a workdir says so itself.
"""
import functools
import os

import jax
from absl import flags
from ml_collections import ConfigDict

from htd_jax import cli, paths
from htd_jax.errors import UserError, writing_to
from htd_jax.weights import files, loading, names, publishers

_BACKBONE = flags.DEFINE_bool("backbone", False, "Take the backbone alone, out of whatever detector SRC holds.")
_BGR = flags.DEFINE_bool("bgr", False, "SRC is a .pth or .safetensors whose stem takes BGR less its mean, undivided.")


def main(arguments: list[str]) -> None:
    """The command line: SRC and DST."""
    if len(arguments) != 2:
        given = f"{len(arguments)} given: {' '.join(arguments) or 'none'}"
        raise UserError(f"two arguments are needed, SRC and DST; {given}")
    convert(*arguments, config=flags.FLAGS.config, backbone=_BACKBONE.value, bgr=_BGR.value)


def convert(source: str | os.PathLike, target: str | os.PathLike, config: ConfigDict | None = None,
            backbone: bool = False, bgr: bool = False) -> None:
    """Converts weights from anything that `loading.load_tensors` reads.

    Args:
        target: a path ending in `.safetensors`, else the folder of a workdir that does not exist yet.
        config: of the model; needed for a workdir from a file. Where it is given, nothing may be missing.
        backbone: leave out all but the backbone.
        bgr: build into the stem that it takes BGR pixels less the ImageNet mean, undivided: weights of "caffe" style.
            Files of Detectron and Keras say so by their names, and need no `bgr`.
    Raises UserError where the source cannot be read or does not fit, or the target cannot be written.
    """
    target = paths.of(target)
    if target.suffix in files.TORCH_SUFFIXES:
        raise UserError(f"{target}: weights are written as .safetensors, which PyTorch reads by "
                        "safetensors.torch.load_file(path)")
    if bgr and target.suffix != ".safetensors":
        raise UserError("--bgr writes a .safetensors file; convert that to a workdir")
    write = functools.partial(_write_file, bgr=bgr) if target.suffix == ".safetensors" else _write_workdir
    write(source, target, config, backbone)


def _write_file(source, target, config, backbone, bgr):
    """Writes the tensors under all the original's names."""
    tensors = loading.load_tensors(source)
    if backbone:
        tensors = {name: array for name, array in tensors.items() if name.startswith("backbone.")}
    if bgr:
        tensors = _for_rgb(tensors, source)
    unknown = [name for name in tensors if names.model_path(name) is None]
    if unknown or not tensors:
        raise UserError(f"{source} holds {loading.listed(unknown) or 'nothing'} that HTD does not have; --backbone "
                        "takes the backbone alone")
    if config is not None:
        from htd_jax.models import functional
        if config.model.num_classes is None:  # of a backbone any number will do: no classifier is looked at
            config.model.num_classes = loading.num_classes(tensors) or 1
        shapes = loading.tree_of(functional.functions(config).abstract)
        loading.load_into(shapes, tensors, source=source, backbone_only=backbone)
    elif not paths.of(source).is_dir():
        print(f"{source}: names are known; that none is missing was not checked: give --config for that")
    everything = loading.complete(tensors)
    files.write(target, everything)
    print(f"{target}: {len(everything)} tensors, {sum(a.nbytes for a in everything.values()) / 2**20:.0f} MiB")


def _for_rgb(tensors, source):
    if not {"backbone.conv1.weight", "backbone.bn1.running_mean"} <= tensors.keys():
        raise UserError(f"{source} has no stem (backbone.conv1 and bn1) to build --bgr into")
    return publishers.fold_bgr(tensors)


def _write_workdir(source, target, config, backbone):
    """Writes one checkpoint, step 0, with config.json and categories.json beside it."""
    from htd_jax import checkpoints  # Orbax: seconds to import
    from htd_jax.evaluation import restored
    from htd_jax.models import functional
    if backbone:
        raise UserError("--backbone writes a .safetensors file; a workdir holds a whole detector")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; give the name of a new folder")
    if config is None and not paths.of(source).is_dir():
        raise UserError(f"{source} does not say which model it holds; give --config, for example configs/htd_r50.py")
    config = checkpoints.load_config(source) if config is None else config
    weights = restored.restore(config, source)
    categories = restored.categories(source, config.model.num_classes)
    model = functional.functions(config).abstract
    loading.put(model, weights)
    params, frozen = functional.split(model, config)
    with writing_to(f"the workdir {target}"):
        paths.make_folder(target)
    with checkpoints.Checkpoints(target) as saved:
        saved.save(0, dict(params=params, frozen=frozen), checkpoints.travelling(config, categories))
    checkpoints.write_about(target, config, categories)
    count = len(jax.tree.leaves(weights))
    print(f"{target}: a workdir with one checkpoint, {count} tensors, {config.model.num_classes} classes")


if __name__ == "__main__":
    cli.define_config()
    cli.run(main, __doc__, config_required=False)
