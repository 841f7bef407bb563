"""The rules that are measured, each beside its counterpart in optax."""

import re
from dataclasses import dataclass
from typing import Any

import optax
from optax import contrib

from contrib_algos import (
    adam,
    adamw,
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    dpsgd,
    lion,
    momo,
    momo_adam,
    normalize,
    prodigy,
    sgd,
)
from contrib_core import chain
from contrib_wrappers import (
    average,
    master_weights,
    mechanize,
    sam,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    split_real_and_imaginary,
)

from ..trees import Shapes


@dataclass(frozen=True)
class Rule:
    """A row of the tables.

    **Arguments:**

    - `ours`: our transform.
    - `peer`: optax's, or `None` where optax has none.
    - `passes`: the passes over the trees, which show why a step cannot move fewer
        bytes. Each pass waits for a scalar from the pass before it. It is written as
        `trees that it reads > trees that it writes`, in the symbols of the rule (`x`
        for the parameters, `g` for the gradients). `2m` is a tree of twice the bytes of
        the parameters, such as a float32 statistic of bfloat16 parameters.
    - `dtype`: the dtype of the parameters.
    - `most`: the streams and temp that `--check` allows, `None` for no limit but the
        peer's.
    - `guards`, `leaf_guards`: the instructions that the peer lacks: on scalars, against
        0/0, and in each leaf, against squares and products that overflow.
    - `more`: the streams and temp of work that the peer does not do.
    - `examples`: the number of examples if the rule takes the gradient of each, `None`
        if it takes their mean.
    """

    ours: Any  # A `Transform`, or an `AbstractMechanism`.
    peer: optax.GradientTransformation | None
    passes: str
    dtype: str = "float32"
    most: tuple[float, float] | None = None
    guards: int = 0
    leaf_guards: int = 0
    more: tuple[float, float] = (0, 0)
    examples: int | None = None

    def gradients(self, shapes: Shapes) -> Shapes:
        """The shapes of the gradients of parameters with these shapes."""
        rows = () if self.examples is None else (self.examples,)
        return {name: (*rows, *shape) for name, shape in shapes.items()}

    @property
    def floor(self) -> int:
        """The fewest streams: trees read and written, in bytes of the parameters."""
        trees = re.findall(r"(\d*)[a-z]\w*", self.passes)
        return sum(int(factor or 1) for factor in trees)


LR = 1e-3
DECAY = 0.1

ADAM = "g m v x > m v x"
# The step waits for the scalar that scales it, a sum over all gradients. The distance
# to x0 is summed up while the new parameters are written.
DOG = "g > ; g x x0 > x"
DOG_DECAY = "g x > ; g x x0 > x"
# The new distance takes effect in the next step, so one pass suffices.
DADAPT = "g s m v x > s m v x"
# The second pass waits for the norm of the new s.
PRODIGY = "g s x x0 > s ; g m v x > m v x"
# w is the float32 copy, which alone determines the new parameters.
MASTER_PRODIGY = "g 2s 2w 2x0 > 2s ; g 2m 2v 2w > 2m 2v 2w x"

RULES = {
    "sgd": Rule(sgd(LR), optax.sgd(LR), "g x > x"),
    "momentum": Rule(sgd(LR, 0.9), optax.sgd(LR, 0.9), "g m x > m x"),
    "nesterov": Rule(sgd(LR, 0.9, True), optax.sgd(LR, 0.9, True), "g m x > m x"),
    "adam": Rule(adam(LR), optax.adam(LR), ADAM),
    "adamw": Rule(adamw(LR), optax.adamw(LR), ADAM),
    "lion": Rule(lion(LR), optax.lion(LR), "g m x > m x"),
    "normalize": Rule(normalize(), contrib.normalize(), "g > ; g x > x", guards=5),
    "dog": Rule(dog(), contrib.dog(), DOG),
    "dog_decay": Rule(
        dog(weight_decay=DECAY), contrib.dog(weight_decay=DECAY), DOG_DECAY
    ),
    "dowg": Rule(dowg(), contrib.dowg(), DOG, guards=31),
    "cocob": Rule(
        cocob(), contrib.cocob(), "g x x0 n l t r > n l t r x", leaf_guards=25
    ),
    "dadapt_adamw": Rule(
        dadapt_adamw(), contrib.dadapt_adamw(), DADAPT, guards=37, leaf_guards=17
    ),
    "momo": Rule(momo(), contrib.momo(), "g m x > m ; m x > x"),
    "momo_adam": Rule(momo_adam(), contrib.momo_adam(), "g m v x > m v ; m v x > x"),
    "prodigy": Rule(prodigy(), contrib.prodigy(), PRODIGY),
    "prodigy_decay": Rule(
        prodigy(weight_decay=DECAY), contrib.prodigy(weight_decay=DECAY), PRODIGY
    ),
    "schedule_free": Rule(
        schedule_free(sgd(LR), LR),
        contrib.schedule_free(optax.sgd(LR), LR),
        "g x z > x z",
        most=(7, 0),
    ),
    "schedule_free_sgd": Rule(
        schedule_free_sgd(LR),
        contrib.schedule_free_sgd(LR),
        "g x z > x z",
        most=(7, 0),
    ),
    "schedule_free_adamw": Rule(
        schedule_free_adamw(LR), contrib.schedule_free_adamw(LR), "g v x z > v x z"
    ),
    "schedule_free_adam": Rule(
        schedule_free(adam(LR), LR),
        contrib.schedule_free(optax.adam(LR), LR),
        "g m v x z > m v x z",
    ),
    "mechanize_sgd": Rule(
        mechanize(sgd(LR)), contrib.mechanize(optax.sgd(LR)), "g x x0 > ; g x x0 > x"
    ),
    "mechanize_adam": Rule(
        mechanize(adam(LR)),
        contrib.mechanize(optax.adam(LR)),
        "g x x0 > ; g x x0 m v > x m v",
    ),
    # The compiled step contains a step of the adversary, which waits for the norm, and
    # one of the optimiser.
    "sam": Rule(
        sam(sgd(LR), chain(normalize(), sgd(0.05))),
        contrib.sam(optax.sgd(LR), optax.chain(contrib.normalize(), optax.sgd(0.05))),
        "g > ; g x cache > x cache",
    ),
    # The second pass waits for the norms of the four gradients. Noise is drawn four
    # times, in a loop, and the sum has twice the precision.
    "dpsgd": Rule(
        dpsgd(LR, 1.0, 1.0, 0),
        optax.chain(
            contrib.differentially_private_aggregate(1.0, 1.0, key=0), optax.sgd(LR)
        ),
        "4g > ; 4g x > x",
        guards=600,
        leaf_guards=120,
        more=(14, 4),
        examples=4,
    ),
    "average": Rule(average(sgd(LR)), None, "g x a > x a"),
    "split": Rule(
        split_real_and_imaginary(adam(LR)),
        contrib.split_real_and_imaginary(optax.adam(LR)),
        ADAM,
        dtype="complex64",
    ),
    "master_weights": Rule(
        master_weights(prodigy()), None, MASTER_PRODIGY, dtype="bfloat16"
    ),
}
