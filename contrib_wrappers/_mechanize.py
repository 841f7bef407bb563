"""Mechanic: learns how far to go along the updates of any optimizer."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    check_nonnegative,
    check_positive,
    check_whole,
    Count,
    Extra,
    free_of,
    increment,
    is_zero,
    ISOMETRIES,
    merge_metrics,
    name_of,
    P,
    RealLike,
    Scalar,
    Scalars,
    Transform,
    Tree,
    tree,
    zero_count,
)


class MechanicState(AbstractState[P]):
    """State of [`contrib_wrappers.Mechanize`][].

    `r`, `m`, `v` and `s` have an entry for each decay rate.
    """

    base_optimizer_state: Any
    count: Count  # t
    r: Scalars  # r_t, rewards
    m: Scalars  # m_t, the largest |h|
    v: Scalars  # v_t, sums of h^2
    s: Scalars  # s_t, whose sum S_t is the learned scale
    x0: P  # x_0
    delta: P | None = None  # \Delta_t; None where x_t - x_0 tells.


class Mechanize(AbstractTransform[MechanicState[Tree]]):
    r"""Learns the learning rate of a base optimizer: a scale $S$ of all its updates.

    With $u_t$ the base optimizer's update at $x_t$, $\Delta_t$ the sum of its updates
    and $S_t$ the sum of the entries of $s_t$:

    $$\begin{aligned}
      h_t &= -\langle g_t + \lambda S_t
        \tfrac{\|g_t\|}{\|x_t\| + \epsilon} x_t, \Delta_t \rangle \\
      r_{t+1} &= \beta r_t + \text{clip}(h_t, -m_t, m_t)\, s_t \\
      m_{t+1} &= \max(\beta m_t, |h_t| + \epsilon) \\
      v_{t+1} &= \beta^2 v_t + h_t^2 \\
      s_{t+1} &= \frac{\tfrac{s_\text{init}}{n} m_{t+1} + \max(r_{t+1}, 0)}
        {\sqrt{v_{t+1}} + \epsilon} \\
      x_{t+1} &= x_0 + S_{t+1} (\Delta_t + u_t)
    \end{aligned}$$

    entrywise for the $n$ decay rates $\beta_i = 1 - 10^{-i}$, with $r_0 = m_0 = v_0 =
    0$ and $s_0 = s_\text{init}$. $\Delta_t$ is recovered from the parameters, as $(x_t
    - x_0) / (S_t + \epsilon)$, or stored. $x_0$ are the parameters of the first step,
    whatever they were in `init`. Invariances are those of the base optimizer, but for
    $\epsilon$, and for $\lambda > 0$, which knows where the origin is.

    The scale multiplies whatever the base optimizer does: give that a learning rate of
    1, or a schedule that peaks at 1. Recovered from the parameters, $\Delta$ is lost
    where a step $s_\text{init} u$ is below half their resolution: then nothing moves,
    so that nothing is learned, and it stays so for ever. In float32 steps of 1, as
    those of Adam and Lion, move parameters up to 16. Neither `mechanize(adam(1e-3))`
    nor `mechanize(dog())` ever leaves parameters of size 1, nor does gradient descent
    with gradients of 1e-2: with `store_delta` or a larger `s_init` they do. The metrics
    tell: as long as nothing has moved, `mechanize/reward` is exactly 0.

    ??? cite "Reference"

        Cutkosky, Defazio & Mehta, *Mechanic: A Learning Rate Tuner*, arXiv 2306.00144,
        algorithm 1.

    **Arguments:**

    - `base_optimizer`: a transform, ours or optax's, with a learning rate of 1. A spike
        among the gradients stays in $\Delta$ for as long as the base optimizer takes it
        into its updates: clip before what does, such as gradient descent.
    - `weight_decay`: $\lambda \ge 0$, dimensionless; it decays the scale, and not the
        parameters.
    - `eps`: $\epsilon > 0$, beside rewards, in units of $h$; beside $S$ and $\|x\|$.
    - `s_init`: $s_\text{init} > 0$, the first (under)estimate of the scale: $S_1$, as
        long as there is no reward. $S_0 = n s_\text{init}$ multiplies nothing.
    - `num_betas`: $n \ge 1$, how many decay rates there are.
    - `store_delta`: whether to keep $\Delta$ in the state, as float32 or wider.

    **Raises:** `ValueError` for arguments outside these ranges, and for a base
    optimizer that recovers points of its own from the parameters, which are not moved
    by its updates, but by these times $S$.

    **Differences from optax.contrib and from the paper:**

    - As in optax, rewards are clipped before they are summed up, which they are not in
        the paper, and their sums may be negative, where the authors' PyTorch code stops
        at 0. That code begins with $s_0 = 0$, and stores $\Delta$ on demand, which
        optax does not offer.
    - $r$, $m$, $v$ and $s$ are float32 or wider whatever the parameters are, and these
        may mix dtypes. First steps are of size 1e-6, below the resolution of bfloat16
        and float16: wrap this in `contrib_wrappers.master_weights` to train parameters
        of these dtypes.
    - Gradients up to 1e30 in float32 leave the state finite: $h$ and $r$ are bounded.
    """

    base_optimizer: AbstractTransform = eqx.field(converter=as_transform)
    weight_decay: RealLike = 1e-2
    eps: RealLike = 1e-8
    s_init: RealLike = 1e-6
    num_betas: int = eqx.field(default=6, static=True)
    store_delta: bool = eqx.field(default=False, kw_only=True, static=True)

    def __post_init__(self):
        check_nonnegative(self, "weight_decay")
        check_positive(self, "eps", "s_init")
        check_whole(self, "num_betas")
        base = as_transform(self.base_optimizer)  # Fields are not converted yet.
        if "iterates" in base.needs:
            name = name_of(base)
            raise ValueError(
                f"Mechanize({name}): {name} recovers points of its own from the "
                "parameters. They would be wrong, because its updates are rescaled. "
                "Give Mechanize an optimizer such as adam(1.0); wrappers go around it, "
                'as in `schedule_free(mechanize(base), lr, base_at="z")`.'
            )

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, on whose way from the start they must stay, and what the base
        optimizer needs."""
        return self.base_optimizer.needs | {"params", "iterates"}

    @property
    def laws(self) -> frozenset[str]:
        """The symmetries of the base optimizer that inner products and norms have, but
        with decay for those that move the origin; and with long memories too, no matter
        what its first guess is."""
        origin = {"translation", "units"}
        kept = ISOMETRIES - origin | free_of(self.weight_decay, *origin) | {"monotone"}
        own = {"initial_guess"} if self.num_betas > 1 else set()
        return self.base_optimizer.laws & kept | own

    def start(self, params: Tree) -> MechanicState[Tree]:
        zeros = jnp.zeros_like(self._betas(params))
        return MechanicState(
            base_optimizer_state=self.base_optimizer.start(params),
            count=zero_count(),
            r=zeros,
            m=zeros,
            v=zeros,
            s=zeros + tree.scalar(self.s_init, like=params),
            x0=params,
            delta=tree.accumulator_like(params) if self.store_delta else None,
        )

    def step(
        self, grads: Tree, state: MechanicState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, MechanicState[Tree]]:
        u, base_state = self.base_optimizer.step(
            grads, state.base_optimizer_state, params, extra
        )
        # Not a select, which would write all of it in every step.
        x0 = lax.cond(
            state.count == 0,
            lambda: tree.cast_like(params, state.x0),
            lambda: state.x0,
        )
        total = jnp.sum(state.s)
        g = tree.axpy(self._decay(grads, params, total), params, tree.widen(grads))
        if state.delta is None:
            moved = tree.sub(tree.widen(params), x0)
            h = -tree.divide(tree.dot(g, moved), total + self.eps)
        else:
            h = -tree.dot(g, state.delta)
        r, m, v, s = self._learn(_bounded(h), state)
        new_total = jnp.sum(s)

        if state.delta is None:
            delta = None
            # x_0 + S' ((x - x_0) / (S + eps) + u) - x, whose first terms nearly cancel.
            shrinking = tree.divide(total - new_total + self.eps, total + self.eps)
            # Of x_0 - x, for XLA would keep an x - x_0 that is used twice.
            updates = tree.map(
                lambda x, x0, u, k, s: k * (x0 - x) + s * u,
                params,
                x0,
                u,
                shrinking,
                new_total,
            )
        else:
            delta = tree.axpy(tree.after(new_total), u, state.delta)
            updates = tree.map(
                lambda x, x0, d, s: (x0 - x) + s * d, params, x0, delta, new_total
            )
        new_state = MechanicState(
            base_optimizer_state=base_state,
            count=increment(state.count),
            r=r,
            m=m,
            v=v,
            s=s,
            x0=x0,
            delta=delta,
        )
        return updates, new_state

    def _betas(self, like: Tree) -> Scalars:
        rates = [1 - 0.1**i for i in range(1, self.num_betas + 1)]
        return jnp.asarray(rates, tree.accumulator_dtype(like))

    def _decay(self, grads: Tree, params: Tree, total: Scalar) -> RealLike:
        """What the parameters are added to the gradients with."""
        if is_zero(self.weight_decay):
            return 0
        # Not `tree.sq_norm`: its squares are those of Adam, and XLA would keep them.
        sq_norm = tree.sum(lambda g: jnp.abs(g) * jnp.abs(g), grads)
        norm = tree.sqrt(tree.finite(sq_norm))
        size = tree.sqrt(tree.finite(tree.sq_norm(params)))
        return self.weight_decay * total * tree.divide(norm, size + self.eps)

    def _learn(self, h: Scalar, state: MechanicState[Tree]) -> tuple[Scalars, ...]:
        """The next $r$, $m$, $v$ and $s$."""
        betas = self._betas(h)
        m = jnp.maximum(betas * state.m, jnp.abs(h) + self.eps)
        v = betas**2 * state.v + h**2
        r = betas * state.r + jnp.clip(h, -state.m, state.m) * state.s
        r = tree.saturate(r)
        wealth = self.s_init / self.num_betas * m + jnp.maximum(r, 0)
        return r, m, v, tree.divide(wealth, tree.sqrt(v) + self.eps)

    def eval_point(self, state: MechanicState[Tree], params: Tree) -> Tree:
        return self.base_optimizer.eval_point(state.base_optimizer_state, params)

    def metrics(self, state: MechanicState[Tree]) -> dict[str, Scalar]:
        """`mechanize/step_size`: $S_t$, which multiplies the updates of the base
        optimizer; `mechanize/reward`: the sum of $r_t$, exactly 0 as long as nothing
        has moved; and those of the base optimizer, prefixed by `base` where it is one
        of these too."""
        own = {
            "mechanize/step_size": jnp.sum(state.s),
            "mechanize/reward": jnp.sum(state.r),
        }
        base = self.base_optimizer.metrics(state.base_optimizer_state)
        return merge_metrics(own, base, "base")


def _bounded(h: Scalar) -> Scalar:
    """`h` where its square can be summed up, and the like."""
    # Where products overflow both ways, that they are large is all that is known: the
    # loss is taken for granted, which makes the scale small.
    return tree.saturate(jnp.where(jnp.isnan(h), -jnp.inf, h))


def mechanize(
    base_optimizer: Transform,
    weight_decay: RealLike = 1e-2,
    eps: RealLike = 1e-8,
    s_init: RealLike = 1e-6,
    num_betas: int = 6,
    *,
    store_delta: bool = False,
) -> Mechanize:
    """Learns the learning rate of `base_optimizer`, which is to have one of 1:
    [`contrib_wrappers.Mechanize`][].

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import adam
        >>> from contrib_wrappers import mechanize
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = mechanize(adam(1.0))
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state, step = opt.init(x), jax.jit(opt.update)
        >>> for _ in range(200):
        ...     updates, state = step(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> bool(f(x) < 1e-2)
        True

        ```
    """
    return Mechanize(
        base_optimizer, weight_decay, eps, s_init, num_betas, store_delta=store_delta
    )
