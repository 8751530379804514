"""Training: the loop, evaluation, checkpoints, a run's folder."""
