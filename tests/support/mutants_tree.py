"""Broken implementations of the primitives, which the laws of the algebra must catch.

Each is the plausible way to write a primitive that the laws rule out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Mutant:
    """`apply` breaks an implementation in place, such that `law` fails with `error`
    for trees of `dtypes`, a key of `contrib_laws.DTYPES`."""

    law: str
    name: str
    dtypes: str
    apply: Callable[[ModuleType], None]
    error: type[Exception]


MUTANTS: list[Mutant] = []


def mutant(
    law: str, dtypes: str = "f32", error: type[Exception] = AssertionError
) -> Callable[..., Any]:
    """Registers the decorated function as a mutant that `law` must kill."""

    def register(apply: Callable[[ModuleType], None]) -> Callable[..., None]:
        MUTANTS.append(Mutant(law, apply.__name__, dtypes, apply, error))
        return apply

    return register


def _leafwise(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A map that promotes as JAX does and casts nothing."""

    def apply(*trees: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(fn, *trees)

    return apply


@mutant("maps_keep_dtypes", "mixed")
def add_promotes(t):
    t.add = _leafwise(jnp.add)


@mutant("maps_keep_dtypes", "bf16")
def scale_takes_the_dtype_of_the_scalar(t):
    t.scale = lambda s, x: _leafwise(lambda a: s * a)(x)


@mutant("maps_keep_dtypes", "mixed")
def axpy_takes_the_dtypes_of_its_first_tree(t):
    t.axpy = lambda s, x, y: t.map(lambda a, b, s: s * a + b, x, y, s)


@mutant("maps_keep_dtypes", "bf16")
def zeros_have_the_default_dtype(t):
    t.zeros_like = lambda x: jax.tree.map(lambda a: jnp.zeros(a.shape), x)


@mutant("maps_keep_dtypes", "bf16")
def map_does_not_cast_back(t):
    def map(fn, x, *rest):
        leaves, _ = t._evaluated(fn, x, *rest)
        return jax.tree.unflatten(jax.tree.structure(x), leaves)

    t.map = map


@mutant("scalars_have_the_accumulator_dtype", "bf16")
def scalars_take_the_dtype_of_the_leaves(t):
    t.accumulator_dtype = lambda *trees: jnp.dtype("bfloat16")


@mutant("scalars_have_the_accumulator_dtype", "f64")
def scalars_are_always_float32(t):
    t.accumulator_dtype = lambda *trees: jnp.dtype("float32")


@mutant("scalars_have_the_accumulator_dtype")
def scalars_are_weakly_typed(t):
    t.scalar = lambda x, like: jnp.asarray(float(x))


def _narrow(t: ModuleType, reduce: Callable[..., Any]) -> Callable[..., Any]:
    """`reduce` of each leaf in the leaf's own dtype."""

    def apply(*trees: Any) -> Any:
        parts = [
            reduce(*row).astype(t.accumulator_dtype(trees))
            for row in zip(*map(jax.tree.leaves, trees), strict=True)
        ]
        return sum(parts, t.scalar(0, trees))

    return apply


@mutant("reductions_are_as_precise_as_the_accumulator", "bf16")
def sq_norm_squares_in_the_leaf_dtype(t):
    t.sq_norm = _narrow(t, lambda a: jnp.sum(a * a))


@mutant("reductions_are_as_precise_as_the_accumulator", "bf16")
def l1_norm_accumulates_in_the_leaf_dtype(t):
    t.l1_norm = _narrow(t, lambda a: sum(jnp.abs(a).flatten(), jnp.zeros((), a.dtype)))


@mutant("reductions_are_as_precise_as_the_accumulator", "f16")
def sq_dist_subtracts_in_the_leaf_dtype(t):
    t.sq_dist = lambda x, y: t.sq_norm(_leafwise(jnp.subtract)(x, y))


@mutant("reductions_are_as_precise_as_the_accumulator")
def sq_dist_has_an_epsilon(t):
    sq_dist = t.sq_dist
    t.sq_dist = lambda x, y: sq_dist(x, y) + 1e-8


@mutant("maps_round_once", "bf16")
def map_computes_in_the_leaf_dtype(t):
    def map(fn, x, *rest):
        def cast(arg):
            if isinstance(arg, int | float):
                return arg
            if t._is_number(arg):
                return jax.tree.map(lambda a: arg.astype(a.dtype), x)
            return t.cast_like(arg, x)

        args = [cast(arg) for arg in rest]
        trees = [arg for arg in args if not isinstance(arg, int | float)]

        def leaf(a, *others):
            remaining = iter(others)
            row = [
                arg if isinstance(arg, int | float) else next(remaining) for arg in args
            ]
            return fn(a, *row).astype(a.dtype)

        return jax.tree.map(leaf, x, *trees)

    t.map = map


@mutant("maps_round_once", "f16")
def axpy_rounds_the_product(t):
    t.axpy = lambda s, x, y: t.add(y, t.scale(s, x))


@mutant("maps_round_once", "bf16")
def scalars_are_rounded_to_the_leaf_dtype(t):
    t.scale = lambda s, x: t.map(
        lambda a, s: s * a, x, jnp.asarray(s).astype("bfloat16")
    )


@mutant("dot_is_an_inner_product", "c64")
def dot_forgets_to_conjugate(t):
    t.dot = lambda x, y: t.sum(lambda a, b: (a * b).real, x, y)


@mutant("dot_is_an_inner_product", "c64")
def dot_is_of_the_real_parts(t):
    t.dot = lambda x, y: t.sum(lambda a, b: a.real * b.real, x, y)


@mutant("dot_is_an_inner_product")
def dot_is_of_moduli(t):
    t.dot = lambda x, y: t.sum(lambda a, b: jnp.abs(a * b), x, y)


@mutant("complex_is_a_pair_of_reals", "c64")
def dot_takes_the_imaginary_part(t):
    t.dot = lambda x, y: t.sum(lambda a, b: a.real * b.imag - a.imag * b.real, x, y)


@mutant("complex_is_a_pair_of_reals", "c64")
def norm_ignores_imaginary_parts(t):
    t.norm = lambda x: jnp.sqrt(t.sum(lambda a: jnp.square(a.real), x))


@mutant("reductions_do_not_reshape")
def dot_ravels(t):
    t.dot = lambda x, y: t.sum(lambda a, b: a.ravel() * b.ravel(), x, y)


@mutant("reductions_do_not_reshape")
def dot_is_vdot(t):
    t.dot = lambda x, y: sum(
        map(jnp.vdot, jax.tree.leaves(x), jax.tree.leaves(y)), t.scalar(0, x)
    )


@mutant("norm_is_right_where_representable")
def norm_is_the_root_of_the_square(t):
    t.norm = lambda x: jnp.sqrt(t.sq_norm(x))


@mutant("norm_is_right_where_representable")
def norm_is_scaled_by_an_inexact_unit(t):
    def norm(x):
        unit = t.max_abs(x) + jnp.finfo("float32").tiny
        return unit * jnp.sqrt(t.sum(lambda a, u: jnp.square(a / u), x, unit))

    t.norm = norm


@mutant("norm_is_right_where_representable")
def norm_overflows_before_its_result(t):
    norm = t.norm
    t.norm = lambda x: norm(t.scale(8.0, x)) / 8


@mutant("norm_has_a_unit_derivative_or_none")
def norm_has_the_derivative_of_a_bare_root(t):
    t.norm = lambda x: jnp.sqrt(t.sq_norm(x))


@mutant("norm_has_a_unit_derivative_or_none")
def norm_guards_its_value_alone(t):
    def norm(x):
        squares = t.sq_norm(x)
        return jnp.where(squares > 0, jnp.sqrt(squares), 0.0)

    t.norm = norm


@mutant("lerp_is_exact_at_both_ends")
def lerp_adds_the_difference(t):
    t.lerp = lambda x, y, w: t.map(lambda a, b, w: a + w * (b - a), x, y, w)


@mutant("lerp_is_exact_at_both_ends")
def lerp_subtracts_the_difference(t):
    t.lerp = lambda x, y, w: t.map(lambda a, b, w: b - (1 - w) * (b - a), x, y, w)


@mutant("ema_keeps_a_constant")
def ema_weighs_both(t):
    t.ema = lambda m, x, b: t.map(lambda m, x, b: b * m + (1 - b) * x, m, x, b)


@mutant("where_selects")
def where_multiplies(t):
    def where(condition, x, y):
        def leaf(a, b):
            c = condition.astype(a.real.dtype)
            return c * a + (1 - c) * b

        return t.map(leaf, x, y)

    t.where = where


@mutant("where_selects")
def where_takes_the_other(t):
    where = t.where
    t.where = lambda condition, x, y: where(~condition, x, y)


@mutant("divide_by_zero_is_zero")
def divide_is_unguarded(t):
    t.divide = lambda x, y: x / y


@mutant("divide_by_zero_is_zero")
def divide_guards_zero_over_zero_only(t):
    t.divide = lambda x, y: jnp.where((x == 0) & (y == 0), 0.0, x / y)


@mutant("divide_by_zero_is_zero")
def divide_adds_an_epsilon(t):
    t.divide = lambda x, y: x / (y + jnp.asarray(1e-8, y.dtype))


@mutant("sum_needs_no_temporary_tree")
def sum_sorts_for_precision(t):
    t.sum = lambda fn, x, *rest: sum(
        (jnp.sum(jnp.sort(part)) for part in t._evaluated(fn, x, *rest)[0]),
        t.scalar(0, x),
    )


@mutant("sum_ignores_how_entries_are_grouped")
def sum_forgets_the_last_leaf(t):
    def sum_(fn, x, *rest):
        parts = [jnp.sum(part) for part in t._evaluated(fn, x, *rest)[0]]
        return sum(parts[: max(1, len(parts) - 1)], t.scalar(0, x))

    t.sum = sum_


@mutant("sum_ignores_how_entries_are_grouped")
def sum_averages_leaves(t):
    t.sum = lambda fn, x, *rest: (
        sum(
            (
                jnp.mean(part) * part.size
                for part in t._evaluated(fn, x, *rest)[0]
                if part.size
            ),
            t.scalar(0, x),
        )
        / max(1, len(jax.tree.leaves(x)))
    )


@mutant("nothing_counts_for_nothing", error=ValueError)
def max_abs_needs_entries(t):
    t.max_abs = lambda x: max(
        (jnp.max(jnp.abs(a)) for a in jax.tree.leaves(x)), default=t.scalar(0, x)
    )


@mutant("nothing_counts_for_nothing")
def size_counts_empty_leaves(t):
    t.size = lambda x: sum(max(1, leaf.size) for leaf in jax.tree.leaves(x))


@mutant("nothing_counts_for_nothing")
def missing_subtrees_become_zeros(t):
    t.map = lambda fn, x, *rest: jax.tree.map(
        lambda a, *r: jnp.zeros(()) if a is None else fn(a, *r),
        x,
        *rest,
        is_leaf=lambda a: a is None,
    )


@mutant("empty_trees_have_defined_results", error=ValueError)
def sum_concatenates(t):
    t.sum = lambda fn, x, *rest: jnp.sum(
        jnp.concatenate([part.ravel() for part in t._evaluated(fn, x, *rest)[0]])
    )


@mutant("empty_trees_have_defined_results", error=TypeError)
def sum_of_nothing_has_no_initial_value(t):
    import functools

    t.sum = lambda fn, x, *rest: functools.reduce(
        jnp.add, [jnp.sum(part) for part in t._evaluated(fn, x, *rest)[0]]
    )


@mutant("empty_trees_have_defined_results", error=AttributeError)
def sum_of_nothing_is_a_python_number(t):
    t.sum = lambda fn, x, *rest: sum(
        jnp.sum(part) for part in t._evaluated(fn, x, *rest)[0]
    )
