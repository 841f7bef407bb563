"""Lion: the sign of an interpolated momentum."""

import jax.numpy as jnp

from contrib_core import AbstractState, AbstractTransform, AnyTransform, Extra, tree
from contrib_core.claims import claim, ENTRYWISE, Laws
from contrib_core.ranges import Fraction, NonNegative, Rate
from contrib_core.typing import Mask, P, Tree

from ._recipe import descent


class LionState(AbstractState):
    """State of [`contrib_algos.Lion`][]."""

    exp_avg: P  # m_t


class Lion(AbstractTransform[LionState]):
    r"""The direction of Lion: $\text{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t)$.

    The momentum is then updated to $m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t$. The sign
    of a complex number is $z / |z|$. This is a direction of ascent: put
    [`contrib_core.scale_by_learning_rate`][] behind it. It is equivariant to
    translations and permutations, and invariant to the scale of the gradients.

    ??? cite "Reference"

        Chen et al., *Symbolic Discovery of Optimization Algorithms*, arXiv 2302.06675,
        algorithm 2.

    **Arguments:**

    - `b1`, `b2`: $\beta_1, \beta_2$, decay rates in [0, 1).

    **Raises:** `ValueError` for decay rates outside [0, 1).
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.99

    @property
    def laws(self) -> Laws:
        """It treats each coordinate separately, and a sign has no scale."""
        return ENTRYWISE | claim("gradient_scale")

    def start(self, params: Tree) -> LionState:
        return LionState(exp_avg=tree.accumulator_like(params))

    def step(
        self, grads: Tree, state: LionState, params: Tree, extra: Extra
    ) -> tuple[Tree, LionState]:
        ascent = tree.map(jnp.sign, tree.ema(state.exp_avg, grads, self.b1))
        return ascent, LionState(exp_avg=tree.ema(state.exp_avg, grads, self.b2))


def lion(
    learning_rate: Rate,
    b1: Fraction = 0.9,
    b2: Fraction = 0.99,
    weight_decay: NonNegative | None = 1e-3,
    mask: Mask | None = None,
) -> AnyTransform:
    """[`contrib_algos.Lion`][] with decoupled weight decay.

    **Arguments:**

    - `learning_rate`: number or schedule, in units of the parameters.
    - `b1`, `b2`: as for [`contrib_algos.Lion`][].
    - `weight_decay`: decay per step, as a multiple of the learning rate.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].

    **Raises:** `ValueError` as for [`contrib_algos.Lion`][], and for a negative
    `learning_rate` or `weight_decay`.
    """
    return descent(Lion(b1, b2), learning_rate, weight_decay, mask)
