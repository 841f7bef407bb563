"""Every transform there is, one line each; `test_contract.py` runs all of them.

To try a new rule, add a line to `RULES`: it is then checked by itself, inside of every
wrapper, and for all that the project guarantees.
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
    """A transform, and what the contract must know about it.

    **Arguments:**

    - `descends`: it is a complete optimiser: on half the squared distance to a point,
        from a distance of about 1, it makes progress within 100 steps.
    - `narrow`: it does so on bfloat16 and float16 parameters too. If not, it must when
        wrapped in `master_weights`.
    - `ours`: there is nothing of optax in it. Optax keeps statistics in the dtypes of
        the parameters, where squares of 1e30 are infinite in float32, and under jit
        without their shardings.
    """

    transform: AbstractTransform
    descends: bool = True
    narrow: bool = True
    ours: bool = True


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
    "dog": Entry(dog(), narrow=False),
    "prodigy": Entry(prodigy(), narrow=False),
    "sps": Entry(readme.rule()),
    "optax_adam": Entry(as_transform(optax.adam(0.1)), ours=False),
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
    "adamw": Entry(adamw(0.1, weight_decay=0.01, mask=matrices)),
    "rms": Entry(chain(RMS(), scale_by_learning_rate(0.03))),
    "normalize": Entry(chain(normalize(), scale_by_learning_rate(0.1))),
    "dog_init": Entry(dog(init_learning_rate=1e-3), narrow=False),
    "dog_init_warmup": Entry(dog(from_zero, init_learning_rate=1e-3), narrow=False),
    "dog_decay": Entry(dog(from_zero, weight_decay=1e-3, mask=matrices), narrow=False),
    "prodigy_decay": Entry(prodigy(weight_decay=1e-3, beta3=0.99), narrow=False),
    "prodigy_warmup": Entry(prodigy(from_zero), narrow=False),
    "schedule_free_y": Entry(schedule_free(adamw(0.1), 0.1)),
    "schedule_free_warmup": Entry(
        schedule_free(sgd(tenth_from_zero), tenth_from_zero, state_dtype=jnp.float32)
    ),
    "schedule_free_b1_0": Entry(schedule_free(sgd(0.1), 0.1, b1=0.0)),
    "schedule_free_sgd": Entry(schedule_free_sgd(0.5)),
    "schedule_free_adamw": Entry(
        schedule_free_adamw(0.1, warmup_steps=5, weight_decay=1e-3, mask=matrices)
    ),
    "split_conjugate": Entry(split_real_and_imaginary(adam(0.1), conjugate=True)),
    "optax_chain": Entry(
        as_transform(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9))),
        ours=False,
    ),
    "chain": Entry(chain(Momentum(), add_decayed_weights(0.01), scale(-0.1))),
    "master_dog_warmup": Entry(master_weights(dog(from_zero))),
    "master_prodigy_warmup": Entry(master_weights(prodigy(from_zero))),
    # Parts of optimisers.
    "identity": Entry(chain(), descends=False),
    "decay": Entry(add_decayed_weights(0.01, matrices), descends=False),
    "direction": Entry(chain(normalize(), Momentum()), descends=False),
}


def _wrapped(wrapper: str, inner: str, entry: Entry) -> dict[str, Entry]:
    masters = wrapper == "master_weights"
    wrapped = Entry(
        WRAPPERS[wrapper](entry.transform),
        descends=entry.descends,
        narrow=entry.narrow or masters,
        ours=entry.ours,
    )
    return {f"{wrapper}({inner})": wrapped}


ONCE: dict[str, Entry] = {}
for _wrapper in WRAPPERS:
    for _name, _entry in RULES.items():
        ONCE |= _wrapped(_wrapper, _name, _entry)

TWICE: dict[str, Entry] = {}
for _wrapper in WRAPPERS:
    for _inner in WRAPPERS:
        _name = f"{_inner}(adam)"
        TWICE |= _wrapped(_wrapper, _name, ONCE[_name])

# Each by itself, and what is generated from them.
NAMED: dict[str, Entry] = RULES | VARIANTS
GENERATED: dict[str, Entry] = ONCE | TWICE
ZOO: dict[str, Entry] = NAMED | GENERATED
