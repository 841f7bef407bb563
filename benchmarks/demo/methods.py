"""What the demo compares: one line a method."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp

from contrib_algos import (
    adam,
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    momo,
    momo_adam,
    prodigy,
)
from contrib_core import AbstractTransform
from contrib_wrappers import (
    average,
    mechanize,
    schedule_free_adamw,
    schedule_free_sgd,
)


class Method(NamedTuple):
    """A recipe at its defaults, or for each of some learning rates."""

    recipe: Callable[..., AbstractTransform]
    learning_rates: tuple[float, ...] = ()

    def transform(self) -> AbstractTransform:
        """The recipe's; if there are learning rates, with all of them in its field, for
        `eqx.filter_vmap`."""
        if not self.learning_rates:
            return self.recipe()
        rates = jnp.asarray(self.learning_rates, jnp.float32)
        return eqx.filter_vmap(self.recipe)(rates)


FOUR_DECADES = tuple(10 ** (-5 + 4 * i / 7) for i in range(8))

METHODS = {
    "adam": Method(adam, FOUR_DECADES),
    "dog": Method(dog),
    "average(dog)": Method(lambda: average(dog())),
    "dowg": Method(dowg),
    "prodigy": Method(prodigy),
    "dadapt_adamw": Method(dadapt_adamw),
    "cocob": Method(cocob),
    "momo": Method(momo),
    "momo_adam": Method(momo_adam),
    "mechanize(adam)": Method(lambda: mechanize(adam(1.0))),
    "schedule_free_sgd": Method(schedule_free_sgd),
    "schedule_free_adamw": Method(schedule_free_adamw),
}
