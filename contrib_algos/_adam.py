"""Adam, AdamW, and the second moment by itself."""

from typing import Any

from jax import lax

from contrib_core import (
    AbstractState,
    AbstractTransform,
    add_decayed_weights,
    chain,
    check_fraction,
    check_nonnegative,
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
    scale_by_learning_rate,
    Tree,
    tree,
    zero_count,
)


class AdamState(AbstractState[P]):
    """State of [`contrib_algos.Adam`][]."""

    exp_avg: P  # m_t
    exp_avg_sq: P  # v_t
    count: Count  # t


class Adam(AbstractTransform[AdamState[Tree]]):
    r"""The direction of Adam.

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad
      v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \quad
      \frac{m_t / (1-\beta_1^t)}{\sqrt{v_t / (1-\beta_2^t)} + \epsilon}$$

    A direction of ascent, to be followed by [`contrib_core.scale_by_learning_rate`][].
    Equivariant to translations and permutations, and (with $\epsilon = 0$) invariant to
    the scale of each coordinate of the gradients.

    ??? cite "Reference"

        Kingma & Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980,
        algorithm 1.

    **Arguments:**

    - `b1`, `b2`: decay rates of the moments, in [0, 1).
    - `eps`: $\epsilon$, in units of the gradients.

    **Raises:** `ValueError` for decay rates outside [0, 1) or a negative `eps`.
    """

    b1: RealLike = 0.9
    b2: RealLike = 0.999
    eps: RealLike = 1e-8

    def __post_init__(self):
        check_fraction(self, "b1", "b2")
        check_nonnegative(self, "eps")

    @property
    def laws(self) -> frozenset[str]:
        """It works coordinate by coordinate, in units of `eps`."""
        return ENTRYWISE | free_of(self.eps, "gradient_scale")

    def start(self, params: Tree) -> AdamState[Tree]:
        return AdamState(
            exp_avg=tree.accumulator_like(params),
            exp_avg_sq=tree.accumulator_like(params, real=True),
            count=zero_count(),
        )

    def step(
        self, grads: Tree, state: AdamState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, AdamState[Tree]]:
        count = increment(state.count)
        m = tree.ema(state.exp_avg, tree.saturate(grads), self.b1)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(grads), self.b2)
        c1 = debias(self.b1, count, like=m)
        c2 = debias(self.b2, count, like=m)
        ascent = _direction(m, v, c1, c2, self.eps)
        return ascent, AdamState(exp_avg=m, exp_avg_sq=v, count=count)


def _direction(m: Tree, v: Tree, c1: RealLike, c2: Scalar, eps: RealLike) -> Tree:
    """`(m / c1) / (√(v / c2) + eps)`."""
    # What is scalar is taken out of the map, by divisions, which XLA computes once: it
    # would repeat products in every leaf.
    unit = lax.rsqrt(c2)
    return tree.over_rms(tree.scale(1 / (c1 * unit), m), v, eps / unit, multiple_of=eps)


class RMSState(AbstractState[P]):
    """State of [`contrib_algos.RMS`][]."""

    exp_avg_sq: P  # v_t
    count: Count  # t


class RMS(AbstractTransform[RMSState[Tree]]):
    r"""[`contrib_algos.Adam`][] with $\beta_1 = 0$ and without its first-moment buffer.

    The base of schedule-free AdamW, whose averaging takes the place of momentum.
    Arguments, invariances and errors as for [`contrib_algos.Adam`][].
    """

    b2: RealLike = 0.999
    eps: RealLike = 1e-8

    def __post_init__(self):
        check_fraction(self, "b2")
        check_nonnegative(self, "eps")

    @property
    def laws(self) -> frozenset[str]:
        """It works coordinate by coordinate, in units of `eps`."""
        return ENTRYWISE | free_of(self.eps, "gradient_scale")

    def start(self, params: Tree) -> RMSState[Tree]:
        return RMSState(tree.accumulator_like(params, real=True), zero_count())

    def step(
        self, grads: Tree, state: RMSState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, RMSState[Tree]]:
        count = increment(state.count)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(grads), self.b2)
        c2 = debias(self.b2, count, like=v)
        ascent = _direction(tree.saturate(grads), v, 1.0, c2, self.eps)
        return ascent, RMSState(exp_avg_sq=v, count=count)


def adam(
    learning_rate: RealOrSchedule,
    b1: RealLike = 0.9,
    b2: RealLike = 0.999,
    eps: RealLike = 1e-8,
) -> AbstractTransform:
    """[`contrib_algos.Adam`][] times minus the learning rate.

    **Arguments:**

    - `learning_rate`: number or schedule, in units of the parameters.
    - `b1`, `b2`, `eps`: as for [`contrib_algos.Adam`][].
    """
    return chain(Adam(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: RealOrSchedule,
    b1: RealLike = 0.9,
    b2: RealLike = 0.999,
    eps: RealLike = 1e-8,
    weight_decay: RealLike = 1e-4,
    mask: Any = None,
) -> AbstractTransform:
    """[`contrib_algos.adam`][] with decoupled weight decay (arXiv 1711.05101).

    **Arguments:**

    - `learning_rate`, `b1`, `b2`, `eps`: as for [`contrib_algos.adam`][].
    - `weight_decay`: decay per step in units of the learning rate.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].
    """
    return chain(
        Adam(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
