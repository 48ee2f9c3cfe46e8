"""Which profile and tokenisation a split is scored under, and that its scores say so."""

import pytest

from vimoe_jax import datasets
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import resolve
from vimoe_jax.config.evaluate import Eval
from vimoe_jax.config.mixture import Component
from vimoe_jax.data.sources import EvalSplit
from vimoe_jax.evaluate.run import scoring
from vimoe_jax.text.normalize import PROFILES


def split(name):
    return EvalSplit(Component(name), "test", "test")


def test_auto_is_the_datasets_own():
    for name in datasets.NAMES:
        own = datasets.get(name).profile
        assert own in PROFILES
        assert scoring(Eval(), split(name))["profile"] == own
    for name in ("viscenes", "jsonl"):
        assert scoring(Eval(), split(name))["profile"] == "plain"


def test_a_named_profile_is_taken_for_all():
    c = resolve(Eval, {"profile": "short"})
    for name in ("viscenes", "vivqa"):
        assert scoring(c, split(name)) == {
            "profile": "short",
            "comparison": "NFC, lower case, final full stop dropped, tone marks in the old place, "
            "numbers as words",
            "tokenization": "syllable",
            "tokens": "syllables, split at white space, punctuation dropped",
        }


@pytest.mark.parametrize("field", ["profile", "tokenization"])
def test_names_that_do_not_exist(field):
    with pytest.raises(UserError, match=rf"config\.{field}: must be one of .*, not 'words'"):
        resolve(Eval, {field: "words"})
