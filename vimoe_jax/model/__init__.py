"""Image and tokens to logits."""
