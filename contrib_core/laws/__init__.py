"""Invariants of optimisers, stated and verified.

A [`contrib_core.laws.Law`][] is a promise about transforms: one of the contract, which
everything keeps, a symmetry that a rule declares, or what a wrapper does. `check`
tries to break all of them for a transform of this package, of optax, or of your own,
and returns a report with the smallest counterexamples; `assert_lawful` does so in a
test, and `python -m contrib_core.laws MODULE:NAME` on the command line.

The strategies that problems and trees are drawn from are for everybody's tests.
"""

try:
    import hypothesis as _hypothesis
except ImportError as error:
    raise ImportError(
        'contrib_core.laws needs hypothesis: pip install "contrib-algebra[laws]".',
        name=__name__,
    ) from error

from ._check import assert_lawful as assert_lawful, check as check
from ._law import (
    Broken as Broken,
    Fault as Fault,
    Law as Law,
    Outcome as Outcome,
    Unsuited as Unsuited,
    Verdict as Verdict,
)
from ._problem import (
    coordinates as coordinates,
    Layout as Layout,
    Problem as Problem,
    problems as problems,
)
from ._registry import LAWS as LAWS
from ._report import Report as Report
from ._sharding_law import provide_devices as provide_devices
from ._strategies import (
    DTYPES as DTYPES,
    fill as fill,
    is_wide as is_wide,
    largest as largest,
    Node as Node,
    numbers as numbers,
    pairs as pairs,
    precision as precision,
    reals as reals,
    scalars as scalars,
    structures as structures,
    trees as trees,
)
from ._subject import Subject as Subject


del _hypothesis
