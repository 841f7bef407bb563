"""What both MoMo rules make of their model of the loss."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from contrib_core import (
    is_zero,
    RealLike,
    RealOrSchedule,
    Scalar,
    times,
    Tree,
    tree,
)


class Polyak(NamedTuple):
    """A step of MoMo: how long it is, and the lower bound of the loss behind it."""

    step_size: Scalar  # \tau_k
    lower_bound: Scalar  # f_*^{k+1}


def polyak(
    loss: Scalar,
    offset: Scalar,
    gamma: Scalar,
    curvature: Scalar,
    *,
    weight: RealLike,
    decay: RealLike,
    longest: Scalar,
    lower_bound: Scalar,
    least_bound: RealLike | None,
) -> Polyak:
    r"""The step $-\tau D^{-1} d$ that takes a model of the loss to its lower bound.

    Schaipp et al., arXiv 2305.07583, as in the authors' code.

    **Arguments:**

    - `loss`: $\bar f$, an average as $d$ and $\gamma$ are.
    - `offset`: $\langle d, x \rangle - \gamma$, by which the model at $x$ differs.
    - `gamma`: $\gamma$, by which it does at the origin, where decay leads.
    - `curvature`: $\langle d, D^{-1} d \rangle$, what a unit step takes off the model.
    - `weight`: what the averages have gathered: less than 1 where they begin at 0.
    - `decay`: $\alpha w$.
    - `longest`: $\alpha$ over `weight`.
    - `lower_bound`: $f_*$; where the model is below it already, it halves.
    - `least_bound`: what it is at least, if it is learned.

    Where `curvature` is 0, no gradient has come yet: the step is 0, and nothing is
    learned; nor is it where `longest` is 0, for what a null step reaches is the loss.
    Where `curvature` overflows, the step is 0 too.
    """
    learns = (curvature > 0) & (longest > 0)
    shrink = 1 + decay
    here = tree.finite(shrink * loss + offset - decay * gamma)
    unit = shrink * weight
    if least_bound is not None:
        too_high = (here < unit * lower_bound) & learns
        halved = jnp.maximum(here / (2 * unit), least_bound)
        lower_bound = jnp.where(too_high, halved, lower_bound)
    gap = jnp.maximum(here - unit * lower_bound, 0)
    fall = jnp.minimum(tree.finite(longest) * tree.finite(curvature), gap)
    step_size = tree.divide(fall, curvature)
    if least_bound is not None:
        reached = tree.finite((loss + offset - fall / 2) / weight)
        learned = jnp.maximum(reached, least_bound)
        lower_bound = jnp.where(learns, learned, lower_bound)
    return Polyak(step_size, lower_bound)


def average_products(
    d: Tree, gamma: Scalar, grads: Tree, params: Tree, decay: RealLike
) -> tuple[Scalar, Scalar]:
    r"""$\langle d', x \rangle - \gamma'$ and $\gamma'$, for the next averages.

    The former is $\beta (\langle d, x \rangle - \gamma)$: the new gradient is taken at
    $x$, and its part of both is the same. So it does not cancel.
    """
    offset = decay * (tree.finite(tree.dot(d, params)) - gamma)
    products = tree.finite(tree.dot(grads, params))
    return tree.finite(offset), tree.ema(gamma, products, decay)


def decay_of(rule: Any, learning_rate: Scalar) -> RealLike:
    r"""$\alpha w$, finite where a schedule or an array is not: it decays to 0."""
    return times(rule.weight_decay, tree.saturate(learning_rate))


def check_decay(rule: Any) -> None:
    """Raises `ValueError` for weight decay under a learning rate of infinity, by which
    it is multiplied."""
    if is_infinite(rule.learning_rate) and not is_zero(rule.weight_decay):
        raise ValueError(
            f"{type(rule).__name__}: weight decay is in units of the learning rate, "
            f"which must then be finite; got {rule.learning_rate}. For L2 "
            "regularisation, write `chain(add_decayed_weights(rate), momo(math.inf))`."
        )


def units(rule: Any) -> frozenset[str]:
    """The laws of a Polyak step: its only units are those of loss and gradients, if no
    learning rate bounds it, and no bound of the loss is given but 0."""
    is_free = is_infinite(rule.learning_rate) and is_zero(rule.lower_bound)
    return frozenset({"gradient_scale", "units"} if is_free else ())


def is_infinite(learning_rate: RealOrSchedule) -> bool:
    """Whether a learning rate is known to be infinite."""
    return isinstance(learning_rate, float) and learning_rate == math.inf
