"""What tests of readers compare."""

from vimoe_jax.datasets.annotations import Malformed


def qa(rows):
    """Picture, question and answers of each annotation."""
    return [(a.picture.id, a.qa.question, *a.qa.answers) for a in rows]


def reasons(rows):
    """Why annotations are malformed."""
    return [a.reason for a in rows if isinstance(a, Malformed)]
