"""Training on Lightning's Trainer, the run folder, resuming."""
