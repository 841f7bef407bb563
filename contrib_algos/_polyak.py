"""The Polyak step that both MoMo rules compute from their model of the loss."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from contrib_core import tree
from contrib_core.claims import Laws, laws_if_zero
from contrib_core.ranges import is_zero
from contrib_core.schedule import scaled
from contrib_core.typing import RealLike, RealOrSchedule, Scalar, Tree


class Polyak(NamedTuple):
    """A step of MoMo: its size, and the lower bound of the loss for the next step."""

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

    - `loss`: $\bar f$, averaged like $d$ and $\gamma$.
    - `offset`: $\langle d, x \rangle - \gamma$, the model at $x$ minus $\bar f$.
    - `gamma`: $\gamma$, equal to $\bar f$ minus the model at the origin. Weight decay
        moves $x$ towards the origin.
    - `curvature`: $\langle d, D^{-1} d \rangle$, by which a step of size 1 lowers the
        model.
    - `weight`: the sum of the weights in the averages; below 1 if they begin at 0.
    - `decay`: $\alpha w$.
    - `longest`: $\alpha$ over `weight`, the largest step size.
    - `lower_bound`: $f_*$. If a bound is learned and the model is already below $f_*$,
        it becomes half of the model.
    - `least_bound`: the least value of a learned lower bound; `None` learns none.

    If `curvature` is 0, no gradient has come yet: the step is 0, and no bound is
    learned. If `longest` is 0, no bound is learned, because a step of 0 would give the
    loss itself as the bound. If `curvature` overflows, the step is 0.
    """
    learns = (curvature > 0) & (longest > 0)
    shrink = 1 + decay
    here = tree.clamp_to_finite(shrink * loss + offset - decay * gamma)
    unit = shrink * weight
    if least_bound is not None:
        too_high = (here < unit * lower_bound) & learns
        halved = jnp.maximum(here / (2 * unit), least_bound)
        lower_bound = jnp.where(too_high, halved, lower_bound)
    gap = jnp.maximum(here - unit * lower_bound, 0)
    fall = jnp.minimum(
        tree.clamp_to_finite(longest) * tree.clamp_to_finite(curvature), gap
    )
    step_size = tree.divide(fall, curvature)
    if least_bound is not None:
        reached = tree.clamp_to_finite((loss + offset - fall / 2) / weight)
        learned = jnp.maximum(reached, least_bound)
        lower_bound = jnp.where(learns, learned, lower_bound)
    return Polyak(step_size, lower_bound)


def average_products(
    d: Tree, gamma: Scalar, grads: Tree, params: Tree, decay: RealLike
) -> tuple[Scalar, Scalar]:
    r"""$\langle d', x \rangle - \gamma'$ and $\gamma'$, for the next averages $d'$ and
    $\gamma'$.

    The first is computed as $\beta (\langle d, x \rangle - \gamma)$. The new gradient
    is taken at $x$, so it adds the same to both terms, and is left out: the two
    additions would cancel, and lose precision.
    """
    offset = decay * (tree.clamp_to_finite(tree.dot(d, params)) - gamma)
    products = tree.clamp_to_finite(tree.dot(grads, params))
    return tree.clamp_to_finite(offset), tree.ema(gamma, products, decay)


def decay_of(rule: Any, learning_rate: Scalar) -> RealLike:
    r"""$\alpha w$, which is finite even if a schedule or an array is infinite."""
    return scaled(rule.weight_decay, tree.saturate(learning_rate))


def check_decay(rule: Any) -> None:
    """Raises `ValueError` for weight decay with an infinite learning rate: the decay
    would be infinite too."""
    if is_infinite(rule.learning_rate) and not is_zero(rule.weight_decay):
        raise ValueError(
            f"{type(rule).__name__}: weight decay is in units of the learning rate, "
            f"which must then be finite; got {rule.learning_rate}. For L2 "
            "regularisation, write `chain(add_decayed_weights(rate), momo(math.inf))`."
        )


def units(rule: Any) -> Laws:
    """The laws of a Polyak step, which does not depend on the units of the loss.

    They hold if the learning rate is infinite and the lower bound is 0. Any other value
    has a unit.
    """
    if not is_infinite(rule.learning_rate):
        return frozenset()
    return laws_if_zero(rule.lower_bound, "gradient_scale", "units")


def is_infinite(learning_rate: RealOrSchedule) -> bool:
    """Whether a learning rate is known to be infinite."""
    return isinstance(learning_rate, float) and math.isinf(learning_rate)
