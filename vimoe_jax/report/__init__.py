"""A run's report: one HTML page, and pictures for documents."""
