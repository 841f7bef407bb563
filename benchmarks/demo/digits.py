"""A real task that needs no download: the handwritten digits of scikit-learn."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar


NUM_TEST = 597


class Split(NamedTuple):
    """Standardised images, and the digits that they show."""

    images: Float[Array, "n 8 8 1"]
    labels: Int[Array, " n"]

    def sample(self, key: PRNGKeyArray, size: int) -> "Split":
        """A batch, drawn with replacement."""
        index = jr.randint(key, (size,), 0, len(self.labels))
        return Split(self.images[index], self.labels[index])


def load() -> tuple[Split, Split]:
    """1,200 digits to train on and 597 held out, always the same ones."""
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    order = np.random.RandomState(0).permutation(len(raw.target))
    train, test = order[NUM_TEST:], order[:NUM_TEST]
    mean, std = np.mean(raw.images[train]), np.std(raw.images[train])
    images = jnp.asarray((raw.images[..., None] - mean) / std, jnp.float32)
    labels = jnp.asarray(raw.target, jnp.int32)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


class Conv(eqx.Module):
    """A 3 x 3 convolution, written as one linear map of all patches.

    On a CPU it is several times as fast as `eqx.nn.Conv2d`. The difference is largest
    for many models at a time, because XLA turns their convolutions into one with a
    group for each model.
    """

    linear: eqx.nn.Linear

    def __init__(self, in_size: int, out_size: int, key: PRNGKeyArray):
        self.linear = eqx.nn.Linear(9 * in_size, out_size, key=key)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w d"]:
        height, width, _ = x.shape
        x = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        shifted = [x[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return jax.vmap(jax.vmap(self.linear))(jnp.concatenate(shifted, axis=-1))


class Network(eqx.Module):
    """Convolution, pooling, convolution and a linear layer: 9,930 parameters."""

    layers: tuple[Conv, Conv, eqx.nn.Linear]

    def __init__(self, key: PRNGKeyArray):
        k1, k2, k3 = jr.split(key, 3)
        last = eqx.nn.Linear(4 * 4 * 32, 10, key=k3)
        self.layers = (Conv(1, 16, key=k1), Conv(16, 32, key=k2), last)

    def __call__(self, image: Float[Array, "8 8 1"]) -> Float[Array, "10"]:
        first, second, last = self.layers
        hidden = _max_pool(jax.nn.relu(first(image)))
        return last(jax.nn.relu(second(hidden)).ravel())


def _max_pool(x: Float[Array, "h w c"]) -> Float[Array, "h/2 w/2 c"]:
    height, width, channels = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))


def loss(model: Network, batch: Split) -> Scalar:
    """The mean cross-entropy."""
    log_probs = jax.nn.log_softmax(jax.vmap(model)(batch.images))
    return -jnp.mean(jnp.take_along_axis(log_probs, batch.labels[:, None], axis=1))


def accuracy(model: Network, split: Split) -> Scalar:
    """The share of images whose digit has the largest score."""
    scores = jax.vmap(model)(split.images)
    return jnp.mean(jnp.argmax(scores, axis=1) == split.labels)
