"""Laws of optimisers, stated and verified.

A [`contrib_laws.Law`][] is a promise about transforms: part of the contract that every
transform keeps, a symmetry or an estimate that a rule declares, or the behaviour of a
wrapper. [`contrib_laws.check`][] tries to break all laws for a transform of this
distribution, of optax or of your own, and reports the smallest counterexamples.
[`contrib_laws.assert_lawful`][] does so in a test, and
`python -m contrib_laws MODULE:NAME` on the command line.

The strategies that draw problems and trees are public, for tests of your own.
"""

try:
    import hypothesis as _hypothesis
except ImportError as error:
    raise ImportError(
        'contrib_laws needs hypothesis: pip install "contrib-algebra[laws]".',
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
from ._names import (
    ContractName as ContractName,
    Group as Group,
    Name as Name,
    Selection as Selection,
    WrapperName as WrapperName,
)
from ._problem import (
    coordinates as coordinates,
    Layout as Layout,
    Problem as Problem,
    problems as problems,
)
from ._registry import LAWS as LAWS
from ._report import Report as Report
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
from .contract import provide_devices as provide_devices
from .wrappers._probe import probe as probe


del _hypothesis
