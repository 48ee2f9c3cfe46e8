"""A dense checkpoint becomes a mixture of experts (Komatsuzaki et al. 2022 and what followed)."""
