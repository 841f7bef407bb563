"""D-Adaptation: AdamW that learns a lower bound of the distance to the solution."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from contrib_core import (
    AbstractState,
    AbstractTransform,
    at,
    check_nonnegative,
    check_pair,
    check_positive,
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
    times,
    Tree,
    tree,
    zero_count,
)


class DAdaptAdamWState(AbstractState[P]):
    """State of [`contrib_algos.DAdaptAdamW`][]."""

    exp_avg: P  # m_k, of steps
    exp_avg_sq: P  # v_k
    grad_sum: P  # s_k, of steps
    estim_lr: Scalar  # d_k, in units of the parameters
    numerator_weighted: Scalar  # r_k
    count: Count  # k


class DAdaptAdamW(AbstractTransform[DAdaptAdamWState[Tree]]):
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

    Equivariant to translations and permutations, and (with $\epsilon = 0$) invariant to
    the scale of the gradients. Partition-invariant.

    ??? cite "Reference"

        Defazio & Mishchenko, *Learning-Rate-Free Learning by D-Adaptation*,
        arXiv 2301.07733: its Adam, as in the authors' code.

    **Arguments:**

    - `learning_rate`: $\gamma$, dimensionless factor or schedule; 1 is the method of
        the paper. A schedule should peak at 1.
    - `betas`: $\beta_1, \beta_2$, decay rates of the moments.
    - `eps`: $\epsilon$, in units of the gradients.
    - `estim_lr0`: $d_0$, the first (under)estimate of the distance.
    - `weight_decay`: $w$, decoupled from the gradients and multiplied by the step size.
    - `use_bias_correction`: whether $\lambda_k$ has its factor
        $\sqrt{1-\beta_2^{k+1}} / (1-\beta_1^{k+1})$.

    **Raises:** `ValueError` for decay rates outside [0, 1), for an `estim_lr0` that is
    not positive, for a negative `eps` or `weight_decay`.

    **Differences from optax.contrib and from the paper:**

    - Where $\|s\|_1 = 0$ (a first gradient of zero, a warm-up from 0) the estimate
        stays as it is. In optax 0/0 makes every later parameter NaN.
    - Bias correction is on by default, as it is always in optax; the authors' code has
        it off by default.
    - Second moments of complex parameters are real, of $|g|^2$.
    - Gradients beyond $2^{48}$ in float32 ($2^{384}$ in float64) count as that much, so
        that their squares stay finite.
    - Statistics are float32 or wider whatever the parameters are: so the estimate of
        bfloat16 parameters grows while their first steps, of 1e-6, are rounded off.
    """

    learning_rate: RealOrSchedule = 1.0
    betas: tuple[RealLike, RealLike] = (0.9, 0.999)
    eps: RealLike = 1e-8
    estim_lr0: RealLike = 1e-6
    weight_decay: RealLike = 0.0
    use_bias_correction: bool = eqx.field(default=True, kw_only=True, static=True)

    def __post_init__(self):
        check_pair(self, "betas")
        check_positive(self, "estim_lr0")
        check_nonnegative(self, "learning_rate", "eps", "weight_decay")

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, if they decay."""
        return frozenset() if is_zero(self.weight_decay) else frozenset({"params"})

    @property
    def laws(self) -> frozenset[str]:
        """It works coordinate by coordinate, with an estimate that only grows."""
        estimate = {"monotone", "initial_guess"}
        laws = ENTRYWISE | estimate | free_of(self.eps, "gradient_scale")
        return laws - {"translation"} | free_of(self.weight_decay, "translation")

    def start(self, params: Tree) -> DAdaptAdamWState[Tree]:
        return DAdaptAdamWState(
            exp_avg=tree.accumulator_like(params),
            exp_avg_sq=tree.accumulator_like(params, real=True),
            grad_sum=tree.accumulator_like(params),
            estim_lr=tree.scalar(self.estim_lr0, like=params),
            numerator_weighted=tree.scalar(0, like=params),
            count=zero_count(),
        )

    def step(
        self,
        grads: Tree,
        state: DAdaptAdamWState[Tree],
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, DAdaptAdamWState[Tree]]:
        b1, b2 = self.betas
        sigma = b2**0.5
        count = increment(state.count)
        d = state.estim_lr
        lr = d * at(self.learning_rate, state.count, like=d)
        if self.use_bias_correction:
            lr = lr * jnp.sqrt(debias(b2, count, like=d)) / debias(b1, count, like=d)

        g = tree.saturate(grads)
        dot = tree.sum(_dot, g, state.grad_sum, state.exp_avg_sq, self.eps)
        r = sigma * state.numerator_weighted + (1 - sigma) * lr * dot
        one = tree.after(dot)
        step = tree.scale(lr * one, g)
        m = tree.ema(state.exp_avg, step, b1)
        v = tree.ema(state.exp_avg_sq, tree.scale(one, tree.abs_sq(grads)), b2)
        s = tree.ema(state.grad_sum, step, sigma)
        r = tree.finite(r)
        estimate = tree.divide(r, (1 - sigma) * tree.l1_norm(s))

        ascent = tree.over_rms(m, v, self.eps)
        ascent = tree.axpy(times(self.weight_decay, lr), params, ascent)
        new_state = DAdaptAdamWState(
            exp_avg=m,
            exp_avg_sq=v,
            grad_sum=s,
            estim_lr=jnp.maximum(d, estimate),
            numerator_weighted=r,
            count=count,
        )
        return tree.scale(-1, ascent), new_state

    def metrics(self, state: DAdaptAdamWState[Tree]) -> dict[str, Scalar]:
        """`dadapt_adamw/distance`: $d$; `dadapt_adamw/step_size`: $d$ as well, which
        multiplies the learning rate."""
        return {
            "dadapt_adamw/distance": state.estim_lr,
            "dadapt_adamw/step_size": state.estim_lr,
        }


def _dot(g: Array, s: Array, v: Array, eps: RealLike) -> Array:
    r"""$\langle g, s / (\sqrt v + \epsilon) \rangle$ by coordinates, 0 where $s$ is
    because no gradient has come yet."""
    product = (jnp.conj(g) * s).real / (tree.sqrt(v) + eps)
    return jnp.where(v > 0, product, 0)


def dadapt_adamw(
    learning_rate: RealOrSchedule = 1.0,
    betas: tuple[RealLike, RealLike] = (0.9, 0.999),
    eps: RealLike = 1e-8,
    estim_lr0: RealLike = 1e-6,
    weight_decay: RealLike = 0.0,
    *,
    use_bias_correction: bool = True,
) -> DAdaptAdamW:
    """[`contrib_algos.DAdaptAdamW`][], whose arguments these are.

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
    return DAdaptAdamW(
        learning_rate,
        betas,
        eps,
        estim_lr0,
        weight_decay,
        use_bias_correction=use_bias_correction,
    )
