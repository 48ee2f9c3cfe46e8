"""What every room may use: errors, schemas, commands, files, progress, metrics."""
