"""The checker of shapes, dtypes and types that all tests run under.

`jaxtyping`'s import hook decorates every function of the package with it: an argument or a result
that its annotation does not describe is an error. Production runs without it.
"""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int is a fine float, as PEP 484 has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install():
    """Before anything of the package is imported."""
    install_import_hook("vimoe_jax", "tests.typed.check")
