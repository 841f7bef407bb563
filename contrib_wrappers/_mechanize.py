"""Mechanic: learns the scale of the updates of any optimizer."""

from dataclasses import KW_ONLY
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    Extra,
    merge_metrics,
    name_of,
    tree,
)
from contrib_core.claims import (
    claim,
    ISOMETRIES,
    Laws,
    laws_if_zero,
    Needs,
    PARAMS,
    Terms,
)
from contrib_core.ranges import Guess, is_zero, Natural, NonNegative, Positive, static
from contrib_core.schedule import increment, zero_count
from contrib_core.typing import Count, P, RealLike, Scalar, Scalars, Tree


class MechanicState(AbstractState):
    """State of [`contrib_wrappers.Mechanize`][].

    `r`, `m`, `v` and `s` have one entry for each decay rate.
    """

    terms: ClassVar[Terms] = {"scaled_sum": {"start": "x0", "scale": "s"}}

    base_optimizer_state: Any
    count: Count  # t
    r: Scalars  # r_t, rewards
    m: Scalars  # m_t, the largest |h|
    v: Scalars  # v_t, sums of h^2
    s: Scalars  # s_t, whose sum S_t is the learned scale
    x0: P  # x_0
    delta: P | None = None  # \Delta_t; `None` if it is recovered from x_t - x_0


class Mechanize(AbstractTransform[MechanicState]):
    r"""Learns the learning rate of a base optimizer: a scale $S$ of all its updates.

    Let $u_t$ be the base optimizer's update at $x_t$, $\Delta_t$ the sum of its updates
    before step $t$, and $S_t$ the sum of the entries of $s_t$:

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

    These equations are entrywise in the $n$ decay rates $\beta_i = 1 - 10^{-i}$, with
    $r_0 = m_0 = v_0 = 0$ and $s_0 = s_\text{init}$. $\Delta_t$ is either stored, or
    recovered from the parameters as $(x_t - x_0) / (S_t + \epsilon)$. $x_0$ are the
    parameters of the first step, even if `init` got others. The invariances are those
    of the base optimizer, except for the effect of $\epsilon$. Weight decay, $\lambda >
    0$, also breaks invariance under translations and changes of unit.

    The scale multiplies the base optimizer's updates, so give the base optimizer a
    learning rate of 1, or a schedule with maximum 1.

    Recovering $\Delta$ from the parameters fails if every step $s_\text{init} u$ is
    below half the resolution of the parameters: the parameters never move, so Mechanic
    never learns. In float32, base updates of size 1, as in Adam and Lion, move
    parameters up to size 16. Parameters of size 1 never move with
    `mechanize(adam(1e-3))`, with `mechanize(dog())`, or with gradient descent on
    gradients of size 1e-2. The remedy is `store_delta=True` or a larger `s_init`. The
    metric `mechanize/reward` reveals this case: it is exactly 0 until the parameters
    move.

    ??? cite "Reference"

        Cutkosky, Defazio & Mehta, *Mechanic: A Learning Rate Tuner*, arXiv 2306.00144,
        algorithm 1.

    **Arguments:**

    - `base_optimizer`: a transform, ours or optax's, with a learning rate of 1. If its
        updates are proportional to the gradients, as in gradient descent, one huge
        gradient stays in $\Delta$; put a clip before such an optimizer.
    - `weight_decay`: $\lambda \ge 0$, dimensionless; it decays the scale, not the
        parameters.
    - `eps`: $\epsilon > 0$, in units of $h$ where it is added to $|h|$ and $\sqrt{v}$,
        and also added to $S$ and $\|x\|$.
    - `s_init`: $s_\text{init} > 0$, an initial underestimate of the scale. It equals
        $S_1$ until the first reward. $S_0 = n s_\text{init}$ multiplies no update.
    - `num_betas`: $n \ge 1$, the number of decay rates.
    - `store_delta`: whether to keep $\Delta$ in the state, in float32 or wider.

    **Raises:** `ValueError` for arguments outside these ranges, and for a base
    optimizer that recovers points of its own from the parameters. They would be wrong,
    because the parameters move by $S$ times the base optimizer's updates.

    **Differences from optax.contrib and from the paper:**

    - As in optax, rewards are clipped before they are summed; the paper does not clip
        them. As in optax, their sums may be negative; the authors' PyTorch code clips
        the sums at 0.
    - The authors' PyTorch code starts from $s_0 = 0$. It can store $\Delta$, as here;
        optax cannot.
    - $r$, $m$, $v$ and $s$ are float32 or wider for parameters of any dtype, and the
        parameters may mix dtypes. The first steps have size 1e-6, which is below the
        resolution of bfloat16 and float16. To train parameters of these dtypes, wrap
        this transform in `contrib_wrappers.master_weights`.
    - The state stays finite for gradients up to 1e30 in float32, because $h$ and $r$
        are bounded.

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

    terms: ClassVar[Terms] = {"scaled_sum": {"epsilon": "eps"}}

    base_optimizer: AbstractTransform[Any] = eqx.field(converter=as_transform)
    weight_decay: NonNegative = 1e-2
    eps: Positive = 1e-8
    s_init: Guess = 1e-6
    num_betas: Natural = static(6)
    _: KW_ONLY
    store_delta: bool = static(False)

    def __check_init__(self):
        if self.base_optimizer.owns_iterates:
            name = name_of(self.base_optimizer)
            raise ValueError(
                f"Mechanize({name}): {name} recovers points of its own from the "
                "parameters. They would be wrong, because Mechanize rescales its "
                "updates. Pass an optimizer such as adam(1.0) instead, and put "
                "wrappers outside, as in "
                '`schedule_free(mechanize(base), lr, base_at="z")`.'
            )

    @property
    def needs(self) -> Needs:
        """Everything that the base optimizer needs, plus the parameters, because it
        computes their displacement from $x_0$."""
        return self.base_optimizer.needs | PARAMS

    @property
    def owns_iterates(self) -> bool:
        """Always true: it computes how far the parameters are from $x_0$."""
        return True

    @property
    def laws(self) -> Laws:
        """The symmetries of the base optimizer that inner products and norms share.

        Weight decay breaks `translation` and `units`. With several decay rates, the
        first guess does not matter.
        """
        kept = ISOMETRIES - {"translation"} | claim("monotone")
        kept |= laws_if_zero(self.weight_decay, "translation", "units")
        own: Laws = frozenset({"initial_guess"} if self.num_betas > 1 else ())
        return self.base_optimizer.laws & kept | own

    def start(self, params: Tree) -> MechanicState:
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
        self, grads: Tree, state: MechanicState, params: Tree, extra: Extra
    ) -> tuple[Tree, MechanicState]:
        u, base_state = self.base_optimizer.step(
            grads, state.base_optimizer_state, params, extra
        )
        # A select would write all of x_0 in every step; `cond` does not.
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
            # The update is x_0 + S' ((x - x_0) / (S + eps) + u) - x. Its first terms
            # nearly cancel, so rewrite it as k (x_0 - x) + S' u.
            shrinking = tree.divide(total - new_total + self.eps, total + self.eps)
            # A trick for the compiler: write x_0 - x here, because XLA would store the
            # x - x_0 from above if it were used twice.
            updates = tree.map(
                lambda x, x0, u, k, s: k * (x0 - x) + s * u,
                params,
                x0,
                u,
                shrinking,
                new_total,
            )
        else:
            delta = tree.axpy(tree.one_after(new_total), u, state.delta)
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
        """The factor of the parameters that are added to the gradients."""
        if is_zero(self.weight_decay):
            return 0
        # A trick for the compiler: `tree.sq_norm` would compute the same squares as
        # Adam, and XLA would store them for both.
        sq_norm = tree.sum(lambda g: jnp.abs(g) * jnp.abs(g), grads)
        norm = tree.sqrt(tree.clamp_to_finite(sq_norm))
        size = tree.sqrt(tree.clamp_to_finite(tree.sq_norm(params)))
        return self.weight_decay * total * tree.divide(norm, size + self.eps)

    def _learn(self, h: Scalar, state: MechanicState) -> tuple[Scalars, ...]:
        """The next $r$, $m$, $v$ and $s$."""
        betas = self._betas(h)
        m = jnp.maximum(betas * state.m, jnp.abs(h) + self.eps)
        v = betas**2 * state.v + h**2
        r = betas * state.r + jnp.clip(h, -state.m, state.m) * state.s
        r = tree.saturate(r)
        wealth = self.s_init / self.num_betas * m + jnp.maximum(r, 0)
        return r, m, v, tree.divide(wealth, tree.sqrt(v) + self.eps)

    def eval_point(self, state: MechanicState, params: Tree) -> Tree:
        return self.base_optimizer.eval_point(state.base_optimizer_state, params)

    def metrics(self, state: MechanicState) -> dict[str, Scalar]:
        """`mechanize/step_size`: the factor $S_t$ of the base optimizer's updates.
        `mechanize/reward`: the sum of $r_t$, exactly 0 until the parameters move. The
        metrics of the base optimizer are included; a name that occurs twice gets the
        prefix `base`."""
        own = {
            "mechanize/step_size": jnp.sum(state.s),
            "mechanize/reward": jnp.sum(state.r),
        }
        base = self.base_optimizer.metrics(state.base_optimizer_state)
        return merge_metrics(own, base, "base")


def _bounded(h: Scalar) -> Scalar:
    """`h`, bounded so that sums of its squares are finite."""
    # A NaN means that products overflowed to both infinities, so only their size is
    # known. Assume a loss, because it makes the scale small.
    return tree.saturate(jnp.where(jnp.isnan(h), -jnp.inf, h))


mechanize = Mechanize
