"""How recipes compose a rule with weight decay and a learning rate."""

from contrib_core import (
    add_decayed_weights,
    AnyTransform,
    chain,
    scale_by_learning_rate,
    Transform,
)
from contrib_core.typing import Mask, RealLike, RealOrSchedule


def descent(
    direction: Transform | None,
    learning_rate: RealOrSchedule,
    weight_decay: RealLike | None = None,
    mask: Mask | None = None,
) -> AnyTransform:
    """Descent along `direction`, by default the gradient, with decoupled weight decay.

    `direction` points uphill, and is multiplied by minus the learning rate. The decay
    is that of Loshchilov & Hutter, arXiv 1711.05101.
    """
    ascent = chain() if direction is None else direction
    decay = add_decayed_weights(weight_decay, mask)
    return chain(ascent, decay, scale_by_learning_rate(learning_rate))


def factored(
    rule: Transform,
    learning_rate: RealOrSchedule,
    weight_decay: RealLike | None,
    mask: Mask | None,
    *,
    of_gradients: bool = False,
) -> AnyTransform:
    """A rule that chooses its own step size, with weight decay added to the gradients.

    `learning_rate` is a factor of the steps, or with `of_gradients` of the gradients.
    A Python 1 is the method of the paper, and adds no stage: the state of the recipe is
    then the state of the rule.
    """
    factor = scale_by_learning_rate(learning_rate, flip_sign=False)
    stages = (factor, rule) if of_gradients else (rule, factor)
    return chain(add_decayed_weights(weight_decay, mask), *stages)
