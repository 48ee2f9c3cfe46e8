"""Grouped matrix products: rows sorted by expert, each times its own matrix."""
