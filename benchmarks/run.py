"""Measures this machine and prints what `docs/performance.md` shows.

  python -m benchmarks.run                        # operators, steps, parts and scaling; under 10 minutes on a GPU
  python -m benchmarks.run --what steps --config htd_r50

On a CPU it takes about half an hour; run nothing else meanwhile. Install torch (and torchvision) for the yardsticks.
"""
import argparse
import sys

import jax
import jax.numpy as jnp

from benchmarks import models, operators, parts, scaling, steps, table, timing

WHAT = ("operators", "steps", "parts", "scaling")
CONFIGS = ("htd_r50", "htd_r101_dcn")


def main():
    given = arguments()
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    print(table.provenance("python -m benchmarks.run " + " ".join(sys.argv[1:])), flush=True)
    dtype = jnp.dtype(operators.dtype())
    peak = timing.peak_flops(dtype)
    print(f"- peak, by the best of some large {dtype.name} matrix products: {peak / 1e12:.3g} TFLOP/s\n", flush=True)
    if "operators" in given.what or "steps" in given.what:
        print(table.markdown(measured(given), peak), flush=True)
    if "parts" in given.what:
        for name in given.config:
            print(f"\n{name}, one image:\n\n{table.markdown(parts.rows(name, models.load(name)), peak)}", flush=True)
    if "scaling" in given.what:
        found = scaling.sweeps()
        scaling.plot(found)
        print(f"\n{scaling.markdown(found)}", flush=True)
        scaling.check(found)


def measured(given):
    """The rows of the one table; each is also printed on stderr when measured."""
    rows = operators.rows() if "operators" in given.what else []
    for case in steps.cases(given.config) if "steps" in given.what else ():
        rows.append(steps.in_process(case))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--what", type=lambda text: text.split(","), default=WHAT, help=",".join(WHAT))
    parser.add_argument("--config", type=lambda text: text.split(","), default=CONFIGS, help=",".join(CONFIGS))
    given = parser.parse_args()
    if not set(given.what) <= set(WHAT):
        parser.error(f"--what (={','.join(given.what)}): must be some of {','.join(WHAT)}")
    return given


if __name__ == "__main__":
    main()
