"""Questions to answers: decoding, compiled once per shape."""
