"""A bound on the difference between two runs that is due to rounding alone."""

import numpy as np

from ._law import Unsuited
from ._run import JITTER, Run


UNIT = 2.0**-53
"""The rounding unit of double precision, in which problems are run."""


def rounding(exact: Run, jittered: Run) -> np.ndarray:
    r"""The largest difference of two updates, at each step, that rounding can explain.

    The condition $\kappa$ of a run is measured. It is the factor by which the run
    amplifies relative perturbations, of size `JITTER`, of the gradients and the
    parameters that the rule gets, because rounding enters there. Each of $T$ steps
    consists of some dozens of operations, and perturbs its results by at most as many
    units $u = 2^{-53}$. Together this gives $2^8\, T u\, (\kappa + 1)$ times the
    largest update. A mutant that rounds to single precision has an error of $2^{29} u$.
    Moreover, updates are added to rounded parameters, so differences below $2^4 u$
    times the largest parameter do not count.

    **Raises:** `Unsuited` if the response is not small. At a discontinuity, such as
    that of the sign function, a comparison means nothing.
    """
    difference = np.abs(jittered.updates - exact.updates)
    change = np.maximum.accumulate(np.max(difference, axis=1))
    largest = np.maximum.accumulate(np.max(np.abs(exact.updates), axis=1))
    if not np.isfinite(change).all():
        raise Unsuited("the updates are not finite in any drawn case")
    if np.any(change > 2.0**-6 * largest):
        raise Unsuited("every drawn case is at the edge of a discontinuity")
    befores = exact.points - exact.updates
    parameter = max(np.max(np.abs(exact.points)), np.max(np.abs(befores)))
    amplified = 2.0**8 * len(change) * UNIT * (change / JITTER + largest)
    return amplified + 2.0**4 * UNIT * parameter
