"""D-Adaptation: AdamW that learns a lower bound of the distance to the solution."""

from dataclasses import KW_ONLY

import jax.numpy as jnp
from jaxtyping import Array

from contrib_core import AbstractState, AbstractTransform, Extra, tree
from contrib_core.claims import ENTRYWISE, ESTIMATE, Laws, laws_if_zero, Needs
from contrib_core.ranges import (
    Fraction,
    Guess,
    is_zero,
    NonNegative,
    Rate,
    static,
)
from contrib_core.schedule import debias, increment, scaled, value_at, zero_count
from contrib_core.typing import Count, P, RealLike, Scalar, Tree


class DAdaptAdamWState(AbstractState):
    """State of [`contrib_algos.DAdaptAdamW`][]."""

    exp_avg: P  # m_k, an average of \lambda g, in units of parameters times gradients
    exp_avg_sq: P  # v_k
    grad_sum: P  # s_k, an average of \lambda g over a longer time
    estim_lr: Scalar  # d_k, in units of the parameters
    numerator_weighted: Scalar  # r_k
    count: Count  # k


class DAdaptAdamW(AbstractTransform[DAdaptAdamWState]):
    r"""AdamW whose learning rate is an estimate $d$ of the distance to the solution.

    With $\lambda_k = d_k \gamma_k \sqrt{1-\beta_2^{k+1}} / (1-\beta_1^{k+1})$ and
    $\sigma = \sqrt{\beta_2}$:

    $$\begin{aligned}
      r_{k+1} &= \sigma r_k + (1-\sigma) \lambda_k
        \langle g_k, s_k / (\sqrt{v_k} + \epsilon) \rangle \\
      m_{k+1} &= \beta_1 m_k + (1-\beta_1) \lambda_k g_k \\
      v_{k+1} &= \beta_2 v_k + (1-\beta_2) |g_k|^2 \\
      s_{k+1} &= \sigma s_k + (1-\sigma) \lambda_k g_k \\
      d_{k+1} &= \max\left(d_k, \frac{r_{k+1}}{(1-\sigma) \|s_{k+1}\|_1}\right) \\
      x_{k+1} &= x_k - w \lambda_k x_k - m_{k+1} / (\sqrt{v_{k+1}} + \epsilon)
    \end{aligned}$$

    The rule is equivariant to translations (without weight decay) and permutations, and
    partition-invariant. With $\epsilon = 0$ it is invariant to the scale of the
    gradients.

    ??? cite "Reference"

        Defazio & Mishchenko, *Learning-Rate-Free Learning by D-Adaptation*,
        arXiv 2301.07733: the variant of Adam, as in the authors' code.

    **Arguments:**

    - `learning_rate`: $\gamma$, dimensionless factor or schedule; 1 is the method of
        the paper. A schedule should peak at 1.
    - `betas`: $\beta_1, \beta_2$, decay rates of the moments, in [0, 1).
    - `eps`: $\epsilon$, in units of the gradients.
    - `estim_lr0`: $d_0$, the first (under)estimate of the distance, in units of the
        parameters.
    - `weight_decay`: $w$, decoupled from the gradients and multiplied by the step size.
    - `use_bias_correction`: whether $\lambda_k$ has its factor
        $\sqrt{1-\beta_2^{k+1}} / (1-\beta_1^{k+1})$.

    **Raises:** `ValueError` for decay rates outside [0, 1), for an `estim_lr0` that is
    not positive, for a negative `eps` or `weight_decay`.

    **Differences from optax.contrib and from the paper:**

    - If $\|s\|_1 = 0$ (after a first gradient of 0, or in a warm-up from 0), the
        estimate does not change. In optax, 0/0 makes every later parameter NaN.
    - Bias correction is on by default. Optax always corrects; the authors' code has it
        off by default.
    - Second moments of complex parameters are real: they average $|g|^2$.
    - Gradients are clamped to $\pm 2^{48}$ in float32 ($\pm 2^{384}$ in float64), so
        that their squares stay finite.
    - Statistics are float32 or wider, whatever the dtype of the parameters. The
        estimate grows even while the first steps, of size 1e-6, round to 0 in bfloat16
        parameters.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import dadapt_adamw
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = dadapt_adamw()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state, step = opt.init(x), jax.jit(opt.update)
        >>> for _ in range(200):
        ...     updates, state = step(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> bool(f(x) < 1e-2)
        True

        ```
    """

    learning_rate: Rate = 1.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NonNegative = 1e-8
    estim_lr0: Guess = 1e-6
    weight_decay: NonNegative = 0.0
    _: KW_ONLY
    use_bias_correction: bool = static(True)

    @property
    def needs(self) -> Needs:
        """The parameters, if they decay."""
        return frozenset() if is_zero(self.weight_decay) else frozenset({"params"})

    @property
    def laws(self) -> Laws:
        """It treats each coordinate separately, except for an estimate that only grows.
        Weights decay towards the origin, and `eps` has a unit."""
        moved = laws_if_zero(self.weight_decay, "translation")
        scale = laws_if_zero(self.eps, "gradient_scale")
        return ENTRYWISE - {"translation"} | ESTIMATE | moved | scale

    def start(self, params: Tree) -> DAdaptAdamWState:
        m, v = tree.accumulator_like(params), tree.accumulator_like(params, real=True)
        d0, r = tree.scalar(self.estim_lr0, params), tree.scalar(0, params)
        s = tree.accumulator_like(params)
        return DAdaptAdamWState(m, v, s, d0, numerator_weighted=r, count=zero_count())

    def step(
        self, grads: Tree, state: DAdaptAdamWState, params: Tree, extra: Extra
    ) -> tuple[Tree, DAdaptAdamWState]:
        b1, b2 = self.betas
        sigma = b2**0.5
        d, count = state.estim_lr, increment(state.count)
        lr = d * value_at(self.learning_rate, state.count, like=d)
        if self.use_bias_correction:
            lr = lr * jnp.sqrt(debias(b2, count, like=d)) / debias(b1, count, like=d)

        g = tree.saturate(grads)
        dot = tree.sum(_dot, g, state.grad_sum, state.exp_avg_sq, self.eps)
        r = sigma * state.numerator_weighted + (1 - sigma) * lr * dot
        one = tree.one_after(dot)
        step = tree.scale(lr * one, g)
        m = tree.ema(state.exp_avg, step, b1)
        v = tree.ema(state.exp_avg_sq, tree.scale(one, tree.abs_sq(grads)), b2)
        s = tree.ema(state.grad_sum, step, sigma)
        r = tree.clamp_to_finite(r)
        estimate = tree.divide(r, (1 - sigma) * tree.l1_norm(s))
        d = jnp.maximum(d, estimate)

        ascent = tree.over_rms(m, v, self.eps)
        ascent = tree.axpy(scaled(self.weight_decay, lr), params, ascent)
        return tree.scale(-1, ascent), DAdaptAdamWState(m, v, s, d, r, count)

    def metrics(self, state: DAdaptAdamWState) -> dict[str, Scalar]:
        """`dadapt_adamw/distance`: $d$; `dadapt_adamw/step_size`: $d$ too, because it
        multiplies the learning rate."""
        d = state.estim_lr
        return {"dadapt_adamw/distance": d, "dadapt_adamw/step_size": d}


def _dot(g: Array, s: Array, v: Array, eps: RealLike) -> Array:
    r"""The summands of $\langle g, s / (\sqrt v + \epsilon) \rangle$. They are 0 where
    $v = 0$: no gradient has come yet, so $s = 0$ too."""
    product = (jnp.conj(g) * s).real / (tree.sqrt(v) + eps)
    return jnp.where(v > 0, product, 0)


dadapt_adamw = DAdaptAdamW
