"""The methods that the demo compares, one line each."""

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
    """A recipe with its defaults, or with each of some learning rates."""

    recipe: Callable[..., AbstractTransform]
    learning_rates: tuple[float, ...] = ()

    def transform(self) -> AbstractTransform:
        """The transform of the recipe.

        If there are learning rates, its field holds all of them, for `eqx.filter_vmap`.
        """
        if not self.learning_rates:
            return self.recipe()
        rates = jnp.asarray(self.learning_rates, jnp.float32)
        return eqx.filter_vmap(lambda rate: self.recipe(rate))(rates)


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
