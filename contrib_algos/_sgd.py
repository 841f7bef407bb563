"""Stochastic gradient descent, with or without momentum."""

from contrib_core import AbstractState, AbstractTransform, AnyTransform, Extra, tree
from contrib_core.claims import ISOMETRIES, Laws
from contrib_core.ranges import Fraction, Rate, static
from contrib_core.typing import P, Tree

from ._recipe import descent


class MomentumState(AbstractState):
    """State of [`contrib_algos.Momentum`][]."""

    trace: P  # m_t, in units of the gradients


class Momentum(AbstractTransform[MomentumState]):
    r"""Heavy-ball momentum: $m_t = g_t + \mu m_{t-1}$.

    The result is $m_t$, or $g_t + \mu m_t$ with `nesterov`. This is a direction of
    ascent: put [`contrib_core.scale_by_learning_rate`][] behind it. It is linear in the
    gradients, and equivariant to translations and rotations.

    ??? cite "Reference"

        Sutskever, Martens, Dahl, Hinton, *On the importance of initialization and
        momentum in deep learning*, ICML 2013, equations (1) to (4).

    **Arguments:**

    - `momentum`: $\mu$, a decay rate in [0, 1).
    - `nesterov`: whether to look one step ahead (Nesterov's momentum).

    **Raises:** `ValueError` for a `momentum` outside [0, 1).
    """

    momentum: Fraction = 0.9
    nesterov: bool = static(False)

    @property
    def laws(self) -> Laws:
        """Every symmetry of a linear map that treats all coordinates alike."""
        return ISOMETRIES

    def start(self, params: Tree) -> MomentumState:
        return MomentumState(trace=tree.accumulator_like(params))

    def step(
        self, grads: Tree, state: MomentumState, params: Tree, extra: Extra
    ) -> tuple[Tree, MomentumState]:
        g, mu = tree.widen(grads), self.momentum
        m = tree.axpy(mu, state.trace, g)
        return tree.axpy(mu, m, g) if self.nesterov else m, MomentumState(trace=m)


def sgd(
    learning_rate: Rate, momentum: Fraction | None = None, nesterov: bool = False
) -> AnyTransform:
    """Gradient descent, with [`contrib_algos.Momentum`][] if `momentum` is given.

    **Arguments:**

    - `learning_rate`: number or schedule, in units of parameters over gradients.
    - `momentum`, `nesterov`: as for [`contrib_algos.Momentum`][].

    **Raises:** `ValueError` for a negative `learning_rate`, and for a `momentum`
    outside [0, 1).
    """
    rule = None if momentum is None else Momentum(momentum, nesterov)
    return descent(rule, learning_rate)
