"""Data sets and the input pipeline. `open_dataset` is the way in; everything here stays on the host."""
