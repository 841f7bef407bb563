"""The perceptron whose gradients are clipped, and its examples."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .. import trees


INPUTS, CLASSES = 784, 10


def shapes(size: int) -> trees.Shapes:
    """The shapes of the parameters; the first hidden layer has `size` units."""
    widths = (INPUTS, size, size // 2, CLASSES)
    pairs = list(zip(widths, widths[1:]))
    weights = {f"weight{i}": (fan_in, out) for i, (fan_in, out) in enumerate(pairs)}
    return weights | {f"bias{i}": (out,) for i, (_, out) in enumerate(pairs)}


def batch_like(number: int) -> PyTree:
    """The shapes and dtypes of a batch of `number` examples."""
    return {
        "image": jax.ShapeDtypeStruct((number, INPUTS), jnp.float32),
        "label": jax.ShapeDtypeStruct((number,), jnp.int32),
    }


def random(shapes: trees.Shapes, number: int) -> tuple[PyTree, PyTree]:
    """Parameters, and a batch of `number` examples."""
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    params = {name: 0.02 * normal(shape) for name, shape in shapes.items()}
    batch = {
        "image": normal((number, INPUTS)),
        "label": jnp.asarray(rng.integers(CLASSES, size=number, dtype=np.int32)),
    }
    return params, batch


def loss(params: PyTree, example: PyTree) -> Array:
    """The cross-entropy of one example."""
    x, last = example["image"], len(params) // 2 - 1
    for i in range(last + 1):
        x = x @ params[f"weight{i}"] + params[f"bias{i}"]
        x = jax.nn.relu(x) if i < last else jax.nn.log_softmax(x)
    return -x[example["label"]]
