"""Tokens to tokens through experts; knows nothing of vision or language."""
