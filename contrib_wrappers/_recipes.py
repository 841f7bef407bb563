"""Recipes: wrappers with their usual base rules."""

from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from contrib_algos import LinearWarmup, RMS, sgd
from contrib_core import add_decayed_weights, chain
from contrib_core.ranges import Fraction, NonNegative, Positive, Rate
from contrib_core.typing import Mask, RealLike, RealOrSchedule

from ._schedule_free import ScheduleFree


def schedule_free_sgd(
    learning_rate: Rate = 1.0,
    warmup_steps: Positive | None = None,
    b1: Fraction = 0.9,
    weight_decay: NonNegative | None = None,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: DTypeLike | None = jnp.float32,
    *,
    mask: Mask | None = None,
    decay_at: Literal["y", "z"] = "y",
) -> ScheduleFree:
    r"""Gradient descent inside [`contrib_wrappers.ScheduleFree`][].

    **Arguments:**

    - `learning_rate`: $\gamma$, in units of parameters over gradients.
    - `warmup_steps`: if given, step $k = 0, 1, \dots$ has the learning rate
        $\gamma \min(1, (k + 1) / \text{warmup\_steps})$.
    - `weight_decay`: the factor of the parameters that are added to the gradients.
    - `mask`: the leaves that decay, as for [`contrib_core.masked`][].
    - `decay_at`: the point that enters the weight decay: "y", as in the authors' code,
        or "z".
    - `b1`, `weight_lr_power`, `state_dtype`: as for
        [`contrib_wrappers.ScheduleFree`][].

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_wrappers import schedule_free_sgd
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = schedule_free_sgd()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(5):
        ...     updates, state = opt.update(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> print(f"{f(opt.eval_params(state, x)):.3f}")
        0.241

        ```
    """
    lr = _warmed_up(learning_rate, warmup_steps)
    base = chain(add_decayed_weights(weight_decay, mask), sgd(lr))
    return ScheduleFree(base, lr, b1, weight_lr_power, state_dtype, base_at=decay_at)


def schedule_free_adamw(
    learning_rate: Rate = 0.0025,
    warmup_steps: Positive | None = None,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative | None = 0.0,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: DTypeLike | None = jnp.float32,
    *,
    mask: Mask | None = None,
    decay_at: Literal["y", "z"] = "y",
) -> ScheduleFree:
    """AdamW inside [`contrib_wrappers.ScheduleFree`][], without a first moment.

    **Arguments:**

    - `learning_rate`: in units of the parameters.
    - `b2`, `eps`: the decay rate of the second moment and the constant beside its root,
        as for [`contrib_algos.Adam`][].
    - `weight_decay`: per step, in units of the learning rate.
    - All other arguments: as for [`contrib_wrappers.schedule_free_sgd`][].

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_wrappers import schedule_free_adamw
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = schedule_free_adamw(0.5)
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(20):
        ...     updates, state = opt.update(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> bool(f(opt.eval_params(state, x)) < 0.1)
        True

        ```
    """
    lr = _warmed_up(learning_rate, warmup_steps)
    base = chain(RMS(b2, eps), add_decayed_weights(weight_decay, mask), sgd(lr))
    return ScheduleFree(base, lr, b1, weight_lr_power, state_dtype, base_at=decay_at)


def _warmed_up(
    learning_rate: RealOrSchedule, warmup_steps: RealLike | None
) -> RealOrSchedule:
    if warmup_steps is None:
        return learning_rate
    return LinearWarmup(learning_rate, warmup_steps)
