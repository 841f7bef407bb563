"""Transforms that break the contract.

Most have `init` and `update` of their own, like transformations of optax, because the
boundary of `AbstractTransform` would refuse them before a law can.
"""

import itertools
import typing
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.core import Tracer
from jax.experimental import io_callback
from jax.flatten_util import ravel_pytree

from contrib_algos import sgd
from contrib_core import (
    AbstractTransform,
    Extra,
    FromOptax,
    increment,
    masked,
    scale,
    Tree,
    tree,
    zero_count,
)
from contrib_core.claims import Needs
from contrib_laws import ContractName
from contrib_wrappers import master_weights, schedule_free
from support.mutants_laws import descent, Distance, lawful, mutant, Rule


class Foreign(eqx.Module):
    """Momentum with `init` and `update` of its own; mutants replace parts of it."""

    init: Callable[..., Any]
    update: Callable[..., Any]
    needs: frozenset[str] = frozenset()


def init(params: Any) -> Any:
    return jax.tree.map(lambda p: tree.accumulator_like(jnp.array(p)), params)


def update(
    grads: Any, state: Any, params: Any = None, *, rate: Any = 0.1, **extra: Any
) -> Any:
    del extra
    like = jax.tree.map(jnp.asarray, grads if params is None else params)
    grads = tree.widen(jax.tree.map(jnp.asarray, grads))
    state = tree.add(tree.scale(0.9, state), grads)
    return tree.cast_like(tree.scale(-rate, state), like), state


CONTRACT = typing.get_args(ContractName)


@lawful(*CONTRACT)
def foreign():
    return Foreign(init, update)


@lawful("types", "composition", wrappers={"master_weights": master_weights})
def rule():
    return sgd(0.1, momentum=0.9)


def updating(
    of_updates: Any = lambda u: u,
    of_state: Any = lambda s: s,
    of_grads: Any = lambda g: g,
) -> Foreign:
    """Momentum with changed arguments or results of `update`."""

    def changed(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, state = update(of_grads(grads), state, params)
        return of_updates(updates), of_state(state)

    return Foreign(init, changed)


def keeping(
    first: Callable[[Any], Any],
    then: Callable[[Any], Any] = lambda x: x,
    use: Callable[[Any, Any], Any] = lambda u, x: u,
) -> Foreign:
    """Momentum with an additional state, which starts as `first(params)`. Each step
    replaces it with `then(state)`, and returns `use(updates, state)`."""

    def changed(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = update(grads, state[0], params)
        return use(updates, state[1]), (inner, then(state[1]))

    return Foreign(lambda params: (init(params), first(params)), changed)


def to_float32(x: Any) -> Any:
    return jax.tree.map(lambda u: u.real.astype(jnp.float32), x)


def _dtypes(x: Any) -> set[Any]:
    return {leaf.dtype for leaf in jax.tree.leaves(x)}


# Types


@mutant("types")
def updates_in_float32():
    return updating(to_float32)


@mutant("types")
def cannot_take_zero_size_leaves():
    def largest(g: Any) -> Any:
        return g / jnp.max(jnp.abs(g)).astype(g.dtype)

    return updating(of_grads=lambda grads: jax.tree.map(largest, grads))


@mutant("types")
def cannot_take_mixed_dtypes():
    def one_dtype(params: Any) -> Any:
        if len(_dtypes(params)) > 1:
            raise TypeError("There must be one dtype.")
        return init(params)

    return Foreign(one_dtype, update)


@mutant("types")
def updates_have_an_axis_more():
    return updating(lambda u: jax.tree.map(jnp.atleast_1d, u))


@mutant("types")
def cannot_take_an_empty_tree():
    def of_grads(grads: Any) -> Any:
        first, *_ = jax.tree.leaves(grads)
        return jax.tree.map(lambda g: g.astype(first.dtype).astype(g.dtype), grads)

    return updating(of_grads=of_grads)


class OnlyArrays(AbstractTransform[Any]):
    """Accepts no raw models."""

    def init(self, params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)

    def start(self, params: Tree) -> Any:
        return self.init(params)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        return descent(grads), state


@mutant("types")
def cannot_take_raw_models():
    return OnlyArrays()


class Evaluated(AbstractTransform[None]):
    """Evaluates models in float32."""

    def eval_params(self, state: None, params: Any) -> Any:
        return to_float32(params)

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return descent(grads), None


@mutant("types")
def evaluates_in_float32():
    return Evaluated()


# Constant state


@mutant("constant_state")
def counts_in_python():
    return keeping(lambda p: 0, lambda n: n + 1)


@mutant("constant_state")
def has_a_weakly_typed_scalar():
    return keeping(lambda p: jnp.asarray(0.0), lambda x: x + 1)


@mutant("constant_state")
def has_a_scalar_that_becomes_an_integer():
    return keeping(lambda p: jnp.zeros((), jnp.float32), lambda x: x.astype(jnp.int32))


@mutant("constant_state")
def starts_with_arrays_of_numpy():
    return keeping(lambda p: np.zeros(1, np.float32))


@mutant("constant_state")
def has_a_state_that_grows():
    return keeping(lambda p: jnp.zeros(1), lambda x: jnp.concatenate([x, x]))


@mutant("constant_state")
def has_a_state_that_drifts_if_dtypes_mix():
    def then(x: Any) -> Any:
        widest = tree.accumulator_dtype(x) if len(_dtypes(x)) > 1 else None
        return jax.tree.map(lambda a: a.astype(widest or a.dtype), x)

    return keeping(lambda p: jax.tree.map(jnp.zeros_like, p), then)


@mutant("constant_state")
def has_a_state_that_drifts_in_double_precision():
    return keeping(
        lambda p: jnp.zeros((), jnp.float32), lambda x: x.astype(jnp.result_type(float))
    )


class Compiled(eqx.Module):
    """A static part of a state: it is not saved, and each change retraces."""

    value: int = eqx.field(static=True)


@mutant("constant_state")
def has_a_static_state_that_changes():
    def use(updates: Any, phase: Compiled) -> Any:
        return tree.scale(0.5, updates) if phase.value % 2 else updates

    return keeping(lambda p: Compiled(0), lambda phase: Compiled(phase.value + 1), use)


@mutant("constant_state")
def returns_another_container():
    return keeping(lambda p: [jnp.zeros(())], tuple)


# Transformations


@mutant("transformations")
def counts_its_calls():
    calls = itertools.count(1)
    return updating(lambda u: tree.scale(1 / next(calls), u))


class StaticRate(eqx.Module):
    """Needs the value of a hyperparameter, which may be traced."""

    rate: Any = 0.1

    def init(self, params: Any) -> Any:
        return init(params)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return update(grads, state, params, rate=float(self.rate))


@mutant("transformations")
def takes_no_arrays_as_hyperparameters():
    return StaticRate()


class RememberedRate(eqx.Module):
    """Uses a hyperparameter exactly only if it is a Python number."""

    rate: Any = 0.1

    def init(self, params: Any) -> Any:
        return init(params)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        rate = self.rate if isinstance(self.rate, float) else jnp.max(self.rate) + 1e-5
        return update(grads, state, params, rate=rate)


@mutant("transformations")
def changes_arrays_as_hyperparameters_by_1e_5():
    return RememberedRate()


@mutant("transformations")
def branches_in_python():
    def of_grads(grads: Any) -> Any:
        return tree.scale(0.5, grads) if tree.norm(grads) > 1 else grads

    return updating(of_grads=of_grads)


@mutant("transformations")
def is_another_when_traced_by_1e_6():
    def of_updates(updates: Any) -> Any:
        is_traced = isinstance(jax.tree.leaves(updates)[0], Tracer)
        return tree.scale(1 + 1e-6, updates) if is_traced else updates

    return updating(of_updates)


@jax.custom_batching.custom_vmap
def unmixed(x: Any) -> Any:
    """`x` itself."""
    return x


@unmixed.def_vmap
def _mixed(axis_size: int, in_batched: Any, x: Any) -> tuple[Any, Any]:
    return x[::-1], in_batched[0]


@mutant("transformations")
def mixes_up_a_batch():
    return updating(lambda u: jax.tree.map(unmixed, u))


@mutant("transformations")
def cannot_be_batched():
    def on_the_host(u: Any) -> Any:
        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(u.shape, u.dtype), u)

    return updating(lambda u: jax.tree.map(on_the_host, u))


# Purity


@mutant("purity")
def changes_its_inputs():
    def of_grads(grads: Any) -> Any:
        for g in jax.tree.leaves(grads):
            if isinstance(g, np.ndarray):
                g *= 2
        return grads

    return updating(of_grads=of_grads)


@mutant("purity")
def keeps_the_parameters():
    return keeping(lambda params: params)


@mutant("purity")
def keeps_the_memory_of_the_parameters():
    return keeping(jax.device_put)


@mutant("purity")
def has_a_buffer_twice():
    def twice(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros

    return keeping(twice)


@mutant("purity", coded=False)
def keeps_the_memory_of_the_gradients():
    def changed(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = update(grads, state[0], params)
        return updates, (inner, jax.device_put(grads))

    return Foreign(lambda p: (init(p), jax.tree.map(jnp.zeros_like, p)), changed)


class SharedRate(eqx.Module):
    """Keeps its hyperparameter in the state."""

    rate: Any = 0.1

    def init(self, params: Any) -> Any:
        return init(params), jnp.asarray(self.rate, jnp.float32)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, inner = update(grads, state[0], params, rate=self.rate)
        return updates, (inner, state[1])


@mutant("purity")
def keeps_a_hyperparameter():
    return SharedRate()


# Finiteness


@mutant("finiteness")
def divides_by_a_norm():
    def normalized(grads: Any) -> Any:
        norm = jnp.sqrt(tree.sq_norm(grads))
        return jax.tree.map(lambda g: g / norm.astype(g.dtype), grads)

    return updating(of_grads=normalized)


@mutant("finiteness")
def divides_by_each_gradient():
    return updating(of_grads=lambda g: jax.tree.map(lambda g: g / jnp.abs(g), g))


@mutant("finiteness")
def squares_in_the_dtype_of_the_gradients():
    def squared(grads: Any) -> Any:
        return jax.tree.map(lambda g: g * (g * g / (1 + g * g)), grads)

    return updating(of_grads=squared)


@mutant("finiteness")
def divides_by_what_changed():
    def then(g: Tree, old: Tree, x: Tree) -> tuple[Tree, Tree]:
        change = tree.sub(g, old)
        rate = tree.dot(g, change) / tree.sq_norm(change)
        return tree.scale(-0.1 * jnp.clip(rate, 0.1, 1.0), g), g

    return Rule(lambda x: tree.scale(0.5, x), then)


@mutant("finiteness")
def divides_by_the_last_step():
    def then(g: Tree, old: Tree, x: Tree) -> tuple[Tree, Tree]:
        rate = 1 / (1 + 1 / tree.norm(tree.sub(x, old)))
        return tree.scale(-0.1 * rate, g), x

    return Rule(lambda x: tree.scale(0.5, x), then)


@mutant("finiteness")
def never_starts_after_a_null_first_step():
    def then(g: Tree, state: Any, x: Tree) -> tuple[Tree, Any]:
        count, first = state
        first = jnp.where(count == 0, tree.norm(g), first)
        rate = 0.1 * first / (first + 1e-12)
        return tree.scale(-rate, g), (increment(count), first)

    return Rule(lambda x: (zero_count(), tree.scalar(0, like=x)), then)


@mutant("finiteness")
def adds_up_squares():
    def then(g: Tree, total: Any, x: Tree) -> tuple[Tree, Any]:
        total = total + tree.sq_norm(g)
        return tree.scale(-tree.divide(0.1, jnp.sqrt(total)), g), total

    return Rule(lambda x: tree.scalar(0, like=x), then)


@mutant("finiteness")
def is_prodigy_of_optax():
    return FromOptax(optax.contrib.prodigy())


@mutant("finiteness", largest_gradient=1e12)
def is_dog_of_optax():
    return FromOptax(optax.contrib.dog(init_step=("learning_rate", 1e-3)))


# Extras


@mutant("extras")
def takes_no_extras():
    def plain(grads: Any, state: Any, params: Any = None) -> Any:
        return update(grads, state, params)

    return Foreign(init, plain)


@mutant("extras")
def takes_one_extra_only():
    def plain(grads: Any, state: Any, params: Any = None, *, flag: Any = None) -> Any:
        return update(grads, state, params)

    return Foreign(init, plain)


def decayed(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    pulled = jax.tree.map(lambda g, p: g + 0.1 * p, grads, params)
    return update(pulled, state, params)


@mutant("extras")
def needs_params_and_does_not_say_so():
    return Foreign(init, decayed)


@mutant("extras")
def needs_params_and_names_no_call():
    return Foreign(init, decayed, frozenset({"params"}))


class Keyed(AbstractTransform[None]):
    """Uses a key."""

    said: Needs = frozenset()

    @property
    def needs(self) -> Needs:
        return self.said

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        noise = jax.random.normal(extra.key, ())
        return tree.scale(-0.1 * noise, grads), None


@mutant("extras")
def needs_a_key_and_does_not_say_so():
    return Keyed()


# Checkpoints


@mutant("checkpoints")
def has_a_key_that_cannot_be_saved():
    def then(g: Tree, key: Any, x: Tree) -> tuple[Tree, Any]:
        key, now = jax.random.split(key)
        return tree.scale(-0.1 * jax.random.uniform(now), g), key

    return Rule(lambda x: jax.random.key(0), then)


@mutant("checkpoints", coded=False)
def has_an_empty_array_that_orbax_cannot_save():
    return keeping(lambda p: jnp.zeros((0,)))


@mutant("checkpoints")
def counts_on_the_host():
    calls = itertools.count(1)

    def of_updates(updates: Any) -> Any:
        like = jax.ShapeDtypeStruct((), jnp.float32)
        count = io_callback(lambda: np.float32(next(calls)), like, ordered=True)
        return tree.scale(1 / count, updates)

    return updating(of_updates)


# Sharding


@mutant("sharding")
def has_a_state_on_one_device():
    return Foreign(
        lambda params: jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params),
        update,
    )


@mutant("sharding")
def has_a_statistic_of_one_device():
    def first(params: Any) -> Any:
        w = jax.tree.leaves(params)[0]
        own = w if isinstance(w, Tracer) else np.asarray(w.addressable_data(0))
        return jnp.max(jnp.asarray(own))

    return keeping(first, use=lambda u, largest: tree.scale(largest, u))


@mutant("sharding")
def flattens_the_parameters():
    def of_updates(updates: Any) -> Any:
        flat, unravel = ravel_pytree(updates)
        return unravel(flat)

    return updating(of_updates)


# Precision


@mutant("precision")
def has_statistics_as_narrow_as_the_parameters():
    return Foreign(lambda params: jax.tree.map(jnp.zeros_like, params), update)


@mutant("precision")
def has_a_scalar_as_narrow_as_the_parameters():
    def first(params: Any) -> Any:
        return jnp.zeros((), jax.tree.leaves(params)[0].dtype)

    return keeping(first, lambda x: x + 1)


@mutant("precision")
def scales_up_in_float16():
    def of_grads(grads: Any) -> Any:
        return jax.tree.map(lambda g: (g * 2.0**17) / 2.0**17, grads)

    return updating(of_grads=of_grads)


@mutant("precision")
def steps_below_the_resolution_of_a_copy():
    return schedule_free(scale(-0.1), 0.1, state_dtype=None)


# Composition


class OnlyAtTheTop(AbstractTransform[Any]):
    """Overrides a method that users call, and that chains and wrappers do not call."""

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return descent(grads), state

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return grads, None


@mutant("composition")
def works_at_the_top_only():
    return OnlyAtTheTop()


class EvaluatedElsewhere(AbstractTransform[None]):
    """Overrides a method that users call, and that chains and wrappers do not call."""

    def eval_params(self, state: None, params: Any) -> Any:
        return jax.tree.map(lambda p: 0.5 * p, params)

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return descent(grads), None


@mutant("composition")
def evaluates_at_the_top_only():
    return EvaluatedElsewhere()


class OfOneModel(AbstractTransform[None]):
    """Knows the parameters by name, although a mask may leave some out."""

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return tree.scale(-0.1 / (1 + jnp.sum(grads["b"] ** 2)), grads), None


def matrices(transform: Any) -> Any:
    return masked(transform, lambda x: jax.tree.map(lambda a: a.ndim > 1, x))


@mutant("composition", coded=False, wrappers={"matrices": matrices})
def takes_the_parameters_to_be_all_there():
    return OfOneModel()


class Silent(AbstractTransform[None]):
    """Has metrics that no wrapper can forward: their names are new at every call."""

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        return descent(grads), None

    def metrics(self, state: None) -> dict[str, Any]:
        return {f"silent/{next(_numbers)}": jnp.zeros(())}


_numbers = itertools.count()


@mutant("composition")
def has_metrics_of_its_own_name():
    return Silent()


class Deaf(AbstractTransform[Any]):
    """A wrapper that does not forward the metrics of its inner transform."""

    inner: AbstractTransform

    @property
    def needs(self) -> Needs:
        return self.inner.needs

    def start(self, params: Tree) -> Any:
        return self.inner.start(params)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        return self.inner.step(grads, state, params, extra)


@mutant("composition", coded=False, wrappers={"deaf": Deaf})
def is_in_a_wrapper_that_loses_its_metrics():
    return Distance()
