"""Lion: the sign of an interpolated momentum."""

from typing import Any

import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    add_decayed_weights,
    chain,
    check_fraction,
    ENTRYWISE,
    Extra,
    P,
    RealLike,
    RealOrSchedule,
    scale_by_learning_rate,
    Tree,
    tree,
)


class LionState(AbstractState[P]):
    """State of [`contrib_algos.Lion`][]."""

    exp_avg: P  # m_t


class Lion(AbstractTransform[LionState[Tree]]):
    r"""The direction of Lion: $\text{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t)$.

    Then $m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t$. A direction of ascent, to be
    followed by [`contrib_core.scale_by_learning_rate`][]; the sign of a complex number
    is $z / |z|$. Invariant to the scale of the gradients.

    ??? cite "Reference"

        Chen et al., *Symbolic Discovery of Optimization Algorithms*, arXiv 2302.06675,
        algorithm 2.

    **Arguments:**

    - `b1`, `b2`: decay rates, in [0, 1).

    **Raises:** `ValueError` for decay rates outside [0, 1).
    """

    b1: RealLike = 0.9
    b2: RealLike = 0.99

    def __post_init__(self):
        check_fraction(self, "b1", "b2")

    @property
    def laws(self) -> frozenset[str]:
        """Those of signs: it works coordinate by coordinate."""
        return ENTRYWISE | {"gradient_scale"}

    def start(self, params: Tree) -> LionState[Tree]:
        return LionState(exp_avg=tree.accumulator_like(params))

    def step(
        self, grads: Tree, state: LionState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, LionState[Tree]]:
        ascent = tree.map(jnp.sign, tree.ema(state.exp_avg, grads, self.b1))
        return ascent, LionState(exp_avg=tree.ema(state.exp_avg, grads, self.b2))


def lion(
    learning_rate: RealOrSchedule,
    b1: RealLike = 0.9,
    b2: RealLike = 0.99,
    weight_decay: RealLike = 1e-3,
    mask: Any = None,
) -> AbstractTransform:
    """[`contrib_algos.Lion`][] with decoupled weight decay.

    **Arguments:**

    - `learning_rate`: number or schedule, in units of the parameters.
    - `b1`, `b2`: as for [`contrib_algos.Lion`][].
    - `weight_decay`: decay per step in units of the learning rate.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].
    """
    return chain(
        Lion(b1, b2),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
