"""Every check of the contract catches what is broken.

The mutants have `init` and `update` of their own, without the boundary of
`AbstractTransform`, which would refuse some of them first.
"""

import itertools
from collections.abc import Callable
from typing import Any

import contract
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.core import Tracer
from jax.sharding import AxisType

from contrib_algos import dog
from contrib_core import AbstractTransform, as_transform, Extra, scale, Tree, tree
from contrib_wrappers import schedule_free


class Momentum(eqx.Module):
    """Momentum that keeps the contract; each mutant replaces a part of it."""

    rate: Any = 0.1
    needs: frozenset[str] = frozenset()

    def init(self, params: Any) -> Any:
        params = eqx.filter(params, eqx.is_inexact_array)
        return jax.tree.map(lambda p: tree.accumulator_like(jnp.array(p)), params)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        grads = eqx.filter(grads, eqx.is_inexact_array)
        like = grads if params is None else eqx.filter(params, eqx.is_inexact_array)
        like = jax.tree.map(jnp.asarray, like)
        grads = tree.widen(jax.tree.map(jnp.asarray, grads))
        state = tree.add(tree.scale(0.9, state), grads)
        return tree.cast_like(tree.scale(-self.rate, state), like), state


base = Momentum()
CHECKS: dict[str, Callable[[Any], None]] = {
    "C1": contract.check_types,
    "C1 of one kind": contract.check_types_of_one_kind,
    "C2": contract.check_constant_state,
    "C3": contract.check_transformations,
    "C4": contract.check_purity,
    "C5": contract.check_finite,
    "C5 wide": lambda t: contract.check_finite(t, mixed=False),
    "C5 of optax": lambda t: contract.check_finite(t, ours=False, mixed=False),
    "C5 narrow": contract.check_finite_narrow,
    "C6": contract.check_extras,
    "C7": contract.check_equinox_checkpoint,
    "C8 explicit": lambda t: contract.check_sharding(t, AxisType.Explicit),
    "C8 auto": lambda t: contract.check_sharding(t, AxisType.Auto),
    "C9": lambda t: contract.check_low_precision(t, jnp.bfloat16),
    "C10": contract.check_composition,
    "C10 wrappers": contract.check_wrappers,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_what_is_not_broken_passes(check: Callable[[Any], None]):
    check(base)


class Mutant(eqx.Module):
    """`base` with another `init` or `update`, functions as those of optax."""

    init: Callable[..., Any] = base.init
    update: Callable[..., Any] = base.update
    needs: frozenset[str] = frozenset()


def changed(of_updates=lambda u: u, of_state=lambda s: s) -> Callable[..., Any]:
    """The `update` of `base`, with changes to what it returns."""

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, state = base.update(grads, state, params, **extra)
        return of_updates(updates), of_state(state)

    return update


# C1


def to_float32(x: Any) -> Any:
    return jax.tree.map(lambda u: u.real.astype(jnp.float32), x)


def no_zero_size(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    largest = max(jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads))
    return base.update(jax.tree.map(lambda g: g / largest, grads), state, params)


def only_arrays(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)


def one_dtype(params: Any) -> Any:
    if len({p.dtype for p in jax.tree.leaves(params)}) > 1:
        raise TypeError("There must be one dtype.")
    return base.init(params)


# C2


def counted(init: Callable[[], Any], increment: Callable[[Any], Any]) -> Mutant:
    """With a counter in its state."""

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = base.update(grads, state[0], params)
        return updates, (inner, increment(state[1]))

    return Mutant(lambda params: (base.init(params), init()), update)


class Compiled(eqx.Module):
    """A part of a state that is static, so that it is not saved, and retraces."""

    value: int = eqx.field(static=True)


def with_static(params: Any) -> Any:
    return base.init(params), Compiled(0)


def alternating(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    inner, phase = state
    updates, inner = base.update(grads, inner, params)
    if phase.value % 2:
        updates = jax.tree.map(lambda u: 0.5 * u, updates)
    return updates, (inner, Compiled(phase.value + 1))


# C3


class CallCounter:
    """An impure schedule."""

    def __init__(self):
        self.calls = 0

    def __call__(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        self.calls += 1
        updates, state = base.update(grads, state, params)
        return jax.tree.map(lambda u: u / self.calls, updates), state


class StaticRate(eqx.Module):
    """Decides by the value of a hyperparameter, which may be traced."""

    rate: Any = 0.1
    needs: frozenset[str] = frozenset()

    def init(self, params: Any) -> Any:
        return base.init(params)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return Momentum(float(self.rate)).update(grads, state, params)


# C4


class InPlace(eqx.Module):
    """Scales the gradients of NumPy where they are."""

    needs: frozenset[str] = frozenset()

    def init(self, params: Any) -> Any:
        return base.init(params)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        for g in jax.tree.leaves(grads):
            if isinstance(g, np.ndarray):
                g *= 2
        return base.update(grads, state, params)


def anchored(init: Callable[[Any], Any]) -> Mutant:
    """With its first parameters in the state, taken by `init`."""

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = base.update(grads, state[0], params)
        return updates, (inner, state[1])

    return Mutant(lambda params: (base.init(params), init(params)), update)


class SharedRate(eqx.Module):
    """Keeps its hyperparameter in the state."""

    rate: Any = 0.1
    needs: frozenset[str] = frozenset()

    def init(self, params: Any) -> Any:
        return base.init(params), jnp.asarray(self.rate, jnp.float32)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = Momentum(self.rate).update(grads, state[0], params)
        return updates, (inner, state[1])


# C5


def with_gradients(change: Callable[[Any], Any]) -> Mutant:
    """Momentum of other gradients."""

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return base.update(change(grads), state, params)

    return Mutant(update=update)


def normalized(grads: Any) -> Any:
    norm = jnp.sqrt(tree.sq_norm(grads))
    return jax.tree.map(lambda g: g / norm.astype(g.dtype), grads)


def leafwise(grads: Any) -> Any:
    return jax.tree.map(lambda g: g / jnp.abs(g), grads)


def squared(grads: Any) -> Any:
    """Shrinks small gradients, by squares that overflow: those of 1e30 are 1e60."""
    return jax.tree.map(lambda g: g * (g * g / (1 + g * g)), grads)


# C6


def no_extras(grads: Any, state: Any, params: Any = None) -> Any:
    return base.update(grads, state, params)


def needs_params(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    decayed = jax.tree.map(lambda g, p: g + 0.1 * p, grads, params)
    return base.update(decayed, state, params)


# C8


def in_one_place(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.zeros(p.shape), params)


def of_one_device() -> Mutant:
    """Scales by the largest parameter at the start, of those on one device."""

    def init(params: Any) -> Any:
        w = params["w"]
        own = w if isinstance(w, Tracer) else np.asarray(w.addressable_data(0))
        return base.init(params), jnp.max(own)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = base.update(grads, state[0], params)
        return jax.tree.map(lambda u: u * state[1], updates), (inner, state[1])

    return Mutant(init, update)


# C9


def narrow_statistics(params: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, eqx.filter(params, eqx.is_inexact_array))


def narrow_scalar() -> Mutant:
    def init(params: Any) -> Any:
        dtype = jax.tree.leaves(params)[0].dtype
        return base.init(params), jnp.zeros((), dtype)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = base.update(grads, state[0], params)
        return updates, (inner, state[1] + 1)

    return Mutant(init, update)


def first_step_only() -> Mutant:
    return with_gradients(lambda grads: tree.scale(1e-4, grads))


# C10


class OnlyAtTheTop(AbstractTransform[Any]):
    """Overrides what users call, which is not what chains and wrappers call."""

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return jax.tree.map(lambda g: -0.1 * g, grads), state

    def start(self, params: Tree) -> None:
        return None

    def step(self, grads: Tree, state: None, params: Tree, extra: Extra) -> Any:
        return grads, None


class OfOneModel(AbstractTransform[Any]):
    """Knows the parameters by name, of which a mask leaves some out."""

    def start(self, params: Tree) -> None:
        return None

    def step(self, grads: Tree, state: None, params: Tree, extra: Extra) -> Any:
        return tree.scale(-0.1 / (1 + jnp.sum(grads["b"] ** 2)), grads), None


class Silent(AbstractTransform[Any]):
    """Has metrics that no wrapper forwards, as their names are new at every call."""

    def start(self, params: Tree) -> None:
        return None

    def step(self, grads: Tree, state: None, params: Tree, extra: Extra) -> Any:
        return tree.scale(-0.1, grads), None

    def metrics(self, state: None) -> dict[str, Any]:
        return {f"silent/{next(_numbers)}": jnp.zeros(())}


_numbers = itertools.count()


MUTANTS: dict[str, tuple[str, Any]] = {
    "updates in float32": ("C1", Mutant(update=changed(of_updates=to_float32))),
    "fails on zero-size leaves": ("C1 of one kind", Mutant(update=no_zero_size)),
    "takes no raw models": ("C1", Mutant(init=only_arrays)),
    "takes no mixed dtypes": ("C1", Mutant(init=one_dtype)),
    "a count in the state that is a Python number": (
        "C2",
        counted(lambda: 0, lambda n: n + 1),
    ),
    "a weakly typed scalar": ("C2", counted(lambda: jnp.asarray(0.0), lambda x: x + 1)),
    "a scalar that becomes an integer": (
        "C2",
        counted(lambda: jnp.zeros((), jnp.float32), lambda x: x.astype(jnp.int32)),
    ),
    "a state that grows": (
        "C2",
        counted(lambda: jnp.zeros(1), lambda x: jnp.concatenate([x, x])),
    ),
    "a static state that changes": ("C2", Mutant(with_static, alternating)),
    "counts its calls in Python": ("C3", Mutant(update=CallCounter())),
    "a hyperparameter that must be static": ("C3", StaticRate()),
    "changes its inputs": ("C4", InPlace()),
    "the state is the parameters": ("C4", anchored(lambda params: params)),
    "the state is in the memory of the parameters": (
        "C4",
        anchored(lambda params: jax.tree.map(jnp.asarray, params)),
    ),
    "the state is a hyperparameter": ("C4", SharedRate()),
    "divides by a norm": ("C5", with_gradients(normalized)),
    "divides by each gradient": ("C5", with_gradients(leafwise)),
    "squares in bfloat16": ("C5 narrow", with_gradients(squared)),
    "prodigy of optax": ("C5 wide", as_transform(optax.contrib.prodigy())),
    "dog of optax": (
        "C5 of optax",
        as_transform(optax.contrib.dog(init_step=("learning_rate", 1e-3))),
    ),
    "no extras": ("C6", Mutant(update=no_extras)),
    "needs params and does not say so": ("C6", Mutant(update=needs_params)),
    "needs params and names no call": (
        "C6",
        Mutant(update=needs_params, needs=frozenset({"params"})),
    ),
    "a state that is not saved": ("C7", Mutant(with_static, alternating)),
    "a state on one device": ("C8 explicit", Mutant(init=in_one_place)),
    "a state on one device, auto": ("C8 auto", Mutant(init=in_one_place)),
    "a statistic of one device": ("C8 explicit", of_one_device()),
    "statistics as narrow as the parameters": ("C9", Mutant(init=narrow_statistics)),
    "a scalar as narrow as the parameters": ("C9", narrow_scalar()),
    "steps below the resolution": ("C9", dog()),
    "an iterate as narrow as the parameters": (
        "C9",
        schedule_free(scale(-0.1), 0.1, state_dtype=None),
    ),
    "works at the top only": ("C10", OnlyAtTheTop()),
    "takes the parameters to be all there": ("C10 wrappers", OfOneModel()),
    "keeps its metrics to itself": ("C10 wrappers", Silent()),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str):
    check, mutant = MUTANTS[name]
    with pytest.raises(AssertionError, match=rf"^{check.split()[0]}: "):
        CHECKS[check](mutant)
