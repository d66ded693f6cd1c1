"""Training: the learning rate, the optimiser, the sharded step, checkpoints, logs and the loop that joins them."""
