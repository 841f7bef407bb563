"""Stochastic gradient descent, with momentum."""

import equinox as eqx

from contrib_core import (
    AbstractState,
    AbstractTransform,
    chain,
    check_fraction,
    Extra,
    ISOMETRIES,
    P,
    RealLike,
    RealOrSchedule,
    scale_by_learning_rate,
    Tree,
    tree,
)


class MomentumState(AbstractState[P]):
    """State of [`contrib_algos.Momentum`][]."""

    trace: P  # m_t, in units of the gradients


class Momentum(AbstractTransform[MomentumState[Tree]]):
    r"""Heavy-ball momentum: $m_t = g_t + \mu m_{t-1}$.

    Returns the direction of ascent $m_t$, or with `nesterov` $g_t + \mu m_t$; to be
    followed by [`contrib_core.scale_by_learning_rate`][]. Linear in the gradients.

    ??? cite "Reference"

        Sutskever, Martens, Dahl, Hinton, *On the importance of initialization and
        momentum in deep learning*, ICML 2013, equations (1) to (4).

    **Arguments:**

    - `decay`: $\mu$, in [0, 1).
    - `nesterov`: whether to look ahead.

    **Raises:** `ValueError` for a `decay` outside [0, 1).
    """

    decay: RealLike = 0.9
    nesterov: bool = eqx.field(default=False, static=True)

    def __post_init__(self):
        check_fraction(self, "decay")

    @property
    def laws(self) -> frozenset[str]:
        """It is linear in the gradients, and knows nothing else."""
        return ISOMETRIES

    def start(self, params: Tree) -> MomentumState[Tree]:
        return MomentumState(trace=tree.accumulator_like(params))

    def step(
        self, grads: Tree, state: MomentumState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, MomentumState[Tree]]:
        g = tree.widen(grads)
        m = tree.axpy(self.decay, state.trace, g)
        ascent = tree.axpy(self.decay, m, g) if self.nesterov else m
        return ascent, MomentumState(trace=m)


def sgd(
    learning_rate: RealOrSchedule,
    momentum: RealLike | None = None,
    nesterov: bool = False,
) -> AbstractTransform:
    """Gradient descent, with [`contrib_algos.Momentum`][] if `momentum` is given.

    **Arguments:**

    - `learning_rate`: number or schedule, in units of parameters over gradients.
    - `momentum`, `nesterov`: as for [`contrib_algos.Momentum`][].
    """
    direction = [] if momentum is None else [Momentum(momentum, nesterov)]
    return chain(*direction, scale_by_learning_rate(learning_rate))
