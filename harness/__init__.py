"""What surrounds the learning: flags, the run's folder, checkpoints, progress, processes."""
