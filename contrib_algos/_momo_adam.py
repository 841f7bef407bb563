"""MoMo-Adam: MoMo, with distances measured in the preconditioner of Adam."""

from jax import lax

from contrib_core import AbstractState, AbstractTransform, Extra, tree
from contrib_core.claims import ENTRYWISE, Laws, laws_if_zero, Needs
from contrib_core.ranges import Fraction, NonNegative, Number, Rate, static
from contrib_core.schedule import debias, increment, value_at, zero_count
from contrib_core.typing import Count, P, Scalar, Tree

from ._polyak import average_products, check_decay, decay_of, polyak, units


class MomoAdamState(AbstractState):
    """State of [`contrib_algos.MomoAdam`][]."""

    exp_avg: P  # d_k
    exp_avg_sq: P  # v_k
    barf: Scalar  # \bar f_k, in units of the loss
    gamma: Scalar  # \gamma_k, in units of the loss
    lb: Scalar  # f_*^k, in units of the loss
    count: Count  # k
    step_size: Scalar  # \tau_k


class MomoAdam(AbstractTransform[MomoAdamState]):
    r"""Adam with the step size of MoMo.

    The rule averages the gradients, their squares, the losses and
    $\langle g, x \rangle$:

    $$\begin{aligned}
      d_k &= \beta_1 d_{k-1} + (1-\beta_1) g_k, &
      v_k &= \beta_2 v_{k-1} + (1-\beta_2) |g_k|^2, \\
      \bar f_k &= \beta_1 \bar f_{k-1} + (1-\beta_1) f_k, &
      \gamma_k &= \beta_1 \gamma_{k-1} + (1-\beta_1) \langle g_k, x_k \rangle,
    \end{aligned}$$

    With $c_k = 1 - \beta_1^{k+1}$, $D_k = \epsilon + \sqrt{v_k / (1-\beta_2^{k+1})}$
    and $A = 1 + \alpha w$:

    $$\tau_k = \min\left(\frac{\alpha}{c_k}, \frac{\left( A (\bar f_k - c_k f_* -
        \gamma_k) + \langle d_k, x_k \rangle \right)_+}
        {\langle d_k, D_k^{-1} d_k \rangle}\right), \quad
      x_{k+1} = \frac{x_k - \tau_k D_k^{-1} d_k}{A}$$

    The rule is equivariant to translations (without weight decay) and permutations, and
    partition-invariant.

    ??? cite "Reference"

        Schaipp, Ohana, Eickenberg, Defazio, Gower, *MoMo: Momentum Models for Adaptive
        Learning Rates*, arXiv 2305.07583: MoMo-Adam. The learned lower bound follows
        the authors' code.

    **Arguments:**

    - `learning_rate`: $\alpha$, in units of the parameters; a number or a schedule. The
        longest step is the step of Adam at this rate. Infinity gives the Polyak step.
    - `b1`, `b2`: $\beta_1, \beta_2$ in [0, 1), decay rates of the averages.
    - `eps`: $\epsilon$, in units of the gradients.
    - `lower_bound`: $f_*$, a lower bound of the loss, in units of the loss.
    - `weight_decay`: $w$, decoupled from the gradients, as a multiple of the learning
        rate.
    - `adapt_lower_bound`: whether $f_*$ is learned. If so, it starts at `lower_bound`
        and never falls below it.

    **Raises:** `ValueError` for decay rates outside [0, 1), for a negative
    `learning_rate`, `eps` or `weight_decay`, and for weight decay under an infinite
    learning rate.

    **Differences from optax.contrib and from the paper:** those of
    [`contrib_algos.Momo`][], and:

    - Second moments of complex parameters are real: they average $|g|^2$.
    - Gradients are clamped to $\pm 2^{48}$ in float32 ($\pm 2^{384}$ in float64), so
        that their squares stay finite.
    - Steps of 0.01 are below half the resolution of bfloat16 parameters above 4. These
        need a wide copy that the rule moves (master weights).

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

    learning_rate: Rate = 0.01
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: NonNegative = 1e-8
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
        """It treats each coordinate separately, except for one scalar step size.
        Weights decay towards the origin, and `eps` has a unit."""
        moved = laws_if_zero(self.weight_decay, "translation")
        unitless = laws_if_zero(self.eps, *units(self))
        return ENTRYWISE - {"translation"} | moved | unitless

    def start(self, params: Tree) -> MomoAdamState:
        zero, bound = tree.scalar(0, params), tree.scalar(self.lower_bound, params)
        d, v = tree.accumulator_like(params), tree.accumulator_like(params, real=True)
        return MomoAdamState(d, v, zero, zero, bound, zero_count(), step_size=zero)

    def step(
        self, grads: Tree, state: MomoAdamState, params: Tree, extra: Extra
    ) -> tuple[Tree, MomoAdamState]:
        b1, d, gamma = self.b1, state.exp_avg, state.gamma
        g, value = tree.saturate(grads), tree.clamp_to_finite(extra.value)
        offset, gamma = average_products(d, gamma, grads, params, b1)
        d = tree.ema(d, tree.scale(tree.one_after(offset), g), b1)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(grads), self.b2)
        barf = tree.ema(state.barf, value, b1)

        count = increment(state.count)
        c1, c2 = debias(b1, count, like=g), debias(self.b2, count, like=g)
        step = tree.over_rms(d, v, self.eps, lax.rsqrt(c2))

        alpha = value_at(self.learning_rate, state.count, like=g)
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
        return updates, MomoAdamState(d, v, barf, gamma, lb, count, tau)

    def metrics(self, state: MomoAdamState) -> dict[str, Scalar]:
        """`momo_adam/step_size`: $\\tau_k$ of the last step;
        `momo_adam/lower_bound`: $f_*$."""
        tau, lb = state.step_size, state.lb
        return {"momo_adam/step_size": tau, "momo_adam/lower_bound": lb}


momo_adam = MomoAdam
