"""Checks this machine and, with --config, a configuration and its data: a line each, ok, warn or fail with a remedy.

Examples:
  python -m htd_jax.doctor
  python -m htd_jax.doctor --config configs/htd_r50.py --config.data.val.images=/data/coco/val2017 --report data.html

With --config every annotation and the header of every image are looked at; --report draws samples with their boxes.

The exit status is 1 where a line says fail.
"""
import importlib.metadata
import importlib.util
import itertools
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

from absl import flags
from ml_collections import ConfigDict
from packaging.requirements import InvalidRequirement, Requirement

from htd_jax import cli, paths
from htd_jax.errors import UserError, one_line, shortened, writing_to

OK, WARN, FAIL = "ok", "warn", "fail"
Results = Iterator[tuple[str, str, str]]  # state, what was checked, remark

_REQUIREMENTS = pathlib.Path(__file__).resolve().parents[1] / "requirements.txt"
_PYTHON = (3, 11), (3, 14)  # from, to but without
_OPTIONAL = {"torch": "to read .pth files: pip install torch --index-url https://download.pytorch.org/whl/cpu",
             "tensorflow_datasets": "for data.source='tfds' and htd_jax.prepare: pip install tensorflow-datasets",
             "h5py": "to read Keras' .h5 files: pip install h5py",
             "huggingface_hub": "for init_from='hf:...': pip install huggingface_hub"}
_GIB = 2**30
_SLOW_SCATTER = (0, 10, 2), (0, 11, 0)  # versions of jax, both included
_CUDA = (580, "cuda13"), (525, "cuda12")  # NVIDIA's driver from which on each build of JAX runs
_HOST_GIB, _DEVICE_GIB = 8, 8  # of memory, below which HTD-R50 at full size is likely not to train


def main(arguments: list[str]) -> None:
    """The command line: prints the lines; ends with 1 where one says fail."""
    cli.check(arguments)
    if flags.FLAGS.report and not flags.FLAGS.config:
        raise UserError("--report shows the data of a configuration: give --config FILE too")
    results = list(check(flags.FLAGS.config, report=flags.FLAGS.report))
    sys.exit(any(state == FAIL for state, _, _ in results))


def check(config: ConfigDict | None = None, show: Callable[[str], object] = print,
          report: str | os.PathLike | None = None) -> Results:
    """Yields the result of every check, in order, and shows it as a line. The data of `config` are looked at too.

    `report`: where to write a page of samples of the data, None for nowhere.
    """
    checks = [python(), requirements(), optional(), devices(), forms(), memory()]
    opened = {}
    if config:
        checks += [data(config, "train", opened), data(config, "val", opened), agreement(opened)]
        checks += [inspect(config, report), start(config)]
    for state, what, remark in itertools.chain(*checks):
        show(f"{state:<5} {what:<24} {shortened(remark)}")
        yield state, what, remark


def python() -> Results:
    """The interpreter."""
    fits = _PYTHON[0] <= sys.version_info[:2] < _PYTHON[1]
    remark = "" if fits else "; tested with 3.11, 3.12 and 3.13: use one of them"
    yield OK if fits else WARN, "python", platform.python_version() + remark


def requirements(path: pathlib.Path = _REQUIREMENTS) -> Results:
    """The packages of requirements.txt, of the installed package where there is none, and whether they are tested."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else importlib.metadata.requires("htd_jax")
    for line in lines:
        if wanted := _requirement(line):
            yield _installed(wanted)


def _requirement(line):
    """Returns a line's Requirement where it has one that applies here, without any extra, else None."""
    try:
        wanted = Requirement(re.sub(r"(^|\s)#.*", "", line).strip())
    except InvalidRequirement:
        return None  # empty, a comment or an option of pip
    return wanted if wanted.marker is None or wanted.marker.evaluate({"extra": ""}) else None


def _installed(wanted):
    remedy = f"pip install '{wanted.name}{wanted.specifier}'"
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return FAIL, wanted.name, f"is not installed: {remedy}"
    if wanted.specifier.contains(version, prereleases=True):
        return OK, wanted.name, version
    return WARN, wanted.name, f"{version}; tested with {wanted.specifier}: {remedy}"


def optional() -> Results:
    """Packages that only some uses need."""
    for name, use in _OPTIONAL.items():
        installed = importlib.util.find_spec(name) is not None
        yield OK, name, importlib.metadata.version(name) if installed else f"not installed; needed only {use}"


def devices() -> Results:
    """The devices that JAX finds, that one of them computes, and whether one is overlooked."""
    try:
        import jax
        import jax.numpy as jnp
        found = jax.devices()
        right = float(jnp.ones((8, 8)).sum()) == 64
    except Exception as error:  # a plugin may raise anything
        from htd_jax import mesh
        yield FAIL, "devices", mesh.no_device(error)
        return
    named = f"{len(found)} x {found[0].device_kind} ({found[0].platform})"
    yield (OK, "devices", named) if right else (FAIL, "devices", f"{named}; the sum of 64 ones is not 64")
    if found[0].platform == "cpu" and shutil.which("nvidia-smi"):
        yield WARN, "accelerator", f"there is an NVIDIA GPU, but JAX does not use it; {cuda_remedy(nvidia_driver())}"
    elif found[0].platform == "cpu":
        yield WARN, "accelerator", "none; on a CPU only the demo and small images are practical"
    elif found[0].platform == "gpu" and _SLOW_SCATTER[0] <= jax.__version_info__[:3] <= _SLOW_SCATTER[1]:
        yield WARN, "accelerator", (f"jax {jax.__version__} adds up float32 gradients 450 times slower on GPUs "
                                    "(jax#38806): install jax 0.11.1 or later")


def nvidia_driver() -> str:
    """The version of NVIDIA's driver, as in "550.54.15", or what nvidia-smi says instead."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True)
    return (said.stdout or said.stderr).strip().partition("\n")[0]


def cuda_remedy(driver: str) -> str:
    """Which build of JAX a driver (`nvidia_driver`) can run, and how to get it."""
    major = re.match(r"\d+", driver)
    if major is None:
        return f"nvidia-smi finds no driver: {driver}"
    build = next((build for since, build in _CUDA if int(major[0]) >= since), None)
    if build is None:
        return f"its driver {driver} is too old: JAX needs {_CUDA[-1][0]} or later"
    others = [f"jax-{name}-{part}" for _, name in _CUDA if name != build for part in ("plugin", "pjrt")]
    clear = f"pip uninstall {' '.join(others)} && " if any(map(_is_installed, others)) else ""
    return f'its driver {driver} takes {build}: {clear}pip install "jax[{build}]=={importlib.metadata.version("jax")}"'


def _is_installed(package):
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def forms() -> Results:
    """That the device's own form of RoIAlign gives what products of whole maps give, and how long each takes."""
    from htd_jax import forms as forms_lib
    remedy = "train and evaluate with --config.model.roi_align=products, and report it"
    try:
        found = forms_lib.compare()
    except Exception as error:  # whatever a compiler raises
        yield FAIL, "RoIAlign", f"does not run on this device: {type(error).__name__} {one_line(error)}; {remedy}"
        return
    remark = (f"{found.own * 1e3:.2f} ms, by products {found.products * 1e3:.2f} ms; they differ by "
              f"{found.difference:.1e} of the rms")
    if found.difference > found.tolerance:
        yield FAIL, "RoIAlign", f"{remark}; {remedy}"
    elif not found.fits:
        yield WARN, "RoIAlign", f"{remark}; this device's memory is too small for its kernels, so products are used"
    else:
        yield OK, "RoIAlign", remark


def memory() -> Results:
    """Memory of the host and of the first device, and room on the disk."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    yield _at_least(host, _HOST_GIB, "host memory", "HTD-R50 at full size may need more")
    try:
        import jax
        stats = jax.devices()[0].memory_stats() or {}
    except Exception:
        stats = {}  # `devices` reports it
    if "bytes_limit" in stats:
        yield _at_least(stats["bytes_limit"] / _GIB, _DEVICE_GIB, "device memory",
                        "use a smaller config.data.scale, config.accumulate, or config.remat=True")
    free = shutil.disk_usage(".").free / _GIB
    yield _at_least(free, 5, "free disk space here", "a workdir of HTD-R50 takes about 3 GiB")


def _at_least(value, limit, what, otherwise):
    return (OK, what, f"{value:.1f} GiB") if value >= limit else (WARN, what, f"{value:.1f} GiB; {otherwise}")


def data(config: ConfigDict, split: str, opened: dict | None = None) -> Results:
    """One split of a configuration's data, which is put into `opened`: that it opens, what it has, its images."""
    from htd_jax.data import checks, open_dataset
    what = f"data, {split}"
    if split == "val" and config.data.source == "coco" and not config.data.val.annotations:
        yield OK, what, "there is none: training ends without a score"
        return
    try:
        dataset = open_dataset(config, split)
        yield OK, what, checks.describe(dataset)
        for i in sorted({0, len(dataset) // 2, len(dataset) - 1}):
            dataset.image(i)
    except UserError as error:
        yield FAIL, what, str(error)
        return
    except ImportError as error:
        yield FAIL, what, f"{error}: pip install -r requirements.txt"
        return
    yield OK, f"images, {split}", "the first, the middle and the last can be read"
    (opened if opened is not None else {})[split] = dataset
    classes, count = config.model.num_classes, len(dataset.categories)
    if classes not in (None, count):
        yield FAIL, f"classes, {split}", (f"config.model.num_classes is {classes}, but the annotations have {count}; "
                                          "leave it unset to take theirs")


def agreement(opened: dict) -> Results:
    """That the classes of training and validation can be matched, as training does it."""
    if len(opened) < 2:
        return
    from htd_jax.data import classes
    train, val = (opened[split].categories for split in ("train", "val"))
    try:
        labels = classes.label_map(train, val, "the training set", "the validation set")
    except UserError as error:
        yield FAIL, "classes", str(error)
        return
    if (labels < 0).any() or len(labels) < len(val):
        yield WARN, "classes", f"{len(labels)} in training, {len(val)} in validation; they are matched by name"


def inspect(config: ConfigDict, report: str | os.PathLike | None = None) -> Results:
    """Every annotation and every image file of both splits."""
    from htd_jax.data import inspection
    from htd_jax.ops import anchors
    inspected = inspection.inspect(config, [anchors.SCALE * stride for stride in anchors.STRIDES])
    for split, each in inspected.items():
        yield from ((state, f"inspection, {split}", remark) for state, remark, _ in each.findings)
    if report:
        from htd_jax.evaluation import data_page
        with writing_to(f"the page {report}"):
            data_page.write(report, inspected)
        yield OK, "page of samples", os.fspath(report)


def start(config: ConfigDict) -> Results:
    """That the weights to start from are there, without reading or downloading them."""
    source = config.init_from
    if not source:
        state = OK if config.model.norm == "gn" else WARN
        yield state, "init_from", "is not set: training starts from random weights"
    elif source.startswith("hf:"):
        yield OK, "init_from", f"{source} is downloaded when training starts"
    elif paths.of(source).exists():
        yield OK, "init_from", source
    else:
        yield FAIL, "init_from", f"{source}: no such file or folder"


def command() -> None:
    """The program `python -m htd_jax.doctor` or htd-doctor."""
    cli.define_config()
    flags.DEFINE_string("report", None, "File for a page of samples of the data with their boxes; needs --config.")
    cli.run(main, __doc__, config_required=False)


if __name__ == "__main__":
    command()
