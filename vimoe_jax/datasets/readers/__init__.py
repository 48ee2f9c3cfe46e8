"""A reader for each published dataset's files."""
