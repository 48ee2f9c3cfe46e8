"""Decoding, scores, the report."""
