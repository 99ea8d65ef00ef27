"""Training on a Ray cluster: configuration, the loop, checkpoints, a run's folder."""
