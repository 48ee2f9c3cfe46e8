"""Pictures and tokens to logits: tower, connector, decoder."""
