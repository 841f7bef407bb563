"""Gradients of single examples that are hard to clip."""

import itertools as it
from collections.abc import Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


DTYPES = ("float32", "bfloat16", "float16")

Layout: TypeAlias = dict[str, tuple[tuple[int, ...], str]]

# Examples that are clipped together, with one bound.
ROWS = 16

# Layouts take turns. Layouts of 1e5 entries are rare, because they take most time.
LAYOUTS: list[Layout] = [
    *({"x": ((n,), dtype)} for n in (1, 2, 10, 100, 1000, 10_000) for dtype in DTYPES),
    *(
        {"w": ((30, 20), dtype), "b": ((20,), dtype), "s": ((), dtype)}
        for dtype in DTYPES
    ),
    {"x": ((200,), "float32"), "y": ((50, 3), "bfloat16"), "z": ((7,), "float16")},
    {"x": ((100,), "complex64"), "y": ((13,), "float32")},
    {"x": ((3, 7), "complex64")},
]
LONG: list[Layout] = [{"x": ((100_000,), dtype)} for dtype in DTYPES]
CYCLE = [*LAYOUTS, LONG[0], *LAYOUTS, LONG[1], *LAYOUTS, LONG[2]]

BOUNDS = (1e-30, 1e20)
MAGNITUDES = {"float16": (1e-7, 6e4)}
WIDEST = (1e-37, 1e37)

EPS = 2.0**-23


def groups(inputs: int, seed: int) -> Iterator[tuple[PyTree, float]]:
    """Groups of rows of one layout, each with the bound to clip it to.

    There are at least `inputs` rows in all. The bound is a number of float32: anywhere,
    near the norms, or within some units in the last place of them.
    """
    rng = np.random.default_rng(seed)
    for layout in it.islice(it.cycle(CYCLE), -(-inputs // ROWS)):
        kind = (_anywhere, _near, _equal)[rng.integers(3)]
        rows, bound = kind(rng, layout)
        yield rows, float(np.float32(bound))


def norms(rows: PyTree) -> np.ndarray:
    """The norm of each row in float64."""
    squares: list[np.ndarray] = []
    for leaf in jax.tree.leaves(rows):
        x = _parts(np.asarray(leaf)).astype(np.float64)
        squares.append(np.einsum("ij,ij->i", x, x))
    return np.sqrt(np.sum(squares, axis=0))


def _parts(x: np.ndarray) -> np.ndarray:
    """The coordinates of each row; real and imaginary parts are two coordinates."""
    x = x.reshape(len(x), -1)
    return x.view(np.real(x).dtype) if np.iscomplexobj(x) else x


def _anywhere(rng: np.random.Generator, layout: Layout) -> tuple[PyTree, float]:
    magnitudes = _log_uniform(rng, *_range(layout, WIDEST), (ROWS, 1))
    rows = _cast(magnitudes * _profiles(rng, _size(layout)), layout)
    return rows, float(_log_uniform(rng, *BOUNDS, ()))


def _near(rng: np.random.Generator, layout: Layout) -> tuple[PyTree, float]:
    low, high = _range(layout, BOUNDS)
    bound = np.float32(_log_uniform(rng, low, high, ()))
    profiles = _profiles(rng, _size(layout))
    factor = np.where(
        rng.random(ROWS) < 0.5,
        rng.uniform(0.5, 2, ROWS),
        1 + EPS * rng.integers(-8, 9, ROWS),
    )
    unit = factor * bound / np.linalg.norm(profiles, axis=1)
    return _cast(np.clip(unit, low, high)[:, None] * profiles, layout), float(bound)


def _equal(rng: np.random.Generator, layout: Layout) -> tuple[PyTree, float]:
    """All rows have the same norm, with their entries in another order."""
    low, high = _range(layout, (BOUNDS[0], BOUNDS[1] / 1e3))
    one = rng.choice(_profiles(rng, _size(layout)))
    rows = _cast(np.tile(_log_uniform(rng, low, high, ()) * one, (ROWS, 1)), layout)

    def shuffled(x: np.ndarray) -> np.ndarray:
        signs = rng.choice([-1, 1], (ROWS, x[0].size)).astype(x.dtype)
        return (rng.permuted(x.reshape(ROWS, -1), axis=1) * signs).reshape(x.shape)

    rows = jax.tree.map(shuffled, rows)
    return rows, float(norms(rows)[0] * (1 + EPS * rng.integers(-8, 9)))


def _profiles(rng: np.random.Generator, n: int) -> np.ndarray:
    """Rows of `n` coordinates, the largest about 1; four kinds in equal numbers."""
    number = ROWS // 4
    spread = 10 ** -rng.uniform(0, 20, (number, 1))
    normal = rng.standard_normal((number, n))
    signs = rng.choice([-1.0, 1.0], (number, n))
    is_largest = np.arange(n) == rng.integers(n, size=(number, 1))
    return np.concatenate(
        [
            np.ones((number, n)),
            np.where(is_largest, 1, spread) * signs,
            spread ** np.linspace(0, 1, n) * signs,
            normal / np.max(np.abs(normal), axis=1, keepdims=True),
        ]
    )


def _cast(coordinates: np.ndarray, layout: Layout) -> PyTree:
    rows, start = {}, 0
    for name, (shape, dtype) in layout.items():
        size = _size({name: (shape, dtype)})
        x = coordinates[:, start : start + size]
        start += size
        if dtype == "complex64":
            x = np.ascontiguousarray(x).view(np.complex128)
        rows[name] = x.astype(jnp.dtype(dtype)).reshape(ROWS, *shape)
    return rows


def _size(layout: Layout) -> int:
    """The number of coordinates of a row."""
    return sum(
        int(np.prod(shape)) * (2 if dtype == "complex64" else 1)
        for shape, dtype in layout.values()
    )


def _range(layout: Layout, within: tuple[float, float]) -> tuple[float, float]:
    """The magnitudes in an interval that all leaves can have."""
    lows, highs = zip(
        within, *(MAGNITUDES.get(dtype, WIDEST) for _, dtype in layout.values())
    )
    return max(lows), min(highs)


def _log_uniform(
    rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]
) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), shape))
