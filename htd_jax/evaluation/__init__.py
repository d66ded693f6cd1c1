"""Running a detector over a data set, scoring it as COCO does, and showing what it found."""
