"""Compile the real training step or detection for a TPU or GPU that is not there, and estimate its time.

    python -m htd_jax.aot --config configs/htd_r50.py --topology v5e:1x1 --config.dtype=bfloat16 --config.batch_size=8
    python -m htd_jax.aot --config configs/htd_r50.py --topology h100:1 --what detect --profile

A TPU needs `pip install libtpu`, a GPU `pip install "jax[cuda13]"` and ptxas on the path; neither needs the device.
Prints one JSON object: `peak_bytes_per_device`, `flops` (of the whole program; loops count once), `bytes_accessed`,
`compile_seconds`, whether it `fits` the device's memory, `estimated_ms` and the `loops` whose lengths that assumes.
docs/performance.md says how far to trust the estimate.
"""
import json

from absl import flags

from htd_jax import cli
from htd_jax.aot import compile_for, largest_bucket


def main(_: list[str]) -> None:
    args = flags.FLAGS
    config = args.config
    if config.model.num_classes is None:
        config.model.num_classes = 80
    shape = tuple(map(int, args.image)) or largest_bucket(config, args.what)
    facts = compile_for(config, args.topology, args.what, shape)
    profile = facts.pop("profile")
    if args.profile:
        print(profile)
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("topology", "v5e:1x1", "Chip and grid, as in v5e:1x1, v5e:2x2, v6e:2x4, h100:1.")
    flags.DEFINE_enum("what", "train", ["train", "detect"], "Which program.")
    flags.DEFINE_list("image", [], "Height and width of the images; unset: the largest bucket of the configuration.")
    flags.DEFINE_bool("profile", False, "Print the estimate by source line too.")
    cli.run(main, __doc__)
