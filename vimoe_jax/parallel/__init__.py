"""The mesh, the table from logical axes to mesh axes, processes, devices."""
