"""What operators compute, said once more in plain loops of NumPy, in the dtype of the arrays given.

Nothing here is shared with the library: no formula that factors, no blocks, no masks. Boxes are x1 y1 x2 y2.
"""
import math

import numpy as np

MAX_LOG_RATIO = math.log(1000 / 16)
BINS = 7


# ---- boxes

def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a, b, floor=None):
    """Of two boxes; `floor` is the least union, None divides plainly (0/0 is nan)."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), a.dtype.type(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), a.dtype.type(0))
    union = area(a) + area(b) - width * height
    with np.errstate(invalid="ignore", divide="ignore"):
        return width * height / (union if floor is None else max(union, a.dtype.type(floor)))


def encode(box, target, stds):
    """The delta from `box` to `target`, float64."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = map(np.float64, (box, target))
    w, h = x2 - x1, y2 - y1
    delta = [((u1 + u2) - (x1 + x2)) / 2 / w, ((v1 + v2) - (y1 + y2)) / 2 / h,
             math.log((u2 - u1) / w), math.log((v2 - v1) / h)]
    return np.array(delta) / stds


def decode(box, delta, stds, size):
    """`box` moved by `delta` and cut to an image of `size` (height, width), float64."""
    x1, y1, x2, y2 = np.float64(box)
    dx, dy, dw, dh = np.float64(delta) * stds
    w, h = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
    w, h = (side * math.exp(min(max(d, -MAX_LOG_RATIO), MAX_LOG_RATIO)) for side, d in ((w, dw), (h, dh)))
    corners = (x - w / 2, size[1]), (y - h / 2, size[0]), (x + w / 2, size[1]), (y + h / 2, size[0])
    return np.array([min(max(value, 0), end) for value, end in corners])


# ---- suppression

def nms(boxes, scores, threshold, max_kept, groups=None):
    """Indices of the kept boxes by falling score, the first of equals first; a score of -inf is no box."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = (k for k in kept if groups is None or groups[k] == groups[i])
        if scores[i] > -np.inf and not any(iou(boxes[k], boxes[i]) > threshold for k in rivals):
            kept.append(i)
    return kept[:max_kept]


def soft_nms(boxes, scores, threshold, min_score, max_kept):
    """[(RoI, class, decayed score)] in the order picked, of `scores [N, K]`."""
    live = {(k, i): scores[i, k] for k in range(scores.shape[1]) for i in range(len(boxes)) if scores[i, k] > min_score}
    picked = []
    while live and len(picked) < max_kept:
        label, roi = max(live, key=lambda place: (live[place], -place[0], -place[1]))
        picked.append((roi, label, live.pop((label, roi))))
        for k, i in list(live):
            overlap = iou(boxes[roi], boxes[i])
            if k == label and overlap >= threshold:
                live[k, i] = live[k, i] * (scores.dtype.type(1) - overlap)
                if live[k, i] < min_score:
                    del live[k, i]
    return picked


# ---- matching and sampling

def assign_proposals(boxes, valid, truth, threshold):
    """-1 ignored, 0 background, k > 0 for box k - 1 of `truth`."""
    assigned = []
    for box, used in zip(boxes, valid):
        overlaps = [iou(box, other, 1e-6) for other in truth]
        best = int(np.argmax(overlaps)) if overlaps else 0
        assigned.append(-1 if not used else best + 1 if overlaps and overlaps[best] >= threshold else 0)
    return assigned


def assign_anchors(anchors, eligible, truth, positive, negative, rescue):
    """The same of anchors; each box of `truth` then takes all anchors that overlap it best."""
    assigned = []
    overlaps = [[iou(box, anchor, 1e-6) for box in truth] for anchor in anchors]
    for row, used in zip(overlaps, eligible):
        best = max(row, default=0)
        assigned.append(-1 if not used else row.index(best) + 1 if truth.size and best >= positive
                        else 0 if best < negative else -1)
    for g in range(len(truth)):
        best = max((row[g] for row, used in zip(overlaps, eligible) if used), default=-1)
        for a, row in enumerate(overlaps):
            if eligible[a] and best >= rescue and row[g] == best:
                assigned[a] = g + 1
    return assigned


def chosen(candidates, wanted, rule):
    """`wanted` of a list of `candidates`, or all where they are fewer."""
    number = min(len(candidates), wanted)
    places = range(number) if rule == "first" else (i * len(candidates) // number for i in range(number))
    return [candidates[place] for place in places]


# ---- RoIAlign

def bin_weights(start, end, cells):
    """Weights `[7, cells]` of an axis, sample by sample, and the least distance of a sample to where the map ends.

    At that end a sample's weight jumps to 0: what lies within rounding of it may fall to either side.
    """
    weights, distance = np.zeros((BINS, cells)), np.inf
    size = float(end - start)  # rounded as float32 rounds it, if that is what was given
    count = max(math.ceil(size / BINS), 0)
    for p in range(BINS if count else 0):
        samples = float(start) + (p + (np.arange(count) + .5) / count) * size / BINS
        distance = min(distance, np.abs(samples + 1).min(), np.abs(samples - cells).min())
        for at in np.clip(samples[(samples >= -1) & (samples <= cells)], 0, cells - 1):
            low = min(int(at), max(cells - 2, 0))
            weights[p, low] += (1 - (at - low)) / count
            if at > low:
                weights[p, low + 1] += (at - low) / count
    return weights, distance


def roi_align(features, roi, stride):
    """The crop `[7, 7, C]` of one RoI, float64, and its `distance` as above."""
    x1, y1, x2, y2 = roi / roi.dtype.type(stride) - roi.dtype.type(.5)
    rows, columns = bin_weights(y1, y2, features.shape[0]), bin_weights(x1, x2, features.shape[1])
    return np.einsum("ph,hwc,qw->pqc", rows[0], np.float64(features), columns[0]), min(rows[1], columns[1])


def roi_level(roi):
    """0 for P2 to 3 for P5."""
    size = math.sqrt(max(float(area(np.float64(roi))), 0))
    return 0 if size <= 0 else min(max(math.floor(math.log2(size / 56 + 1e-6)), 0), 3)


# ---- deformable convolution

def bilinear(features, y, x):
    """`features [H, W, C]` at a point; what lies beyond the map counts as 0."""
    height, width, channels = features.shape
    value = np.zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                value = value + (1 - abs(y - row)) * (1 - abs(x - column)) * features[row, column]
    return value


def deform_conv(features, offsets, kernel, stride=1, padding=1):
    """`[Ho, Wo, O]`, float64: every tap of `kernel [kh, kw, C, O]` at its place moved by `offsets [Ho, Wo, 2 taps]`."""
    rows, columns, _ = offsets.shape
    kh, kw, _, out = kernel.shape
    result = np.zeros((rows, columns, out))
    for y, x, tap in np.ndindex(rows, columns, kh * kw):
        dy, dx = np.float64(offsets[y, x, 2 * tap:2 * tap + 2])
        at = y * stride - padding + tap // kw + dy, x * stride - padding + tap % kw + dx
        result[y, x] += bilinear(np.float64(features), *at) @ np.float64(kernel[tap // kw, tap % kw])
    return result
