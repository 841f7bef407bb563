"""Adam without momentum: gradients over the root of their second moment."""

from contrib_core import AbstractState, AbstractTransform, Extra, tree
from contrib_core.claims import ENTRYWISE, Laws, laws_if_zero
from contrib_core.ranges import Fraction, NonNegative
from contrib_core.schedule import debias, increment, zero_count
from contrib_core.typing import Count, P, Tree

from ._adam import direction


class RMSState(AbstractState):
    """State of [`contrib_algos.RMS`][]."""

    exp_avg_sq: P  # v_t
    count: Count  # t


class RMS(AbstractTransform[RMSState]):
    r"""[`contrib_algos.Adam`][] with $\beta_1 = 0$ and without its first-moment buffer.

    Use it where something else replaces momentum, such as an average of the iterates.
    Arguments, invariances, errors and the reference are those of
    [`contrib_algos.Adam`][].
    """

    b2: Fraction = 0.999
    eps: NonNegative = 1e-8

    @property
    def laws(self) -> Laws:
        """It treats each coordinate separately, and only `eps` has a unit."""
        return ENTRYWISE | laws_if_zero(self.eps, "gradient_scale")

    def start(self, params: Tree) -> RMSState:
        return RMSState(tree.accumulator_like(params, real=True), zero_count())

    def step(
        self, grads: Tree, state: RMSState, params: Tree, extra: Extra
    ) -> tuple[Tree, RMSState]:
        count = increment(state.count)
        v = tree.ema(state.exp_avg_sq, tree.abs_sq(grads), self.b2)
        c2 = debias(self.b2, count, like=v)
        ascent = direction(tree.saturate(grads), v, 1.0, c2, self.eps)
        return ascent, RMSState(exp_avg_sq=v, count=count)
