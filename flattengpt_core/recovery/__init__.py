"""Training after compression: a run's state in a folder, its losses, its trainer, and how many devices share it."""
