"""ViMoE: small Vietnamese vision-language models, dense and mixture-of-experts, in JAX."""

__version__ = "0.1.0"
