"""Questions to answers: decoding, and what is asked again without compiling."""
