"""Every transform there is, one line each; `test_laws.py` runs all of them.

To try a new rule, add a line to `RULES`: it is then checked by itself, inside of every
wrapper, for all that the project guarantees and all that the rule claims.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import readme

from contrib_algos import (
    adam,
    adamw,
    dog,
    lion,
    Momentum,
    normalize,
    prodigy,
    RMS,
    sgd,
)
from contrib_core import (
    AbstractTransform,
    add_decayed_weights,
    as_transform,
    chain,
    ENTRYWISE,
    ISOMETRIES,
    masked,
    scale,
    scale_by_learning_rate,
)
from contrib_wrappers import (
    master_weights,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    split_real_and_imaginary,
)


@dataclass(frozen=True)
class Entry:
    """A transform, and what is not to be seen from it.

    **Arguments:**

    - `more`: laws that it obeys beyond those that it claims: of optax, which claims
        none, and of compositions, which claim what their parts have in common.
    - `fails`: laws of the contract that it breaks, because optax does.
    """

    transform: AbstractTransform
    more: frozenset[str] = frozenset()
    fails: frozenset[str] = frozenset()

    @property
    def laws(self) -> frozenset[str]:
        """All laws beyond the contract that it obeys."""
        return self.transform.laws | self.more


# Squares of 1e30 are infinite in float32; zeros are on every device under jit on
# automatic axes; statistics are as narrow as the parameters.
OPTAX = frozenset({"C5", "C8", "C9"})

DOG = frozenset({"bounded_growth", "initial_guess"})


def matrices(params: Any) -> Any:
    """A mask: the leaves with two axes or more."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def others(params: Any) -> Any:
    """A mask: the leaves that `matrices` leaves out."""
    return jax.tree.map(lambda x: x.ndim <= 1, params)


def from_zero(count: Any) -> Any:
    """A schedule: 0 at the first step, 1 from the fifth on."""
    return jnp.minimum(1.0, count / 5)


def tenth_from_zero(count: Any) -> Any:
    """A schedule: `from_zero`, up to 0.1."""
    return 0.1 * from_zero(count)


# What every wrapper is put around.
RULES: dict[str, Entry] = {
    "sgd": Entry(sgd(0.1)),
    "momentum": Entry(sgd(0.1, momentum=0.9)),
    "adam": Entry(adam(0.1)),
    "lion": Entry(lion(0.03)),
    "dog": Entry(dog()),
    "prodigy": Entry(prodigy()),
    "sps": Entry(readme.rule()),
    "optax_adam": Entry(as_transform(optax.adam(0.1)), more=ENTRYWISE, fails=OPTAX),
}

# What is put around every rule, and around every other wrapper. With `base_at="z"`, the
# base optimizer sees the parameters that its own updates have moved: so DoG does not
# wait for their average to move too. Rules that need the value need it at y.
WRAPPERS: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "schedule_free": lambda inner: schedule_free(
        inner, 0.1, base_at="y" if "value" in as_transform(inner).needs else "z"
    ),
    "split": split_real_and_imaginary,
    "masked": lambda inner: chain(masked(inner, matrices), masked(sgd(0.1), others)),
    "master_weights": master_weights,
    "chain": lambda inner: chain(inner, scale(1.0)),
}

VARIANTS: dict[str, Entry] = {
    "sgd_warmup": Entry(sgd(tenth_from_zero)),
    "nesterov": Entry(sgd(0.1, momentum=0.9, nesterov=True)),
    "adam_warmup": Entry(adam(tenth_from_zero)),
    "adam_eps_0": Entry(adam(0.1, eps=0.0)),
    "adamw": Entry(adamw(0.1, weight_decay=0.01, mask=matrices)),
    "lion_without_decay": Entry(lion(0.03, weight_decay=0.0)),
    "rms": Entry(chain(RMS(), scale_by_learning_rate(0.03))),
    "normalize": Entry(chain(normalize(), scale_by_learning_rate(0.1))),
    "dog_eps_0": Entry(dog(eps=0.0)),
    "dog_init": Entry(dog(init_learning_rate=1e-3)),
    "dog_init_warmup": Entry(
        dog(from_zero, init_learning_rate=1e-3), more=frozenset({"initial_guess"})
    ),
    "dog_decay": Entry(dog(from_zero, weight_decay=1e-3, mask=matrices), more=DOG),
    "prodigy_eps_0": Entry(prodigy(eps=0.0)),
    "prodigy_decay": Entry(prodigy(weight_decay=1e-3, beta3=0.99)),
    "prodigy_growth": Entry(prodigy(growth_rate=1.5)),
    "prodigy_warmup": Entry(prodigy(from_zero)),
    "schedule_free_y": Entry(schedule_free(adamw(0.1), 0.1)),
    "schedule_free_warmup": Entry(
        schedule_free(sgd(tenth_from_zero), tenth_from_zero, state_dtype=jnp.float32)
    ),
    "schedule_free_b1_0": Entry(
        schedule_free(sgd(0.1), 0.1, b1=0.0), more=frozenset({"neutral"})
    ),
    "schedule_free_sgd": Entry(schedule_free_sgd(0.5)),
    "schedule_free_adamw": Entry(
        schedule_free_adamw(0.1, warmup_steps=5, weight_decay=1e-3, mask=matrices)
    ),
    "split_conjugate": Entry(split_real_and_imaginary(adam(0.1), conjugate=True)),
    "optax_chain": Entry(
        as_transform(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9))),
        more=ISOMETRIES,
        fails=OPTAX - {"C5"},  # It clips first.
    ),
    "chain": Entry(chain(Momentum(), add_decayed_weights(0.01), scale(-0.1))),
    "master_dog_warmup": Entry(master_weights(dog(from_zero)), more=DOG),
    "master_prodigy_warmup": Entry(master_weights(prodigy(from_zero))),
    # Parts of optimisers.
    "identity": Entry(chain()),
    "decay": Entry(add_decayed_weights(0.01, matrices)),
    "direction": Entry(chain(normalize(), Momentum())),
}


def _wrapped(wrapper: str, inner: str, entry: Entry) -> dict[str, Entry]:
    return {
        f"{wrapper}({inner})": Entry(
            WRAPPERS[wrapper](entry.transform),
            fails=entry.fails - ({"C9"} if wrapper == "master_weights" else set()),
        )
    }


ONCE: dict[str, Entry] = {}
for _wrapper in WRAPPERS:
    for _name, _entry in RULES.items():
        ONCE |= _wrapped(_wrapper, _name, _entry)

TWICE: dict[str, Entry] = {}
for _wrapper in WRAPPERS:
    for _inner in WRAPPERS:
        _name = f"{_inner}(momentum)"
        TWICE |= _wrapped(_wrapper, _name, ONCE[_name])

# Each by itself, and what is generated from them.
NAMED: dict[str, Entry] = RULES | VARIANTS
GENERATED: dict[str, Entry] = ONCE | TWICE
ZOO: dict[str, Entry] = NAMED | GENERATED
