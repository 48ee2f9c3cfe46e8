"""A dense checkpoint to a mixture of experts."""
