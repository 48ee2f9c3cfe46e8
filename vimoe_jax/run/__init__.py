"""A run on disk and on a mesh: workdir, state, checkpoints, log."""
