"""Schemas: what is wrong is refused, whoever makes the object."""

import pickle

import pytest

from vimoe_jax import config
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import FieldError, at_least, checked, defaults, field, one_of, resolve


@checked
class Inner:
    """Something small."""

    size: int = field(2, "A size.", at_least(1))
    rate: float = field(0.5, "A rate.")
    name: str | tuple[int, ...] = field("a", "A name, or numbers.")
    counts: dict[str, int] = field({}, "Counts by name.")

    def conflicts(self):
        if self.size > 5 and self.rate > 5:
            yield f"rate: {self.rate} is too much for size = {self.size}"


@checked
class Outer:
    """Something that holds it."""

    word: str = field("one", "A word.", one_of("one", "two"))
    inner: Inner = field(Inner(), "A group.")


WRONG = [
    ({"size": 0}, "size: must be at least 1, not 0"),
    ({"size": "2"}, "size: must be int, not '2'"),
    ({"size": True}, "size: must be int, not True"),
    ({"rate": "fast"}, "rate: must be float, not 'fast'"),
    ({"name": (1, "b")}, "name: must be str or tuple[int, ...], not (1, 'b')"),
    ({"counts": {"a": "x"}}, "counts.a: must be int, not 'x'"),
    ({"sise": 3}, "sise: no such field (did you mean 'size'?)"),
    ({"size": 6, "rate": 7.0}, "rate: 7.0 is too much for size = 6"),
]


@pytest.mark.parametrize(("values", "complaint"), WRONG, ids=str)
def test_the_same_complaint_in_python_and_in_a_configuration(values, complaint):
    with pytest.raises(ValueError) as e:
        Inner(**values)
    assert str(e.value) == f"Inner.{complaint}"
    with pytest.raises(UserError) as e:
        resolve(Outer, {"inner": values})
    assert str(e.value) == f"config.inner.{complaint}"


def test_values_take_their_fields_types():
    made = Inner(3, 2, name=[1, 2], counts={1: 2})
    assert made == resolve(Outer, {"inner": vars(made)}).inner
    assert repr(made.rate) == "2.0" and made.name == (1, 2) and made.counts == {"1": 2}


def test_groups_hold_what_they_should():
    with pytest.raises(ValueError, match=r"Outer\.inner: must be Inner, not 3"):
        Outer(inner=3)
    with pytest.raises(UserError, match=r"config\.inner: a group of fields, not 3"):
        resolve(Outer, {"inner": 3})
    with pytest.raises(UserError, match=r"config\.wrd: no such field \(did you mean 'word'\?\)"):
        resolve(Outer, {"wrd": "one"})


def test_too_many_arguments_are_pythons_own_error():
    with pytest.raises(TypeError, match="positional"):
        Outer("one", Inner(), 3)


def test_defaults_are_checked_and_can_be_resolved():
    assert resolve(Outer, defaults(Outer).to_dict()) == Outer()

    @checked
    class Wrong:
        """Its default is out of range."""

        size: int = field(0, "A size.", at_least(1))

    with pytest.raises(FieldError, match=r"Wrong\.size: must be at least 1"):
        Wrong()


def test_an_error_survives_another_process():
    error = pickle.loads(pickle.dumps(FieldError("Inner", "size: must be int")))
    assert (str(error), error.complaint) == ("Inner.size: must be int", "size: must be int")


@pytest.mark.parametrize(
    ("part", "values", "complaint"),
    [
        (config.Vision, {"width": 0}, "Vision.width: must be at least 1"),
        (config.Decoder, {"head_dim": 1}, "Decoder.head_dim: must be at least 2"),
        (config.Optim, {"name": "adam_w"}, "Optim.name: must be one of"),
        (config.Train, {"steps": "10"}, "Train.steps: must be int, not '10'"),
        (config.Model, {"dtype": "fp32"}, "Model.dtype: must be one of"),
        (config.Mesh, {"dta": 2}, r"Mesh.dta: no such field \(did you mean 'data'\?\)"),
    ],
    ids=str,
)
def test_parts_of_a_configuration_defend_themselves(part, values, complaint):
    with pytest.raises(ValueError, match=complaint):
        part(**values)
