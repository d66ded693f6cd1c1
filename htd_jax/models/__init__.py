"""The detector: Flax NNX modules and the two pure functions over them, `losses` and `detect`.

Axes, in this order wherever they meet:
  B images of a batch, N RoIs (proposals) or anchors, P slots of positives, G slots of ground truth, S slots of a
  sample, D slots of detections, H W cells of a map, K classes, K1 classes and the background, C channels, F features

Arrays:
  boxes, rois  float32 [..., 4], x1 y1 x2 y2 in pixels of the resized image
  deltas       float32 [..., 4], dx dy dw dh that move a box, in units of a stage's standard deviations
  size         int32 [..., 2], height and width of the resized image in pixels
  padded       int32 [..., 2], height and width that the image would have if padded as the original pads; arrays may
               have more, and what lies beyond is cleared where it would be seen. None: the arrays end there
  scale        float32 [..., 2], (sx, sy) = resized / original
  valid        bool, which slots are in use; the others mean nothing
  pyramid      maps [B, H, W, C] of the levels P2..P5 (strides 4..32), with P6 (stride 64) for RPN and SFA
  context      [B, C], the vector g of SFA
"""
