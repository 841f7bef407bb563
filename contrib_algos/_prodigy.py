"""Prodigy: AdamW that learns the distance to the solution."""

import math
from dataclasses import KW_ONLY

import jax.numpy as jnp

from contrib_core import AbstractState, AbstractTransform, Extra, tree
from contrib_core.claims import ENTRYWISE, ESTIMATE, Laws, laws_if_zero, Needs, PARAMS
from contrib_core.ranges import (
    AtLeastOne,
    Fraction,
    Guess,
    NonNegative,
    Positive,
    Rate,
    static,
)
from contrib_core.schedule import debias, increment, scaled, value_at, zero_count
from contrib_core.typing import Count, P, Scalar, Tree


class ProdigyState(AbstractState):
    """State of [`contrib_algos.Prodigy`][]."""

    exp_avg: P  # m_k, in units of parameters times gradients
    exp_avg_sq: P  # v_k
    grad_sum: P  # s_k
    params0: P  # x_0
    estim_lr: Scalar  # d_k, in units of the parameters
    numerator_weighted: Scalar  # r_k
    count: Count  # k
    max_estim_lr: Scalar | None = None  # \bar d_k; `None` if growth is unbounded.


class Prodigy(AbstractTransform[ProdigyState]):
    r"""AdamW whose learning rate is an estimate $d$ of the distance to the solution.

    With $\lambda_k = d_k \gamma_k \sqrt{1-\beta_2^{k+1}} / (1-\beta_1^{k+1})$:

    $$\begin{aligned}
      m_{k+1} &= \beta_1 m_k + (1-\beta_1) d_k g_k \\
      v_{k+1} &= \beta_2 v_k + (1-\beta_2) d_k^2 |g_k|^2 \\
      s_{k+1} &= \beta_3 s_k + \tfrac{d_k}{d_0} \lambda_k g_k \\
      r_{k+1} &= \beta_3 r_k
        + \tfrac{d_k}{d_0} \lambda_k \langle g_k, x_0 - x_k \rangle \\
      d_{k+1} &= \max(d_k, c\, r_{k+1} / \|s_{k+1}\|_1) \\
      x_{k+1} &= x_k
        - \lambda_k \left( w x_k + m_{k+1} / (\sqrt{v_{k+1}} + d_{k+1} \epsilon) \right)
    \end{aligned}$$

    With a finite growth rate $\rho$, and $\hat d_{k+1} = c\, r_{k+1} / \|s_{k+1}\|_1$:

    $$\bar d_{k+1} = \max(\bar d_k, \hat d_{k+1}), \quad
      d_{k+1} = \min(\bar d_{k+1}, \rho\, d_k')$$

    Here $\bar d_0 = d_0$. While $d_k = d_0$, $d_k' = \max(d_k, \hat d_{k+1})$, so that
    the first growth is not bounded; afterwards $d_k' = d_k$.

    The rule is equivariant to translations (without weight decay) and permutations, and
    partition-invariant. With $\epsilon = 0$ it is invariant to the scale of the
    gradients.

    ??? cite "Reference"

        Mishchenko & Defazio, *Prodigy: An Expeditiously Adaptive Parameter-Free
        Learner*, arXiv 2306.06101, algorithm 4, as in the authors' code.

    **Arguments:**

    - `learning_rate`: $\gamma$, dimensionless factor or schedule; 1 is the method of
        the paper. A schedule should peak at 1.
    - `betas`: $\beta_1, \beta_2$, decay rates of the moments, in [0, 1).
    - `beta3`: $\beta_3$, decay rate of the distance estimate, in [0, 1);
        $\sqrt{\beta_2}$ if `None`.
    - `eps`: $\epsilon$, in units of the gradients.
    - `estim_lr0`: $d_0$, the first (under)estimate of the distance, in units of the
        parameters.
    - `estim_lr_coef`: $c$, multiplies the estimates; dimensionless.
    - `weight_decay`: $w$, decoupled from the gradients and multiplied by the step size.
    - `safeguard_warmup`: whether $s_{k+1}$ uses $d_k$ in place of $\lambda_k$, so that
        a warm-up does not make the estimates large.
    - `use_bias_correction`: whether $\lambda_k$ has its factor
        $\sqrt{1-\beta_2^{k+1}} / (1-\beta_1^{k+1})$.
    - `growth_rate`: $\rho \ge 1$, the largest factor by which $d$ grows in one step;
        dimensionless.

    **Raises:** `ValueError` for decay rates outside [0, 1), for an `estim_lr0` or
    `estim_lr_coef` that is not positive, for a negative `eps` or `weight_decay`, for a
    `growth_rate` below 1.

    **Differences from optax.contrib and from the paper:**

    - If $\|s\|_1 = 0$ (after a first gradient of 0, or in a warm-up from 0), the
        estimate does not change. In optax, 0/0 makes every later parameter NaN.
    - Bias correction is on by default. Optax always corrects; the authors' code has it
        off by default.
    - `growth_rate` is as in the authors' code. Optax has none.
    - Second moments of complex parameters are real: they average $|g|^2$.
    - Statistics are float32 or wider, whatever the dtype of the parameters. First steps
        have the size 1e-6, below the resolution of bfloat16 and float16. Parameters of
        these dtypes need a wide copy that Prodigy moves (master weights). Float32
        resolves the first steps of parameters up to about 16; raise `estim_lr0` for
        larger ones.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import prodigy
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = prodigy()
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
    beta3: Fraction | None = None
    eps: NonNegative = 1e-8
    estim_lr0: Guess = 1e-6
    estim_lr_coef: Positive = 1.0
    weight_decay: NonNegative = 0.0
    _: KW_ONLY
    safeguard_warmup: bool = static(False)
    use_bias_correction: bool = static(True)
    growth_rate: AtLeastOne = math.inf

    @property
    def needs(self) -> Needs:
        """The parameters, whose distance from the start it measures."""
        return PARAMS

    @property
    def laws(self) -> Laws:
        """It treats each coordinate separately, except for an estimate that only grows.
        Weights decay towards the origin, and `eps` has a unit."""
        moved = laws_if_zero(self.weight_decay, "translation")
        scale = laws_if_zero(self.eps, "gradient_scale")
        return ENTRYWISE - {"translation"} | ESTIMATE | moved | scale

    def start(self, params: Tree) -> ProdigyState:
        zeros, d0 = tree.accumulator_like(params), tree.scalar(self.estim_lr0, params)
        is_unbounded = (
            isinstance(self.growth_rate, float) and self.growth_rate == math.inf
        )
        return ProdigyState(
            exp_avg=zeros,
            exp_avg_sq=tree.accumulator_like(params, real=True),
            grad_sum=tree.accumulator_like(params),
            params0=params,
            estim_lr=d0,
            numerator_weighted=tree.scalar(0, like=params),
            count=zero_count(),
            max_estim_lr=None if is_unbounded else d0,
        )

    def step(
        self, grads: Tree, state: ProdigyState, params: Tree, extra: Extra
    ) -> tuple[Tree, ProdigyState]:
        b1, b2 = self.betas
        b3 = b2**0.5 if self.beta3 is None else self.beta3
        x0, d, count = state.params0, state.estim_lr, increment(state.count)
        lr = d * value_at(self.learning_rate, state.count, like=d)
        if self.use_bias_correction:
            lr = lr * jnp.sqrt(debias(b2, count, like=d)) / debias(b1, count, like=d)
        # (d / d_0) lr, with the division last: XLA computes a division once, but
        # repeats a product in the loop over every leaf.
        weight = lr / (self.estim_lr0 / d)
        weight_s = d / self.estim_lr0 * d if self.safeguard_warmup else weight

        g = tree.widen(grads)
        dg = tree.scale(d, g)
        m = tree.ema(state.exp_avg, tree.saturate(dg), b1)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(dg), b2)
        s = tree.axpy(weight_s, g, tree.scale(b3, state.grad_sum))
        towards_start = tree.sub(tree.widen(x0), params)
        r = b3 * state.numerator_weighted + weight * tree.dot(g, towards_start)
        r = tree.clamp_to_finite(r)
        estimate = tree.divide(self.estim_lr_coef * r, tree.l1_norm(s))
        d_new, d_max = self._grow(d, state.max_estim_lr, estimate)

        least = self.eps * self.estim_lr0  # d never falls below d_0.
        ascent = tree.over_rms(m, v, scaled(self.eps, d_new), least=least)
        updates = tree.scale(-lr, tree.axpy(self.weight_decay, params, ascent))
        return updates, ProdigyState(m, v, s, x0, d_new, r, count, d_max)

    def _grow(
        self, d: Scalar, d_max: Scalar | None, estimate: Scalar
    ) -> tuple[Scalar, Scalar | None]:
        """The next $d$ and $\\bar d$."""
        raised = jnp.maximum(d, estimate)
        if d_max is None:
            return raised, None
        d_max = jnp.maximum(d_max, estimate)
        base = jnp.where(d == self.estim_lr0, raised, d)
        return jnp.minimum(d_max, base * self.growth_rate), d_max

    def metrics(self, state: ProdigyState) -> dict[str, Scalar]:
        """`prodigy/distance`: $d$; `prodigy/step_size`: $d$ too, because it multiplies
        the learning rate."""
        d = state.estim_lr
        return {"prodigy/distance": d, "prodigy/step_size": d}


prodigy = Prodigy
