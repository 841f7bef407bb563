"""Parameters to measure on."""

import math
from typing import TypeAlias

import jax
from jax.typing import DTypeLike
from jaxtyping import Array


Shapes: TypeAlias = dict[str, tuple[int, ...]]


def shapes(name: str, size: int) -> Shapes:
    """The shapes of a named tree: `one` leaf of `size` entries, `gpt2`, `leaves:N`.

    **Raises:** `ValueError` for other names.
    """
    kind, _, number = name.partition(":")
    if name == "one":
        return {"x": (size,)}
    if name == "gpt2":
        return _gpt2()
    if kind == "leaves" and number.isdecimal() and int(number) > 0:
        return {f"x{i:04}": (64, 16) for i in range(int(number))}
    raise ValueError(f"unknown tree {name!r}; choose from: one, gpt2, leaves:N")


def _gpt2(layers: int = 12, width: int = 768) -> Shapes:
    """GPT-2 small: 124 million parameters in 148 leaves."""
    layer: Shapes = {
        "norm1/scale": (width,),
        "norm1/bias": (width,),
        "attention/weight": (width, 3 * width),
        "attention/bias": (3 * width,),
        "projection/weight": (width, width),
        "projection/bias": (width,),
        "norm2/scale": (width,),
        "norm2/bias": (width,),
        "up/weight": (width, 4 * width),
        "up/bias": (4 * width,),
        "down/weight": (4 * width, width),
        "down/bias": (width,),
    }
    stack = {f"{i}/{leaf}": s for i in range(layers) for leaf, s in layer.items()}
    ends: Shapes = {
        "tokens": (50257, width),
        "positions": (1024, width),
        "norm/scale": (width,),
        "norm/bias": (width,),
    }
    return stack | ends


def number_of_entries(shapes: Shapes) -> int:
    """The number of parameters of a tree of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def abstract(shapes: Shapes, dtype: DTypeLike) -> dict[str, jax.ShapeDtypeStruct]:
    """A tree of shapes and dtypes, which can be compiled for and takes no memory."""
    return {k: jax.ShapeDtypeStruct(shape, dtype) for k, shape in shapes.items()}


def random(shapes: Shapes, dtype: DTypeLike, seed: int) -> dict[str, Array]:
    """A tree of normal numbers with standard deviation 0.02."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: (0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
