"""What one GPU does, in under 8 minutes: whether RoIAlign's forms agree, then whole steps, the most telling first.

  python -m benchmarks.gpu        # with torchvision installed, its Faster R-CNN stands beside each step of HTD-R50

Each figure is printed as soon as it is there, so that a run that is cut off has told what it had.
"""
import sys
import time

import jax

from benchmarks import steps, table, timing
from htd_jax import forms

CASES = (steps.Case("train", "htd_r50", 16, repeats=10), steps.Case("detect", "htd_r50", 8, repeats=10),
         steps.Case("train", "htd_r101_dcn", 16, repeats=10))
LAST_START = 300  # seconds after which no step is begun: it takes up to 3 minutes, most of it to compile


def main(cases=CASES):
    started = time.perf_counter()
    elapsed = lambda: time.perf_counter() - started
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    print(table.provenance("python -m benchmarks.gpu"), flush=True)
    print(agreement(), flush=True)
    peak = timing.peak_flops(jax.numpy.bfloat16)
    rows = []
    for case in cases:
        if elapsed() > LAST_START:
            print(f"- {case.what} {case.name}: left out after {elapsed():.0f} s", flush=True)
            continue
        rows.append(steps.in_process(case))
        print(f"- {rows[-1].what}: {case.batch / rows[-1].times.median:.1f} images/s ({elapsed():.0f} s so far)",
              flush=True)
    print(table.markdown(rows, peak), flush=True)
    sys.exit(0 if rows else 1)


def agreement():
    """A line on RoIAlign's own form and products: how far they differ, and their times, forward and backward."""
    found = forms.compare()
    verdict = "agree" if found.difference <= found.tolerance else "DIFFER"
    return (f"- forms of RoIAlign {verdict}: {found.difference:.1e} of the rms (at most {found.tolerance:.0e}); "
            f"{found.own * 1e3:.2f} ms, by products {found.products * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
