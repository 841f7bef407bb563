"""Prodigy: AdamW that learns the distance to the solution."""

import math

import equinox as eqx
import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    at,
    check_at_least_one,
    check_fraction,
    check_nonnegative,
    check_pair,
    check_positive,
    Count,
    debias,
    ENTRYWISE,
    Extra,
    free_of,
    increment,
    P,
    RealLike,
    RealOrSchedule,
    Scalar,
    times,
    Tree,
    tree,
    zero_count,
)


class ProdigyState(AbstractState[P]):
    """State of [`contrib_algos.Prodigy`][]."""

    exp_avg: P  # m_k
    exp_avg_sq: P  # v_k
    grad_sum: P  # s_k
    params0: P  # x_0
    estim_lr: Scalar  # d_k, in units of the parameters
    numerator_weighted: Scalar  # r_k
    count: Count  # k
    max_estim_lr: Scalar | None = None  # \bar d_k; None under unbounded growth.


class Prodigy(AbstractTransform[ProdigyState[Tree]]):
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

    With a finite growth rate $\rho$, where $\hat d_{k+1}$ is the quotient above:

    $$\bar d_{k+1} = \max(\bar d_k, \hat d_{k+1}), \quad
      d_{k+1} = \min(\bar d_{k+1}, \rho\, d_k')$$

    with $\bar d_0 = d_0$, and $d_k' = d_k$ except that it is $\max(d_k, \hat d_{k+1})$
    as long as $d_k = d_0$: the first jump is free.

    Equivariant to translations and permutations, and (with $\epsilon = 0$) invariant to
    the scale of the gradients. Partition-invariant.

    ??? cite "Reference"

        Mishchenko & Defazio, *Prodigy: An Expeditiously Adaptive Parameter-Free
        Learner*, arXiv 2306.06101, algorithm 4, as in the authors' code.

    **Arguments:**

    - `learning_rate`: $\gamma$, dimensionless factor or schedule; 1 is the method of
        the paper. A schedule should peak at 1.
    - `betas`: $\beta_1, \beta_2$, decay rates of the moments.
    - `beta3`: decay rate of the distance estimate; $\sqrt{\beta_2}$ if `None`.
    - `eps`: $\epsilon$, in units of the gradients.
    - `estim_lr0`: $d_0$, the first (under)estimate of the distance.
    - `estim_lr_coef`: $c$, multiplies the estimates; dimensionless.
    - `weight_decay`: $w$, decoupled from the gradients and multiplied by the step size.
    - `safeguard_warmup`: whether to write $d_k$ for $\lambda_k$ in $s_{k+1}$, so that a
        warm-up does not make the estimates large.
    - `use_bias_correction`: whether $\lambda_k$ has its factor
        $\sqrt{1-\beta_2^{k+1}} / (1-\beta_1^{k+1})$.
    - `growth_rate`: $\rho \ge 1$, the most that $d$ grows by in a step; dimensionless.

    **Raises:** `ValueError` for decay rates outside [0, 1), for an `estim_lr0` or
    `estim_lr_coef` that is not positive, for a negative `eps` or `weight_decay`, for a
    `growth_rate` below 1.

    **Differences from optax.contrib and from the paper:**

    - Where $\|s\|_1 = 0$ (a first gradient of zero, a warm-up from 0) the estimate
        stays as it is. In optax 0/0 makes every later parameter NaN.
    - Bias correction is on by default, as it is always in optax; the authors' code has
        it off by default. `growth_rate` is as in their code; optax has none.
    - Second moments of complex parameters are real, of $|g|^2$.
    - Statistics are float32 or wider whatever the parameters are. First steps are of
        size 1e-6, below the resolution of bfloat16 and float16: wrap Prodigy in
        `contrib_wrappers.master_weights` to train parameters of these dtypes. Float32
        resolves them up to parameters of about 16: beyond, raise `estim_lr0`.
    """

    learning_rate: RealOrSchedule = 1.0
    betas: tuple[RealLike, RealLike] = (0.9, 0.999)
    beta3: RealLike | None = None
    eps: RealLike = 1e-8
    estim_lr0: RealLike = 1e-6
    estim_lr_coef: RealLike = 1.0
    weight_decay: RealLike = 0.0
    safeguard_warmup: bool = eqx.field(default=False, kw_only=True, static=True)
    use_bias_correction: bool = eqx.field(default=True, kw_only=True, static=True)
    growth_rate: RealLike = eqx.field(default=math.inf, kw_only=True)

    def __post_init__(self):
        check_pair(self, "betas")
        check_fraction(self, "beta3")
        check_positive(self, "estim_lr0", "estim_lr_coef")
        check_nonnegative(self, "learning_rate", "eps", "weight_decay")
        check_at_least_one(self, "growth_rate")

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, whose distance from the start it measures."""
        return frozenset({"params"})

    @property
    def laws(self) -> frozenset[str]:
        """It works coordinate by coordinate, with an estimate that only grows."""
        estimate = {"monotone", "initial_guess"}
        laws = ENTRYWISE | estimate | free_of(self.eps, "gradient_scale")
        return laws - {"translation"} | free_of(self.weight_decay, "translation")

    @property
    def _is_bounded(self) -> bool:
        return not isinstance(self.growth_rate, float) or self.growth_rate < math.inf

    def start(self, params: Tree) -> ProdigyState[Tree]:
        d0 = tree.scalar(self.estim_lr0, like=params)
        return ProdigyState(
            exp_avg=tree.accumulator_like(params),
            exp_avg_sq=tree.accumulator_like(params, real=True),
            grad_sum=tree.accumulator_like(params),
            params0=params,
            estim_lr=d0,
            numerator_weighted=tree.scalar(0, like=params),
            count=zero_count(),
            max_estim_lr=d0 if self._is_bounded else None,
        )

    def step(
        self, grads: Tree, state: ProdigyState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, ProdigyState[Tree]]:
        b1, b2 = self.betas
        b3 = b2**0.5 if self.beta3 is None else self.beta3
        count = increment(state.count)
        d = state.estim_lr
        lr = d * at(self.learning_rate, state.count, like=d)
        if self.use_bias_correction:
            lr = lr * jnp.sqrt(debias(b2, count, like=d)) / debias(b1, count, like=d)
        # d / d_0 lr, with the division last: XLA does not repeat it in every leaf.
        weight = lr / (self.estim_lr0 / d)
        weight_s = d / self.estim_lr0 * d if self.safeguard_warmup else weight

        g = tree.widen(grads)
        dg = tree.scale(d, g)
        m = tree.ema(state.exp_avg, tree.saturate(dg), b1)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(dg), b2)
        s = tree.axpy(weight_s, g, tree.scale(b3, state.grad_sum))
        towards_start = tree.sub(tree.widen(state.params0), params)
        r = b3 * state.numerator_weighted + weight * tree.dot(g, towards_start)
        r = tree.finite(r)
        estimate = tree.divide(self.estim_lr_coef * r, tree.l1_norm(s))
        d_new, d_max = self._grow(d, state.max_estim_lr, estimate)

        least = self.eps * self.estim_lr0  # For d never falls below d_0.
        ascent = tree.over_rms(m, v, times(self.eps, d_new), multiple_of=least)
        updates = tree.scale(-lr, tree.axpy(self.weight_decay, params, ascent))
        new_state = ProdigyState(
            exp_avg=m,
            exp_avg_sq=v,
            grad_sum=s,
            params0=state.params0,
            estim_lr=d_new,
            numerator_weighted=r,
            count=count,
            max_estim_lr=d_max,
        )
        return updates, new_state

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

    def metrics(self, state: ProdigyState[Tree]) -> dict[str, Scalar]:
        """`prodigy/distance`: $d$; `prodigy/step_size`: $d$ as well, which multiplies
        the learning rate."""
        return {
            "prodigy/distance": state.estim_lr,
            "prodigy/step_size": state.estim_lr,
        }


def prodigy(
    learning_rate: RealOrSchedule = 1.0,
    betas: tuple[RealLike, RealLike] = (0.9, 0.999),
    beta3: RealLike | None = None,
    eps: RealLike = 1e-8,
    estim_lr0: RealLike = 1e-6,
    estim_lr_coef: RealLike = 1.0,
    weight_decay: RealLike = 0.0,
    *,
    safeguard_warmup: bool = False,
    use_bias_correction: bool = True,
    growth_rate: RealLike = math.inf,
) -> Prodigy:
    """[`contrib_algos.Prodigy`][], whose arguments these are.

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
    return Prodigy(
        learning_rate,
        betas,
        beta3,
        eps,
        estim_lr0,
        estim_lr_coef,
        weight_decay,
        safeguard_warmup=safeguard_warmup,
        use_bias_correction=use_bias_correction,
        growth_rate=growth_rate,
    )
