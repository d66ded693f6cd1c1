"""How long `train.py` takes to its first step: with an empty compilation cache, and again with a filled one.

  python -m benchmarks.start                                            # configs/demo.py: needs no data
  python -m benchmarks.start --config configs/htd_r50.py --config.data.train.annotations=A --config.data.train.images=B
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.table import ROOT, provenance

SHARE = 1 / 3  # of the first start, that the second may take


def main():
    flags = sys.argv[1:]
    if not any(flag.startswith("--config") and not flag.startswith("--config.") for flag in flags):
        flags = ["--config", "configs/demo.py", *flags]
    print(provenance("python -m benchmarks.start " + " ".join(sys.argv[1:])), flush=True)
    first, second = starts(flags)
    print(f"\n| start | seconds to the first step | of the first |\n| --- | --- | --- |\n| first | {first:.1f} | |\n"
          f"| second | {second:.1f} | {second / first:.2f} (at most {SHARE:.2f}) |")


def starts(flags):
    """Seconds from starting train.py with `flags` to its first logged step: without, then with, a filled cache."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        workdirs = folder / "first", folder / "second"
        return tuple(seconds_to_first_step(flags, workdir, folder / "cache") for workdir in workdirs)


def seconds_to_first_step(flags, workdir, cache):
    """Starts train.py, ends it once its first step is in the log; raises CalledProcessError if it ends before."""
    command = [sys.executable, "train.py", *flags, "--workdir", str(workdir), "--config.log_every=1"]
    log = workdir / "metrics.jsonl"
    begin = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}) as process:
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None:
                raise subprocess.CalledProcessError(process.returncode, command)
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        process.kill()
    return seconds


if __name__ == "__main__":
    main()
