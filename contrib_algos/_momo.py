"""MoMo: momentum, with the step size at which a model of the loss is minimal."""

import equinox as eqx
import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    at,
    check_fraction,
    check_nonnegative,
    Count,
    Extra,
    free_of,
    increment,
    ISOMETRIES,
    P,
    RealLike,
    RealOrSchedule,
    Scalar,
    Tree,
    tree,
    zero_count,
)

from ._polyak import average_products, check_decay, decay_of, polyak, units


class MomoState(AbstractState[P]):
    """State of [`contrib_algos.Momo`][]."""

    exp_avg: P  # d_k
    barf: Scalar  # \bar f_k, in units of the loss
    gamma: Scalar  # \gamma_k, in units of the loss
    lb: Scalar  # f_*^k, in units of the loss
    count: Count  # k
    step_size: Scalar  # \tau_k


class Momo(AbstractTransform[MomoState[Tree]]):
    r"""Momentum with a Polyak step size: MoMo.

    Averages of the gradients, the losses and $\langle g, x \rangle$, of which those at
    the first step are the first ones themselves,

    $$d_k = \beta d_{k-1} + (1-\beta) g_k, \quad
      \bar f_k = \beta \bar f_{k-1} + (1-\beta) f_k, \quad
      \gamma_k = \beta \gamma_{k-1} + (1-\beta) \langle g_k, x_k \rangle$$

    make a model $\bar f_k + \langle d_k, x \rangle - \gamma_k$ of the loss, which the
    step takes to the lower bound $f_*$, unless $\alpha$ is shorter; $A = 1 + \alpha w$:

    $$\tau_k = \min\left(\alpha, \frac{\left( A (\bar f_k - f_* - \gamma_k)
        + \langle d_k, x_k \rangle \right)_+}{\|d_k\|^2}\right), \quad
      x_{k+1} = \frac{x_k - \tau_k d_k}{A}$$

    Equivariant to translations (without weight decay) and rotations.
    Partition-invariant. With $\alpha = \infty$, where loss and lower bound are measured
    in other units, the parameters do not notice.

    ??? cite "Reference"

        Schaipp, Ohana, Eickenberg, Defazio, Gower, *MoMo: Momentum Models for Adaptive
        Learning Rates*, arXiv 2305.07583, algorithm 1; the learned lower bound is that
        of the authors' code.

    **Arguments:**

    - `learning_rate`: $\alpha$, number or schedule, in units of parameters over
        gradients: the longest step. Infinity is the Polyak step.
    - `beta`: $\beta$ in [0, 1), the decay rate of the averages.
    - `lower_bound`: $f_*$, below which the loss cannot fall, in units of the loss.
    - `weight_decay`: $w$, decoupled from the gradients, in units of the learning rate.
    - `adapt_lower_bound`: whether $f_*$ is learned, and `lower_bound` only bounds it.

    **Raises:** `ValueError` for a `beta` outside [0, 1), for a negative `learning_rate`
    or `weight_decay`, and for weight decay under an infinite learning rate.

    **Differences from optax.contrib and from the paper:**

    - $A$ divides the whole new iterate, as in the paper and in the authors' code; optax
        forgets it for $\tau_k d_k$.
    - Any $\|d_k\| > 0$ is divided by. Optax stands still where its square is below
        2.2e-16: a loss scaled by 1e-9 never trains there.
    - Where $d_k = 0$ the parameters do not move, except for decay, and a learned lower
        bound stays as it is; so it does where $\alpha$ is 0, for a null step tells
        nothing. In optax it becomes the
        loss at the start, and after a warm-up from 0 nothing ever moves.
    - Statistics are float32 or wider whatever the parameters are.
    """

    learning_rate: RealOrSchedule = 1.0
    beta: RealLike = 0.9
    lower_bound: RealLike = 0.0
    weight_decay: RealLike = 0.0
    adapt_lower_bound: bool = eqx.field(default=False, static=True)

    def __post_init__(self):
        check_fraction(self, "beta")
        check_nonnegative(self, "learning_rate", "weight_decay")
        check_decay(self)

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, and the loss there."""
        return frozenset({"params", "value"})

    @property
    def laws(self) -> frozenset[str]:
        """It knows nothing of coordinates but their geometry, and, to decay, where the
        origin is."""
        moved = free_of(self.weight_decay, "translation")
        return ISOMETRIES - {"translation"} | moved | units(self)

    def start(self, params: Tree) -> MomoState[Tree]:
        zero = tree.scalar(0, like=params)
        return MomoState(
            exp_avg=tree.accumulator_like(params),
            barf=zero,
            gamma=zero,
            lb=tree.scalar(self.lower_bound, like=params),
            count=zero_count(),
            step_size=zero,
        )

    def step(
        self, grads: Tree, state: MomoState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, MomoState[Tree]]:
        g, value = tree.widen(grads), tree.finite(extra.value)
        beta = jnp.where(state.count == 0, 0, tree.scalar(self.beta, like=g))
        offset, gamma = average_products(state.exp_avg, state.gamma, g, params, beta)
        d = tree.ema(state.exp_avg, tree.scale(tree.after(offset), g), beta)
        barf = tree.ema(state.barf, value, beta)

        alpha = at(self.learning_rate, state.count, like=g)
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
        new_state = MomoState(
            exp_avg=d,
            barf=barf,
            gamma=gamma,
            lb=lb,
            count=increment(state.count),
            step_size=tau,
        )
        return updates, new_state

    def metrics(self, state: MomoState[Tree]) -> dict[str, Scalar]:
        """`momo/step_size`: the last $\\tau_k$; `momo/lower_bound`: $f_*$."""
        return {"momo/step_size": state.step_size, "momo/lower_bound": state.lb}


def momo(
    learning_rate: RealOrSchedule = 1.0,
    beta: RealLike = 0.9,
    lower_bound: RealLike = 0.0,
    weight_decay: RealLike = 0.0,
    adapt_lower_bound: bool = False,
) -> Momo:
    """[`contrib_algos.Momo`][], whose arguments these are.

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
    return Momo(learning_rate, beta, lower_bound, weight_decay, adapt_lower_bound)
