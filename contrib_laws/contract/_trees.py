"""Parameters for laws that only trace: nothing is computed, so any tree will do."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import numpy as np

from .._strategies import DTYPES, structures
from .._subject import Subject
from ._training import parameters, waves


# The fewest numbers; the fewest with two dtypes; two leaves of different rank, because
# some transforms treat vectors differently; and every kind of leaf.
ONE = np.ones(1, np.float32)
TWO = {"a": ONE, "b": ONE.astype("bfloat16")}
MATRIX = {"a": ONE, "b": ONE[None]}
MANY = parameters() | {
    name: waves((3, 2), name)
    for name in ("bfloat16", "float16", "complex64", "float64", "complex128")
}


def model() -> eqx.nn.MLP:
    """A raw model, with leaves that are not parameters."""
    return eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))


def first_trees(subject: Subject) -> Iterator[Any]:
    """The trees that are always tried, the simplest first."""
    yield from (ONE, TWO, MANY, {"none": None})
    if subject.is_ours:  # Optax does not promise to accept raw models.
        yield model()


def drawn_trees(subject: Subject) -> st.SearchStrategy[Any]:
    """Trees of any dtypes, filled with ones."""

    def filled(structure: Any) -> Any:
        return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), structure)

    of_dtypes = [structures(*names, modules=False) for names in DTYPES.values()]
    # `None` alone means that no parameters were given.
    return st.one_of(of_dtypes).map(filled).filter(lambda tree: tree is not None)
