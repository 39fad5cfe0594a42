"""Training: losses per member, optimiser, checkpoints, and the folder that a run leaves behind."""
