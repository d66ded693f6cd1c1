"""Running a detector over a dataset, scoring it as COCO does, and drawing its detections."""
