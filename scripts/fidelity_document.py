"""docs/fidelity.md out of what `fidelity.py` recorded."""

INTRODUCTION = """\
# Fidelity

How far this project's figures are from those of the published PyTorch implementation, for the same weights and inputs.
The original's were computed in float32 on a CPU with mmcv 1.7.2's compiled operators (torch 2.13). Every weight is
drawn from its checkpoint name, so a wrongly translated tensor shows as a wrong figure.

`python scripts/fidelity.py` writes this page; only the explanations are typed by hand. The bounds are those of the
tests (`tests/test_golden_*.py`); a figure beyond its bound would stand here in bold.
"""

SECTIONS = {
    "infer": ("One image, part by part", """\
Error: the largest difference over the root mean square of the original's array. The maps are computed from the image,
everything after the proposals from the *original's* proposals, because sorting and NMS may swap two that are nearly
tied. *Noise floor: two correct float32 programs differ by about 1e-5, boxes by 5e-4 pixel, scores by 2e-6. The
original's soft-NMS differs from an exact NMS for each class, which this project has, by up to 4e-4 in scores, because
it separates classes by adding large numbers to float32 boxes.*
"""),
    "train": ("One batch: losses, gradients, samples", """\
Two images of different size, `sampling = first`, from the original's proposals. Losses: relative error (the accuracies
`acc`: difference in percent). Gradients: the largest relative error, over all trained parameters, of the norm, and of
the difference's norm as estimated from the recorded entries. *Noise floor: losses 5e-7, gradients 2e-4.* The largest
errors are those of BA's attention, whose gradients are differences between levels that nearly cancel: a change of the
weights by 1e-6 moves their norms by 1e-3 to 2e-3 for R101-DCN. Frozen parameters have no gradient, and those of
PGraph's layers for levels without RoIs are exactly zero where the original has none. One parameter is excluded, since
its gradient is zero in theory: `roi_head.bbox_roi_extractor.1.conv2.bias`. `tests/test_golden_train.py` tests that the
targets are equal as well.
"""),
    "trajectory": ("Steps of SGD", """\
The largest relative error of a loss, by the program's own training step and from its own proposals; `photographs`: two
of COCO's images, through the data pipeline too. Steps amplify rounding. *Noise floor, and from it the bound of every
step after the first: ten times what multiplying every weight by 1 + 1e-6 n, n normal, moves the losses of that step.*
"""),
    "photographs": ("Detections on photographs", """\
COCO's photographs at 1333x800 through `eval.py --checkpoint FILE.pth`, from JPEG to `detections.json`, `exact` padding;
`tta`: two scales and flip. Matched: greedily, by class and IoU > .95. Scores: the largest difference among the matched.
With random weights many scores are nearly tied: *the original's figures ask for 98 %.*
"""),
    "moved": ("What moves detections on purpose", """\
The four photographs of `coco_r50` again, with one key changed, against the original's detections. `bucket` padding
leaves few static shapes to compile. What lies beyond the original's own padding is set to zero before every
convolution, and excluded from anchors, pooling and RoIs, so the original's figures hold (`tests/test_model_edges.py`).
bfloat16 is what accelerators train in, and is not the original's arithmetic: random weights, whose scores are nearly
tied, show it at its worst, and there is no bound.
"""),
}

DIFFERENCES = """\
## What differs on purpose

| | the original | here |
|---|---|---|
| images on each device in training | at most two | any number |
| exactly one RoI; one or no positive in a batch; no proposal | crashes | finite losses and gradients (`tests/test_model_edges.py`) |
| normalisation of losses | on each device, over its own two images | over the whole batch: one device and many give the same figures |
| NMS for each class and level | boxes are separated by adding large numbers, which rounds their IoU | exact |
| BA at test time | regresses all RoIs | regresses those whose score can be output; the detections are the same |
| frozen batch norm | after the convolution | on a CPU too; within its kernel on a TPU or GPU: the same up to rounding, but for gradients of deformable offsets, which jump where a sample crosses a cell's edge (up to 4e-3 of their norm in R101-DCN's batch below) |
| RoIs pooled on P2, PGraph's two layers | twice | once (W(x + g) = W x + W g); the same up to rounding |
| images and levels | loops in Python | one compiled program |
| EXIF orientation | always applied when decoding | the orientation whose width and height the annotation states |
| padding | the next multiple of 32 | the same under `data.pad_to = exact`; few static shapes under `bucket`, the default, with the same figures |
| scale in multi-scale training | drawn for each image | drawn for each batch |
| the shipped `htd_r101` configuration | trains multi-scale by mistake, as its author confirmed | one scale; multi-scale is `htd_r101_ms` |
"""  # noqa: E501


def text(records, missing):
    """The document, from {part: record} and the parts that were not measured."""
    sections = [section(name, {part.partition("/")[2]: record for part, record in records.items()
                               if part.startswith(f"{name}/")}) for name in SECTIONS]
    return "\n".join([INTRODUCTION, *filter(None, sections), DIFFERENCES, how(records, missing)])


def section(name, records):
    """One table: a row a figure, a column a configuration."""
    if not records:
        return ""
    title, words = SECTIONS[name]
    rows = {}
    for column, record in records.items():
        for figure, *values in record["figures"]:
            rows.setdefault(figure, {})[column] = values
    lines = [f"| | {' | '.join(f'`{column}`' for column in records)} | bound |", "|---|" + "---|" * (len(records) + 1)]
    for figure, cells in rows.items():
        lines.append(f"| {figure} | {' | '.join(cell(cells.get(column)) for column in records)} | {bounds(cells)} |")
    return f"## {title}\n\n{words}\n" + "\n".join(lines) + "\n"


def cell(values):
    if values is None:
        return ""
    value, bound, least = values
    shown = f"{100 * value:.4g} %" if least else f"{value:.1e}" if value else "0"
    holds = bound is None or (value >= bound if least else value <= bound)
    return shown if holds else f"**{shown}**"


def bounds(cells):
    """The bound, or each column's where they differ."""
    shown = [(f"at least {100 * bound:g} %" if least else f"{bound:.1e}") if bound else "none"
             for _, bound, least in cells.values()]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def how(records, missing):
    """A row for each part: what it was measured on; and what was not."""
    lines = ["## How it was measured", "",
             "Commit: that of the measured code; a + marks uncommitted changes in `htd_jax` or `configs`.", "",
             "| `python scripts/fidelity.py` | commit | machine | versions | minutes |", "|---|---|---|---|---|"]
    lines += [f"| `{part}` | {r['commit']} | {r['machine']} | {r['versions']} | {r['seconds'] / 60:.1f} |"
              for part, r in records.items()]
    lines += ["", f"Not measured: {', '.join(f'`{part}`' for part in missing)}."] if missing else []
    return "\n".join(lines) + "\n"
