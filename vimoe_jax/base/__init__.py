"""What every room uses: errors, schemas, commands, files, progress, metrics."""
