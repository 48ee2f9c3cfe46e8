"""From a record on disk to a batch on the mesh."""
