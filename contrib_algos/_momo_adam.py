"""MoMo-Adam: MoMo, with distances measured by the preconditioner of Adam."""

import equinox as eqx
from jax import lax

from contrib_core import (
    AbstractState,
    AbstractTransform,
    at,
    check_fraction,
    check_nonnegative,
    Count,
    debias,
    ENTRYWISE,
    Extra,
    free_of,
    increment,
    is_zero,
    P,
    RealLike,
    RealOrSchedule,
    Scalar,
    Tree,
    tree,
    zero_count,
)

from ._polyak import average_products, check_decay, decay_of, polyak, units


class MomoAdamState(AbstractState[P]):
    """State of [`contrib_algos.MomoAdam`][]."""

    exp_avg: P  # d_k
    exp_avg_sq: P  # v_k
    barf: Scalar  # \bar f_k, in units of the loss
    gamma: Scalar  # \gamma_k, in units of the loss
    lb: Scalar  # f_*^k, in units of the loss
    count: Count  # k
    step_size: Scalar  # \tau_k


class MomoAdam(AbstractTransform[MomoAdamState[Tree]]):
    r"""Adam with the step size of MoMo.

    Averages of the gradients, their squares, the losses and $\langle g, x \rangle$,

    $$\begin{aligned}
      d_k &= \beta_1 d_{k-1} + (1-\beta_1) g_k, &
      v_k &= \beta_2 v_{k-1} + (1-\beta_2) |g_k|^2, \\
      \bar f_k &= \beta_1 \bar f_{k-1} + (1-\beta_1) f_k, &
      \gamma_k &= \beta_1 \gamma_{k-1} + (1-\beta_1) \langle g_k, x_k \rangle,
    \end{aligned}$$

    with $c_k = 1 - \beta_1^{k+1}$, $D_k = \epsilon + \sqrt{v_k / (1-\beta_2^{k+1})}$
    and $A = 1 + \alpha w$:

    $$\tau_k = \min\left(\frac{\alpha}{c_k}, \frac{\left( A (\bar f_k - c_k f_* -
        \gamma_k) + \langle d_k, x_k \rangle \right)_+}
        {\langle d_k, D_k^{-1} d_k \rangle}\right), \quad
      x_{k+1} = \frac{x_k - \tau_k D_k^{-1} d_k}{A}$$

    Equivariant to translations (without weight decay) and permutations.
    Partition-invariant.

    ??? cite "Reference"

        Schaipp, Ohana, Eickenberg, Defazio, Gower, *MoMo: Momentum Models for Adaptive
        Learning Rates*, arXiv 2305.07583: its MoMo-Adam, and the learned lower bound,
        as in the authors' code.

    **Arguments:**

    - `learning_rate`: $\alpha$, number or schedule, in units of the parameters: the
        longest step is that of Adam. Infinity is the Polyak step.
    - `b1`, `b2`: $\beta_1, \beta_2$ in [0, 1), decay rates of the averages.
    - `eps`: $\epsilon$, in units of the gradients.
    - `lower_bound`: $f_*$, below which the loss cannot fall, in units of the loss.
    - `weight_decay`: $w$, decoupled from the gradients, in units of the learning rate.
    - `adapt_lower_bound`: whether $f_*$ is learned, and `lower_bound` only bounds it.

    **Raises:** `ValueError` for decay rates outside [0, 1), for a negative
    `learning_rate`, `eps` or `weight_decay`, and for weight decay under an infinite
    learning rate.

    **Differences from optax.contrib and from the paper:** as for
    [`contrib_algos.Momo`][]. Second moments of complex parameters are real, of $|g|^2$.
    Gradients beyond $2^{48}$ in float32 ($2^{384}$ in float64) count as that much, so
    that their squares stay finite. Steps of 0.01 are below half the resolution of
    bfloat16 parameters above 4: wrap this in `contrib_wrappers.master_weights`.
    """

    learning_rate: RealOrSchedule = 0.01
    b1: RealLike = 0.9
    b2: RealLike = 0.999
    eps: RealLike = 1e-8
    lower_bound: RealLike = 0.0
    weight_decay: RealLike = 0.0
    adapt_lower_bound: bool = eqx.field(default=False, static=True)

    def __post_init__(self):
        check_fraction(self, "b1", "b2")
        check_nonnegative(self, "learning_rate", "eps", "weight_decay")
        check_decay(self)

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, and the loss there."""
        return frozenset({"params", "value"})

    @property
    def laws(self) -> frozenset[str]:
        """It works coordinate by coordinate but for one scalar; decay knows where the
        origin is."""
        moved = free_of(self.weight_decay, "translation")
        unitless = units(self) if is_zero(self.eps) else frozenset()
        return ENTRYWISE - {"translation"} | moved | unitless

    def start(self, params: Tree) -> MomoAdamState[Tree]:
        zero = tree.scalar(0, like=params)
        return MomoAdamState(
            exp_avg=tree.accumulator_like(params),
            exp_avg_sq=tree.accumulator_like(params, real=True),
            barf=zero,
            gamma=zero,
            lb=tree.scalar(self.lower_bound, like=params),
            count=zero_count(),
            step_size=zero,
        )

    def step(
        self, grads: Tree, state: MomoAdamState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, MomoAdamState[Tree]]:
        g, value = tree.saturate(grads), tree.finite(extra.value)
        offset, gamma = average_products(
            state.exp_avg, state.gamma, grads, params, self.b1
        )
        d = tree.ema(state.exp_avg, tree.scale(tree.after(offset), g), self.b1)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(grads), self.b2)
        barf = tree.ema(state.barf, value, self.b1)

        count = increment(state.count)
        c1 = debias(self.b1, count, like=g)
        unit = lax.rsqrt(debias(self.b2, count, like=g))
        step = tree.over_rms(d, v, self.eps, unit)

        alpha = at(self.learning_rate, state.count, like=g)
        decay = decay_of(self, alpha)
        tau, lb = polyak(
            barf,
            offset,
            gamma,
            curvature=tree.dot(d, step),
            weight=c1,
            decay=decay,
            longest=alpha / c1,
            lower_bound=state.lb,
            least_bound=self.lower_bound if self.adapt_lower_bound else None,
        )
        ascent = tree.axpy(decay, params, tree.scale(tau, step))
        updates = tree.scale(-1 / (1 + decay), ascent)
        new_state = MomoAdamState(
            exp_avg=d,
            exp_avg_sq=v,
            barf=barf,
            gamma=gamma,
            lb=lb,
            count=count,
            step_size=tau,
        )
        return updates, new_state

    def metrics(self, state: MomoAdamState[Tree]) -> dict[str, Scalar]:
        """`momo_adam/step_size`: $\\tau_k$, the last one taken;
        `momo_adam/lower_bound`: $f_*$."""
        return {
            "momo_adam/step_size": state.step_size,
            "momo_adam/lower_bound": state.lb,
        }


def momo_adam(
    learning_rate: RealOrSchedule = 0.01,
    b1: RealLike = 0.9,
    b2: RealLike = 0.999,
    eps: RealLike = 1e-8,
    lower_bound: RealLike = 0.0,
    weight_decay: RealLike = 0.0,
    adapt_lower_bound: bool = False,
) -> MomoAdam:
    """[`contrib_algos.MomoAdam`][], whose arguments these are.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import momo_adam
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = momo_adam()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(5):
        ...     value, grads = jax.value_and_grad(f)(x)
        ...     updates, state = opt.update(grads, state, x, value=value)
        ...     x = x + updates
        ...     print(f"{f(x):.4f}")
        13.8803
        13.7612
        13.6428
        13.5249
        13.4078

        ```
    """
    return MomoAdam(
        learning_rate, b1, b2, eps, lower_bound, weight_decay, adapt_lower_bound
    )
