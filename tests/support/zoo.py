"""Every transform, one line each; `laws/test_laws.py` checks all of them.

To try a new rule, add a line to `RULES`. The tests then check it alone and inside of
every wrapper, for everything that the project guarantees and that the rule claims.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from contrib_algos import (
    adam,
    adamw,
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    dpsgd,
    GaussianNoise,
    lion,
    Momentum,
    momo,
    momo_adam,
    normalize,
    prodigy,
    RMS,
    sgd,
    value_and_clipped_grad,
)
from contrib_core import (
    AbstractMechanism,
    AbstractTransform,
    add_decayed_weights,
    as_transform,
    Caller,
    chain,
    ENTRYWISE,
    Extra,
    ISOMETRIES,
    masked,
    scale,
    scale_by_learning_rate,
    Tree,
    tree,
)
from contrib_core.claims import claim, Laws, Needs, PARAMS
from contrib_wrappers import (
    average,
    bucketed,
    exponential,
    layerwise,
    master_weights,
    mechanize,
    sam,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
    split_real_and_imaginary,
    uniform,
)
from support import readme


@dataclass(frozen=True)
class Entry:
    """A transform, and facts that it does not state itself.

    **Arguments:**

    - `more`: laws that it obeys without claiming them. Transforms of optax claim none,
        and compositions claim only laws that all of their parts claim.
    - `fails`: laws of the contract that it breaks, because optax breaks them.
    """

    transform: AbstractTransform
    more: Laws = frozenset()
    fails: frozenset[str] = frozenset()

    @property
    def laws(self) -> Laws:
        """All laws beyond the contract that it obeys."""
        return self.transform.laws | self.more


# Squares of 1e30 are infinite in float32; zeros are on every device under jit on
# automatic axes; statistics are as narrow as the parameters.
OPTAX = frozenset({"finiteness", "sharding", "precision"})

LINEAR = OPTAX - {"finiteness"}

DOG = claim("bounded_growth", "initial_guess")


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


class OfExamples(AbstractTransform[Any]):
    """A transform that makes gradients of examples from a gradient, with `examples`,
    and passes them to a mechanism. The laws can thus check the mechanism."""

    inner: AbstractMechanism[Any]
    examples: Callable[[Tree], Any]

    @property
    def needs(self) -> Needs:
        return self.inner.needs | PARAMS

    @property
    def laws(self) -> Laws:
        return self.inner.laws

    def start(self, params: Tree) -> Any:
        return self.inner.start(params)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        caller = Caller(self.inner)
        received = self.inner.receive(caller, self.examples(grads), params)
        return self.inner.step(received, state, params, extra)


def stacked(grads: Tree) -> Tree:
    """The gradients of three examples: multiples with different lengths and signs."""
    return jax.tree.map(lambda g: jnp.stack([g, g / 2, -g / 4]), grads)


def clipped(grads: Tree) -> Any:
    """The clipped sum of the gradients that `stacked` returns."""

    def loss(params: Tree, weight: Any) -> Any:
        conjugate = jax.tree.map(jnp.conj, grads)
        return weight * tree.dot(conjugate, params)

    at = tree.zeros_like(grads)
    return value_and_clipped_grad(loss, 1.0)(at, jnp.array([1.0, 0.5, -0.25]))


# Every wrapper is put around each of these.
RULES: dict[str, Entry] = {
    "sgd": Entry(sgd(0.1)),
    "momentum": Entry(sgd(0.1, momentum=0.9)),
    "adam": Entry(adam(0.1)),
    "lion": Entry(lion(0.03)),
    "dog": Entry(dog()),
    "dowg": Entry(dowg()),
    "prodigy": Entry(prodigy()),
    "dadapt_adamw": Entry(dadapt_adamw()),
    "cocob": Entry(cocob()),
    "momo": Entry(momo()),
    "momo_adam": Entry(momo_adam()),
    "sps": Entry(readme.rule()),
    "optax_sgd": Entry(
        as_transform(optax.sgd(0.1)),
        more=ISOMETRIES,  # It has no state.
    ),
    "optax_adam": Entry(as_transform(optax.adam(0.1)), more=ENTRYWISE, fails=OPTAX),
    # It needs the parameters, and optax has no way to say so.
    "optax_lion": Entry(
        as_transform(optax.lion(0.03, weight_decay=0.0)),
        more=ENTRYWISE | claim("gradient_scale"),
        fails=LINEAR | {"extras"},
    ),
}


def _schedule_free(inner: AbstractTransform) -> AbstractTransform:
    """Schedule-free with `base_at="z"`, unless the rule needs the value, taken at y.

    At z, the base optimizer gets the parameters that its own updates have moved. The
    distance of DoG then grows without waiting for the average to move.
    """
    base_at = "y" if "value" in as_transform(inner).needs else "z"
    return schedule_free(inner, 0.1, base_at=base_at)


# Each of these is put around every rule, and around every other wrapper.
WRAPPERS: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "schedule_free": _schedule_free,
    "mechanize": mechanize,
    "sam": lambda inner: sam(inner, chain(normalize(), sgd(0.05))),
    "average": average,
    "split": split_real_and_imaginary,
    "masked": lambda inner: chain(masked(inner, matrices), masked(sgd(0.1), others)),
    "master_weights": master_weights,
    "chain": lambda inner: chain(inner, scale(1.0)),
}

# These regroup leaves; each is put around and inside of every wrapper.
REGROUPING: dict[str, Callable[[AbstractTransform], AbstractTransform]] = {
    "layerwise": layerwise,
    "bucketed": lambda inner: bucketed(inner, leaves=3, max_size=6),
}

# Compositions that make no sense, with a part of their error. Mechanic rescales the
# parameters from which these inner transforms recover points of their own. Transforms
# that distinguish leaves must not receive joined ones.
_RECOVERS, _DISTINGUISHES = "recovers points of its own", "the law `partition`"
REFUSED = {
    "mechanize(cocob)": _RECOVERS,
    "mechanize(schedule_free(momentum))": _RECOVERS,
    "mechanize(mechanize(momentum))": _RECOVERS,
    "mechanize(sam(momentum))": _RECOVERS,
    "mechanize(average(momentum))": _RECOVERS,
    "bucketed(masked(momentum))": _DISTINGUISHES,
    "bucketed(layerwise(momentum))": _DISTINGUISHES,
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
        dog(from_zero, init_learning_rate=1e-3), more=claim("initial_guess")
    ),
    "dog_decay": Entry(dog(from_zero, weight_decay=1e-3, mask=matrices), more=DOG),
    "dowg_eps_0": Entry(dowg(init_estim_sq_dist=1e-6, eps=0.0)),
    "dowg_decay": Entry(dowg(from_zero, weight_decay=1e-3, mask=matrices), more=DOG),
    "prodigy_eps_0": Entry(prodigy(eps=0.0)),
    "prodigy_decay": Entry(prodigy(weight_decay=1e-3, beta3=0.99)),
    "prodigy_growth": Entry(prodigy(growth_rate=1.5)),
    "prodigy_warmup": Entry(prodigy(from_zero)),
    "dadapt_eps_0": Entry(dadapt_adamw(eps=0.0)),
    "dadapt_decay": Entry(dadapt_adamw(weight_decay=1e-3, betas=(0.8, 0.99))),
    "dadapt_warmup": Entry(dadapt_adamw(from_zero, use_bias_correction=False)),
    "cocob_decay": Entry(cocob(from_zero, weight_decay=1e-3, mask=matrices)),
    "cocob_eps_0": Entry(cocob(eps=0.0)),
    "momo_polyak": Entry(momo(math.inf)),
    "momo_adapt": Entry(
        momo(from_zero, weight_decay=0.1, lower_bound=-1.0, adapt_lower_bound=True)
    ),
    "momo_adam_polyak": Entry(momo_adam(math.inf, eps=0.0)),
    "momo_adam_adapt": Entry(
        momo_adam(0.1, weight_decay=0.1, lower_bound=-1.0, adapt_lower_bound=True)
    ),
    "mechanize_adam": Entry(mechanize(adam(1.0), weight_decay=0.0)),
    "mechanize_delta": Entry(mechanize(sgd(1.0, momentum=0.9), store_delta=True)),
    "average_uniform": Entry(average(sgd(0.1, momentum=0.9), uniform())),
    "average_exponential": Entry(average(adam(0.1), exponential(0.9))),
    "dog_layer_wise": Entry(layerwise(dog())),
    "layerwise": Entry(
        layerwise(sgd(0.1, momentum=0.9)), more=ISOMETRIES | claim("neutral")
    ),
    "bucketed": Entry(bucketed(adam(0.1), leaves=3, max_size=6)),
    "bucketed_dog": Entry(bucketed(dog(), leaves=3, max_size=6)),
    "sam_opaque": Entry(
        sam(adam(0.1), chain(normalize(), sgd(0.05)), sync_period=3, opaque_mode=True)
    ),
    "sam_adaptive": Entry(
        sam(sgd(0.1), chain(normalize(), sgd(0.05)), adaptive=True, reset_state=False)
    ),
    "schedule_free_y": Entry(schedule_free(adamw(0.1), 0.1)),
    "schedule_free_warmup": Entry(
        schedule_free(sgd(tenth_from_zero), tenth_from_zero, state_dtype=jnp.float32)
    ),
    "schedule_free_b1_0": Entry(
        schedule_free(sgd(0.1), 0.1, b1=0.0), more=claim("neutral")
    ),
    "schedule_free_sgd": Entry(schedule_free_sgd(0.5)),
    "schedule_free_adamw": Entry(
        schedule_free_adamw(0.1, warmup_steps=5, weight_decay=1e-3, mask=matrices)
    ),
    "split_conjugate": Entry(split_real_and_imaginary(adam(0.1), conjugate=True)),
    "optax_chain": Entry(
        as_transform(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9))),
        more=ISOMETRIES,
        fails=LINEAR,  # It clips first, so that 1e30 does no harm.
    ),
    "chain": Entry(chain(Momentum(), add_decayed_weights(0.01), scale(-0.1))),
    "master_dog_warmup": Entry(master_weights(dog(from_zero)), more=DOG),
    "master_prodigy_warmup": Entry(master_weights(prodigy(from_zero))),
    "dpsgd": Entry(OfExamples(dpsgd(0.1, 1.0, 0.1, 42, momentum=0.9), stacked)),
    "clipped_grad": Entry(
        OfExamples(chain(GaussianNoise(0.1, 42), scale(-0.1)), clipped)
    ),
    # Parts of optimisers.
    "identity": Entry(chain()),
    "decay": Entry(add_decayed_weights(0.01, matrices)),
    "direction": Entry(chain(normalize(), Momentum())),
}


def _around(wrapper: str, inner: dict[str, Entry]) -> dict[str, Entry]:
    """A wrapper around each of some transforms, except those that it refuses."""
    made = {}
    for inner_name, entry in inner.items():
        if (name := f"{wrapper}({inner_name})") not in REFUSED:
            transform = (WRAPPERS | REGROUPING)[wrapper](entry.transform)
            # Inner transforms of these see wide parameters.
            wide = wrapper in ("master_weights", "schedule_free")
            healed = {"precision"} if wide else set()
            healed |= {"extras"} if "params" in transform.needs else set()
            made[name] = Entry(transform, fails=entry.fails - healed)
    return made


ONCE: dict[str, Entry] = {}
for _wrapper in WRAPPERS:
    ONCE |= _around(_wrapper, RULES)

_AROUND_ONE = {k: entry for k, entry in ONCE.items() if k.endswith("(momentum)")}
TWICE: dict[str, Entry] = {}
for _wrapper in WRAPPERS:
    TWICE |= _around(_wrapper, _AROUND_ONE)

REGROUPED: dict[str, Entry] = {}
for _wrapper in REGROUPING:
    REGROUPED |= _around(_wrapper, {"momentum": RULES["momentum"]})
_REGROUPED_ONE = dict(REGROUPED)
for _wrapper in REGROUPING:
    REGROUPED |= _around(_wrapper, _AROUND_ONE | _REGROUPED_ONE)
for _wrapper in WRAPPERS:
    REGROUPED |= _around(_wrapper, _REGROUPED_ONE)

# A sample: each wrapper is the outermost once, the middle once and the innermost once.
THRICE: dict[str, Entry] = {}
for _i, _wrapper in enumerate(WRAPPERS):
    _middle, _inmost = (list(WRAPPERS)[_i - k] for k in (2, 5))
    _name = f"{_middle}({_inmost}(momentum))"
    THRICE |= _around(_wrapper, {_name: TWICE[_name]})

# Transforms with names of their own, and all compositions.
NAMED: dict[str, Entry] = RULES | VARIANTS
ZOO: dict[str, Entry] = NAMED | ONCE | TWICE | THRICE | REGROUPED
