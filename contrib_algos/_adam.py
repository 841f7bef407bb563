"""Adam and AdamW."""

from jax import lax

from contrib_core import AbstractState, AbstractTransform, AnyTransform, Extra, tree
from contrib_core.claims import ENTRYWISE, Laws, laws_if_zero
from contrib_core.ranges import Fraction, NonNegative, Rate
from contrib_core.schedule import debias, increment, zero_count
from contrib_core.typing import Count, Mask, P, RealLike, Scalar, Tree

from ._recipe import descent


class AdamState(AbstractState):
    """State of [`contrib_algos.Adam`][]."""

    exp_avg: P  # m_t
    exp_avg_sq: P  # v_t
    count: Count  # t


class Adam(AbstractTransform[AdamState]):
    r"""The direction of Adam.

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad
      v_t = \beta_2 v_{t-1} + (1-\beta_2) |g_t|^2, \quad
      \frac{m_t / (1-\beta_1^t)}{\sqrt{v_t / (1-\beta_2^t)} + \epsilon}$$

    This is a direction of ascent: put [`contrib_core.scale_by_learning_rate`][] behind
    it. It is equivariant to translations and permutations, and with $\epsilon = 0$
    invariant to the scale of each coordinate of the gradients.

    ??? cite "Reference"

        Kingma & Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980,
        algorithm 1.

    **Arguments:**

    - `b1`, `b2`: decay rates of the moments, in [0, 1).
    - `eps`: $\epsilon$, in units of the gradients.

    **Raises:** `ValueError` for decay rates outside [0, 1) or a negative `eps`.
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: NonNegative = 1e-8

    @property
    def laws(self) -> Laws:
        """It treats each coordinate separately, and only `eps` has a unit."""
        return ENTRYWISE | laws_if_zero(self.eps, "gradient_scale")

    def start(self, params: Tree) -> AdamState:
        m, v = tree.accumulator_like(params), tree.accumulator_like(params, real=True)
        return AdamState(exp_avg=m, exp_avg_sq=v, count=zero_count())

    def step(
        self, grads: Tree, state: AdamState, params: Tree, extra: Extra
    ) -> tuple[Tree, AdamState]:
        count = increment(state.count)
        m = tree.ema(state.exp_avg, tree.saturate(grads), self.b1)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(grads), self.b2)
        c1, c2 = debias(self.b1, count, like=m), debias(self.b2, count, like=m)
        return direction(m, v, c1, c2, self.eps), AdamState(m, v, count)


def direction(m: Tree, v: Tree, c1: RealLike, c2: Scalar, eps: RealLike) -> Tree:
    """`(m / c1) / (√(v / c2) + eps)`."""
    # The scalars are combined outside of the map, and each ends in a division: XLA
    # computes a division once, but repeats a product in the loop over every leaf.
    unit = lax.rsqrt(c2)
    return tree.over_rms(tree.scale(1 / (c1 * unit), m), v, eps / unit, least=eps)


def adam(
    learning_rate: Rate,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: NonNegative = 1e-8,
) -> AnyTransform:
    """[`contrib_algos.Adam`][], multiplied by minus the learning rate.

    **Arguments:**

    - `learning_rate`: number or schedule, in units of the parameters.
    - `b1`, `b2`, `eps`: as for [`contrib_algos.Adam`][].

    **Raises:** `ValueError` for a negative rate, and as [`contrib_algos.Adam`][] does.
    """
    return descent(Adam(b1, b2, eps), learning_rate)


def adamw(
    learning_rate: Rate,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative | None = 1e-4,
    mask: Mask | None = None,
) -> AnyTransform:
    """[`contrib_algos.adam`][] with decoupled weight decay (arXiv 1711.05101).

    **Arguments:**

    - `learning_rate`, `b1`, `b2`, `eps`: as for [`contrib_algos.adam`][].
    - `weight_decay`: decay per step, as a multiple of the learning rate.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].

    **Raises:** `ValueError` as for [`contrib_algos.adam`][], and for a negative decay.
    """
    return descent(Adam(b1, b2, eps), learning_rate, weight_decay, mask)
