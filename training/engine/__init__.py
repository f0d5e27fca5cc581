"""What trains: the trainer, its optimiser, its processes, its signals."""
