"""The problems that symmetries are tried on, and the trees that hold their vectors."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from contrib_core import Tree


AnyArray: TypeAlias = Array | np.ndarray


@dataclass(frozen=True)
class Layout:
    """How a vector of real coordinates is laid out as a tree.

    **Arguments:**

    - `shapes`: the shape of each leaf by name. A lone array has the name "".
    - `is_complex`: whether leaves are complex. If so, real parts come first.
    """

    shapes: dict[str, tuple[int, ...]]
    is_complex: bool = False

    def __hash__(self) -> int:
        return hash((tuple(self.shapes.items()), self.is_complex))

    @property
    def size(self) -> int:
        """The number of real coordinates."""
        entries = sum(math.prod(shape) for shape in self.shapes.values())
        return entries * (2 if self.is_complex else 1)

    def tree(self, vector: Float[AnyArray, " size"]) -> Tree:
        """The tree whose coordinates are `vector`."""
        if self.is_complex:
            half = self.size // 2
            vector = lax.complex(vector[:half], vector[half:])
        leaves, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            leaves[name] = vector[start:stop].reshape(shape)
            start = stop
        return leaves.get("", leaves)

    def vector(self, tree: Tree) -> Float[Array, " size"]:
        """The coordinates of `tree`."""
        leaves = {"": tree} if "" in self.shapes else tree
        flat = jnp.concatenate([jnp.ravel(leaves[name]) for name in self.shapes])
        if self.is_complex:
            return jnp.concatenate([flat.real, flat.imag])
        return flat

    def code(self, vector: str) -> str:
        """Code for the tree whose coordinates are in the array named `vector`."""
        half = self.size // 2
        if self.is_complex:
            vector = f"jax.lax.complex({vector}[:{half}], {vector}[{half}:])"
        if "" in self.shapes:
            return vector
        parts, start = [], 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            parts.append(f'"{name}": {vector}[{start}:{stop}].reshape({shape})')
            start = stop
        return "{" + ", ".join(parts) + "}"

    def vector_code(self, tree: str) -> str:
        """Code for the coordinates of the tree named `tree`."""
        if "" in self.shapes:
            return tree
        leaves = [f'{tree}["{name}"]' for name in self.shapes]
        if self.is_complex:
            leaves = [f"{leaf}.{part}" for part in ("real", "imag") for leaf in leaves]
        return "jnp.concatenate([" + ", ".join(f"{x}.ravel()" for x in leaves) + "])"


# The fewest trees in which each law can fail, since each is one more compilation: a
# lone array; the same coordinates in two leaves, which have more axes than the array;
# in one complex leaf; and in leaves of different shapes.
ARRAY = Layout({"": (2,)})
LEAVES = Layout({"a": (1, 1), "b": (1, 1)})
COMPLEX = Layout({"z": (1, 1)}, is_complex=True)
MIXED = Layout({"a": (), "b": (2,), "c": (3, 1)})

STEPS = 24
"""The number of steps of the problems that laws draw."""


@dataclass(frozen=True)
class Problem:
    r"""A random history of gradients, plus a bowl.

    At step $t$ the loss is $f_t(x) = v_t + \langle g_t, x - x_0 \rangle +
    \tfrac{h}{2} \|x - x_0\|^2$. With $h = 0$, the gradients do not depend on $x$.

    **Arguments:**

    - `start`: $x_0$, of shape `(n,)`.
    - `grads`: $g_t$, of shape `(steps, n)`.
    - `values`: $v_t$, of shape `(steps,)`.
    - `curvature`: $h \ge 0$.
    """

    # Arrays of NumPy, or of JAX inside a traced program.
    start: Float[AnyArray, " n"]
    grads: Float[AnyArray, "steps n"]
    values: Float[AnyArray, " steps"]
    curvature: float | Float[AnyArray, ""] = 0.0

    def grad(
        self, x: Float[AnyArray, " n"], step: int | Int[AnyArray, ""]
    ) -> Float[AnyArray, " n"]:
        """The gradient at `x`."""
        return self.grads[step] + self.curvature * (x - self.start)

    def value(
        self, x: Float[AnyArray, " n"], step: int | Int[AnyArray, ""]
    ) -> Float[AnyArray, ""]:
        """The loss at `x`."""
        d = x - self.start
        return self.values[step] + self.grads[step] @ d + self.curvature / 2 * (d @ d)


def coordinates(size: int) -> st.SearchStrategy[np.ndarray]:
    """Vectors of whole numbers or sixteenths between ±4, so that sums and products of a
    few are exact in double precision. They shrink to 0."""
    whole = st.integers(-4, 4).map(float)
    sixteenth = st.integers(-64, 64).map(lambda k: k / 16)
    entries = st.lists(whole | sixteenth, min_size=size, max_size=size)
    return entries.map(np.array)


def problems(size: int, steps: int = STEPS) -> st.SearchStrategy[Problem]:
    """Problems of `size` coordinates with `steps` gradients. Some gradients are zero,
    some repeat, and some are a thousand times as large; zeros follow the drawn ones.

    They shrink to zeros, and to fewer gradients.
    """

    def history(rows: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        grads = np.repeat(rows, repeats[: len(rows)], axis=0)[:steps]
        return np.concatenate([grads, np.zeros((steps - len(grads), size))])

    spikes = coordinates(size).map(lambda g: 1024 * g)
    gradient = coordinates(size) | st.just(np.zeros(size)) | spikes
    most = max(1, steps // 4)
    same = coordinates(1).map(lambda v: np.resize(np.abs(v), steps))
    varied = coordinates(most).map(lambda v: np.resize(np.abs(v), steps))
    repeats = st.lists(st.sampled_from([1, 1, 4]), min_size=most, max_size=most)
    return st.builds(
        Problem,
        coordinates(size),
        st.builds(
            history,
            st.lists(gradient, min_size=1, max_size=most).map(np.array),
            repeats.map(np.array),
        ),
        same | varied,
        st.sampled_from([0.0, 0.5, 1.0]),
    )


def array_code(x: AnyArray) -> str:
    """Code for an array of a few numbers."""
    whole = np.array_equal(x, np.round(x)) and np.max(np.abs(x), initial=0) < 1e15
    if not whole:
        return f"np.array({x.tolist()!r})"
    return f"np.array({x.astype(int).tolist()!r}, float)"


@dataclass(frozen=True)
class Change:
    r"""A change of coordinates and units of a problem: $f'(A x + a) = c f(x)$.

    $A = \lambda Q$ with $Q$ orthogonal. Gradients become $c A^{-\top} g$, and an
    equivariant rule makes the updates $A u$.

    **Arguments:**

    - `shift`: $a$; `None` is 0.
    - `rotation`: $Q$; `None` is the identity.
    - `unit`: $\lambda$, the factor of the parameters.
    - `loss`: $c$, the factor of the loss.
    """

    shift: np.ndarray | None = None
    rotation: np.ndarray | None = None
    unit: float = 1.0
    loss: float = 1.0

    def _rotate(self, x: AnyArray) -> AnyArray:
        return x if self.rotation is None else x @ self.rotation.T

    def problem(self, p: Problem) -> Problem:
        """The changed problem."""
        start = self.unit * self._rotate(p.start)
        return Problem(
            start if self.shift is None else start + self.shift,
            self.loss / self.unit * self._rotate(p.grads),
            self.loss * p.values,
            self.loss / self.unit**2 * p.curvature,
        )

    def updates(
        self, updates: Float[AnyArray, "steps n"]
    ) -> Float[AnyArray, "steps n"]:
        """The changed updates."""
        return self.unit * self._rotate(updates)

    def code(self, update: str) -> str:
        """Code for the changed update, given the name of an array."""
        if self.rotation is not None:
            update = f"{array_code(self.rotation)} @ {update}"
        return update if self.unit == 1 else f"{self.unit} * {update}"


@dataclass(frozen=True)
class Case:
    """A problem, the tree that holds it, and how a symmetry changes both."""

    layout: Layout
    problem: Problem
    change: Change = Change()
    other: Layout | None = None  # `None` is the same tree.
