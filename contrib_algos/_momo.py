"""MoMo: momentum, with the step size that takes a model of the loss to its minimum."""

import jax.numpy as jnp

from contrib_core import AbstractState, AbstractTransform, Extra, tree
from contrib_core.claims import ISOMETRIES, Laws, laws_if_zero, Needs
from contrib_core.ranges import Fraction, NonNegative, Number, Rate, static
from contrib_core.schedule import increment, value_at, zero_count
from contrib_core.typing import Count, P, Scalar, Tree

from ._polyak import average_products, check_decay, decay_of, polyak, units


class MomoState(AbstractState):
    """State of [`contrib_algos.Momo`][]."""

    exp_avg: P  # d_k
    barf: Scalar  # \bar f_k, in units of the loss
    gamma: Scalar  # \gamma_k, in units of the loss
    lb: Scalar  # f_*^k, in units of the loss
    count: Count  # k
    step_size: Scalar  # \tau_k


class Momo(AbstractTransform[MomoState]):
    r"""Momentum with a Polyak step size: MoMo.

    The rule averages the gradients, the losses and $\langle g, x \rangle$. At the first
    step, $\beta = 0$.

    $$d_k = \beta d_{k-1} + (1-\beta) g_k, \quad
      \bar f_k = \beta \bar f_{k-1} + (1-\beta) f_k, \quad
      \gamma_k = \beta \gamma_{k-1} + (1-\beta) \langle g_k, x_k \rangle$$

    The averages define a model $\bar f_k + \langle d_k, x \rangle - \gamma_k$ of the
    loss. The step takes the model to the lower bound $f_*$, but is at most $\alpha$.
    With $A = 1 + \alpha w$:

    $$\tau_k = \min\left(\alpha, \frac{\left( A (\bar f_k - f_* - \gamma_k)
        + \langle d_k, x_k \rangle \right)_+}{\|d_k\|^2}\right), \quad
      x_{k+1} = \frac{x_k - \tau_k d_k}{A}$$

    The rule is equivariant to translations (without weight decay) and rotations, and
    partition-invariant. With $\alpha = \infty$, the parameters do not depend on the
    units in which loss and lower bound are measured.

    ??? cite "Reference"

        Schaipp, Ohana, Eickenberg, Defazio, Gower, *MoMo: Momentum Models for Adaptive
        Learning Rates*, arXiv 2305.07583, algorithm 1. The learned lower bound follows
        the authors' code.

    **Arguments:**

    - `learning_rate`: $\alpha$, the largest step size, in units of parameters over
        gradients; a number or a schedule. Infinity gives the Polyak step.
    - `beta`: $\beta$ in [0, 1), the decay rate of the averages.
    - `lower_bound`: $f_*$, a lower bound of the loss, in units of the loss.
    - `weight_decay`: $w$, decoupled from the gradients, as a multiple of the learning
        rate.
    - `adapt_lower_bound`: whether $f_*$ is learned. If so, it starts at `lower_bound`
        and never falls below it.

    **Raises:** `ValueError` for a `beta` outside [0, 1), for a negative `learning_rate`
    or `weight_decay`, and for weight decay under an infinite learning rate.

    **Differences from optax.contrib and from the paper:**

    - $A$ divides the whole new iterate, as in the paper and in the authors' code. Optax
        does not divide $\tau_k d_k$ by it.
    - The step is exact for any $\|d_k\| > 0$. Optax does not move if the square is
        below 2.2e-16: a loss scaled by 1e-9 never trains.
    - If $d_k = 0$, the parameters only decay.
    - A learned lower bound does not change if $d_k = 0$ or $\alpha = 0$, because a step
        of 0 says nothing about it. In optax it becomes the loss at the start, and after
        a warm-up from 0 the parameters never move.
    - Statistics are float32 or wider, whatever the dtype of the parameters.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import momo
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = momo()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(5):
        ...     value, grads = jax.value_and_grad(f)(x)
        ...     updates, state = opt.update(grads, state, x, value=value)
        ...     x = x + updates
        ...     print(f"{f(x):.4f}")
        3.5000
        3.3182
        3.1419
        2.9713
        2.8069

        ```
    """

    learning_rate: Rate = 1.0
    beta: Fraction = 0.9
    lower_bound: Number = 0.0
    weight_decay: NonNegative = 0.0
    adapt_lower_bound: bool = static(False)

    def __check_init__(self):
        check_decay(self)

    @property
    def needs(self) -> Needs:
        """The parameters, and the loss at them."""
        return frozenset({"params", "value"})

    @property
    def laws(self) -> Laws:
        """It sees only the geometry of the coordinates. Weights decay towards the
        origin."""
        moved = laws_if_zero(self.weight_decay, "translation")
        return ISOMETRIES - {"translation"} | moved | units(self)

    def start(self, params: Tree) -> MomoState:
        zero, bound = tree.scalar(0, params), tree.scalar(self.lower_bound, params)
        d = tree.accumulator_like(params)
        return MomoState(d, zero, zero, bound, zero_count(), step_size=zero)

    def step(
        self, grads: Tree, state: MomoState, params: Tree, extra: Extra
    ) -> tuple[Tree, MomoState]:
        g, value = tree.widen(grads), tree.clamp_to_finite(extra.value)
        beta = jnp.where(state.count == 0, 0, tree.scalar(self.beta, like=g))
        offset, gamma = average_products(state.exp_avg, state.gamma, g, params, beta)
        d = tree.ema(state.exp_avg, tree.scale(tree.one_after(offset), g), beta)
        barf = tree.ema(state.barf, value, beta)

        alpha = value_at(self.learning_rate, state.count, like=g)
        decay = decay_of(self, alpha)
        tau, lb = polyak(
            barf,
            offset,
            gamma,
            curvature=tree.sq_norm(d),
            weight=1,
            decay=decay,
            longest=alpha,
            lower_bound=state.lb,
            least_bound=self.lower_bound if self.adapt_lower_bound else None,
        )
        ascent = tree.axpy(decay, params, tree.scale(tau, d))
        updates = tree.scale(-1 / (1 + decay), ascent)
        return updates, MomoState(d, barf, gamma, lb, increment(state.count), tau)

    def metrics(self, state: MomoState) -> dict[str, Scalar]:
        """`momo/step_size`: the last $\\tau_k$; `momo/lower_bound`: $f_*$."""
        return {"momo/step_size": state.step_size, "momo/lower_bound": state.lb}


momo = Momo
