"""Measures every figure of the original beside ours and writes docs/fidelity.md.

  python scripts/fidelity.py                        # all of it: about an hour on two CPU cores
  python scripts/fidelity.py infer/htd_r50 train/htd_r50 trajectory/htd_r50     # what needs nothing beside the clone
  python scripts/fidelity.py --write                # the document alone, from docs/fidelity.json

Each part is measured in a process of its own and recorded in docs/fidelity.json, from which the document is written,
so that parts can be measured again one by one. Figures of other backbones than R50, and everything on photographs,
need the folder `shared` beside the checkout; `.pth` files need torch, and `.safetensors` takes their place without it.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]
RECORDS = ROOT / "docs" / "fidelity.json"
DOCUMENT = ROOT / "docs" / "fidelity.md"


def infer(name):
    from original import infer
    return infer.figures(name)


def train(name):
    from original import train
    return train.figures(name)


def trajectory_of(name):
    from original import trajectory
    if name == "photographs":
        return trajectory.photographs(work_folder())
    return trajectory.synthetic(name)


def photographs(name):
    from original import photographs
    return photographs.figures(name, work_folder())


def moved(setting):
    from original import photographs
    least = photographs.BUCKET_MATCHED if setting == "data.pad_to=bucket" else 0
    return photographs.figures("coco_r50", work_folder(), f"--config.{setting}", least=least, most=math.inf)


PARTS = {
    **{f"infer/{name}": infer for name in ("htd_r50", "htd_r101", "htd_r101_dcn", "htd_x101_dcn")},
    **{f"train/{name}": train for name in ("htd_r50", "htd_r101_dcn")},
    **{f"trajectory/{name}": trajectory_of for name in ("htd_r50", "htd_r101_dcn", "photographs")},
    **{f"photographs/{name}": photographs for name in ("coco_r50", "coco_r50_tta", "coco_r101_dcn")},
    **{f"moved/{setting}": moved for setting in ("data.pad_to=bucket", "dtype=bfloat16")},
}


def work_folder():
    """Weights and outputs, kept for the parts that come after; a few hundred megabytes."""
    folder = pathlib.Path(tempfile.gettempdir()) / f"htd_fidelity_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def measure(part):
    """Measures one part in this process and records it."""
    import jax
    start = time.monotonic()
    figures = PARTS[part](part.partition("/")[2])
    finite = lambda bound: bound if math.isfinite(bound) else None  # JSON has no infinity
    rows = [(f.name, f.value, finite(f.bound), f.least) for f in figures]
    record = dict(figures=rows, seconds=round(time.monotonic() - start), commit=commit(),
                  machine=machine(), versions=f"JAX {jax.__version__}, Python {sys.version.split()[0]}")
    records = json.loads(RECORDS.read_text()) if RECORDS.is_file() else {}
    RECORDS.write_text(json.dumps(records | {part: record}, indent=1) + "\n")


def commit():
    """The commit measured, with a + where htd_jax differs from it."""
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "htd_jax", "configs") else "")


def machine():
    import jax
    device = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--write", action="store_true", help="write the document alone")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    if arguments.measure:
        return measure(arguments.parts[0])
    for part in [] if arguments.write else arguments.parts or PARTS:
        print(f"measuring {part}", flush=True)
        subprocess.run([sys.executable, __file__, "--measure", part], cwd=ROOT, check=True)
    import fidelity_document
    records = json.loads(RECORDS.read_text())
    ordered = {part: records[part] for part in PARTS if part in records}
    DOCUMENT.write_text(fidelity_document.text(ordered, [part for part in PARTS if part not in records]))
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
