"""Vietnamese text: normal forms, tone marks, numerals, wordings of prompts, tokenizers."""
