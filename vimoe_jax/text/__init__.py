"""Vietnamese text: normal forms, tones, numerals, wordings, tokenizers."""
