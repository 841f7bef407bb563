"""The boundary between users and rules: conversions and checks at trace time.

Users bring equinox models, NumPy arrays, partial gradients and mistakes; a rule sees
trees of floating-point arrays that fit each other. Nothing here runs in compiled code.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from . import tree
from ._errors import first_difference, leaves_with_path, spot
from ._state import GradFn
from ._types import Scalar, Tree


T = TypeVar("T")


def trainable(x: PyTree[Any]) -> Tree:
    """The inexact arrays of `x`, as strongly typed JAX arrays, and else `None`."""
    return jax.tree.map(_array_or_none, x)


def _array_or_none(leaf: Any) -> Array | None:
    if not eqx.is_inexact_array(leaf):
        return None
    if not isinstance(leaf, jax.Array):
        return jnp.array(leaf)  # A copy: on CPU it may else live in NumPy's memory.
    # A weak type would be lost in the first step, and the state's type would change.
    return lax.convert_element_type(leaf, leaf.dtype) if leaf.weak_type else leaf


def in_precision(transform: T, like: PyTree[Any]) -> T:
    """`transform` with its real array hyperparameters, strongly typed, in the
    accumulator dtype of `like`, so that they never promote what they are used with."""

    def leaf(x: Any) -> Any:
        if eqx.is_inexact_array(x) and not jnp.iscomplexobj(x):
            return lax.convert_element_type(x, dtype)
        return x

    dtype = tree.accumulator_dtype(like)
    return jax.tree.map(leaf, transform)


def own_buffers(state: T, inputs: PyTree[Any]) -> T:
    """`state` with a copy of every array that is in `inputs`, or in it twice, so that
    it can be donated together with the inputs."""
    seen = {id(leaf) for leaf in jax.tree.leaves(inputs)}

    def leaf(x: Any) -> Any:
        if isinstance(x, jax.Array) and id(x) in seen:
            x = jnp.copy(x)
        seen.add(id(x))
        return x

    return jax.tree.map(leaf, state)


def check_gradients(
    who: str, grads: Tree, params: Tree, rows: tuple[int, ...] = ()
) -> None:
    """Raises `ValueError` unless `grads` fits `params` leaf by leaf; gradients of shape
    `(*rows, *shape)` to parameters of shape `shape`."""
    if jax.tree.structure(grads) != jax.tree.structure(params):
        raise ValueError(_misfit(who, grads, params))
    pairs = zip(leaves_with_path(params), leaves_with_path(grads), strict=True)
    for (path, p), (_, g) in pairs:
        if p is None:
            continue
        if (*rows, *p.shape) != g.shape:
            examples = f", for {rows[0]} examples" if rows else ""
            raise ValueError(
                f"{who}: at {spot(path)} the gradient has shape {g.shape}, the "
                f"parameter {p.shape}{examples}."
            )
        if jnp.iscomplexobj(p) != jnp.iscomplexobj(g):
            raise ValueError(
                f"{who}: at {spot(path)} the gradient is {g.dtype}, the "
                f"parameter {p.dtype}: either both are complex or neither is."
            )


def _misfit(who: str, grads: Tree, params: Tree) -> str:
    where = first_difference(params, grads)
    wanted = dict(leaves_with_path(params))
    given = dict(leaves_with_path(grads))
    for path, p in wanted.items():
        if p is not None and path in given and given[path] is None:
            return (
                f"{who}: the parameter at {spot(path)} ({_type_of(p)}) "
                "has no gradient. Differentiate all of them, `grads = "
                "eqx.filter_grad(loss)(model)`; to train only some, give both `init` "
                "and `update` those, `eqx.filter(model, spec)`."
            )
    for path, g in given.items():
        if g is not None and path in wanted and wanted[path] is None:
            return (
                f"{who}: there is a gradient at {spot(path)}, but the parameter "
                "there is not a floating-point array, so that `init` set it aside. "
                "Make it one, `jnp.asarray(x)`, or leave it out of the gradients."
            )
    return (
        f"{who}: gradients and parameters differ in structure at {where}. Call "
        "`opt.update(grads, state, params)`, with `grads` as `jax.grad` or "
        "`eqx.filter_grad` return them for these params."
    )


def not_wider(grads: Tree, params: Tree) -> Tree:
    """`grads` with leaves no wider than the accumulator of `params`: float64 gradients,
    which NumPy makes, must not widen the statistics of float32 parameters."""
    if tree.accumulator_dtype(grads) == tree.accumulator_dtype(params):
        return grads
    return jax.tree.map(lambda g, p: tree.cast_like(g, tree.widen(p)), grads, params)


def check_given(who: str, needs: frozenset[str], given: set[str]) -> None:
    """Raises `ValueError` for the first of `needs` that was not given."""
    for name in sorted(needs - given):
        raise ValueError(
            f"{who}.update needs `{name}`: call `{_call(needs)}`, where "
            f"{_MEANING.get(name, f'`{name}` is what its docstring says')}."
        )


_MEANING = {
    "params": "`params` are the parameters that the gradients were taken at",
    "value": "`value=loss` is the loss at `params`",
    "grad_fn": "`grad_fn(params, i)` returns the gradients at other parameters",
    "key": "`key` is a fresh random key",
}


def _call(needs: frozenset[str]) -> str:
    names = sorted(needs - {"params"})
    named = "".join(f", {k}={'loss' if k == 'value' else k}" for k in names)
    return f"opt.update(grads, state, params{named})"


def scalar_value(who: str, value: Any, like: Tree) -> Scalar:
    """The loss as a scalar; raises `ValueError` if it is not one real number."""
    if jnp.shape(value) != () or jnp.iscomplexobj(value):
        raise ValueError(
            f"{who}.update: `value` must be one real number, the loss at `params`; got "
            f"shape {jnp.shape(value)}, {jnp.result_type(value)}."
        )
    return tree.scalar(value, like)


def checked_gradients(who: str, grads: PyTree[Any], params: Tree) -> Tree:
    """What is trainable of `grads`, no wider than the statistics of `params`.

    **Raises:** `ValueError` unless it fits `params` leaf by leaf.
    """
    grads = trainable(grads)
    check_gradients(who, grads, params)
    return not_wider(grads, params)


def of_trainable(who: str, grad_fn: Callable[..., Any], model: PyTree[Any]) -> GradFn:
    """The user's `grad_fn` of a raw model as a function of its trainable leaves, whose
    gradients are checked as those that `update` is given."""
    fixed = jax.tree.map(lambda x: None if eqx.is_inexact_array(x) else x, model)

    def of_leaves(params: Tree, *args: Any) -> Tree:
        grads = grad_fn(eqx.combine(params, fixed), *args)
        return checked_gradients(f"{who}.update, `grad_fn`", grads, params)

    return of_leaves


def check_origin(
    who: str,
    start: Callable[..., Any],
    like: Tree,
    state: PyTree[Any],
    error: Exception,
) -> None:
    """Raises `ValueError` from the `error` of a step if `state` cannot have come from
    `start`: it is that of other parameters, or of another transform."""
    needed = jax.eval_shape(start, like)
    wrong = first_difference(needed, state)
    if wrong is None:
        pairs = zip(leaves_with_path(needed), leaves_with_path(state), strict=True)
        wrong = next((spot(p) for (p, a), (_, b) in pairs if not _is_like(a, b)), None)
    if wrong is not None:
        raise ValueError(
            f"{who}.update: `state` is that of other parameters or of another "
            f"transform: it is wrong at {wrong}. Start with `state = opt.init("
            "params)`, and go on with what `update` returns."
        ) from error


def _is_like(a: Any, b: Any) -> bool:
    return a is b or (jnp.shape(a), a.dtype) == (jnp.shape(b), jnp.result_type(b))


def check_state(who: str, old: PyTree[Any], new: PyTree[Any]) -> None:
    """Raises `ValueError` unless `new` has the type of `old`: structure, shapes, dtypes
    and weak types. State that drifts retraces every step, or breaks `lax.scan`."""
    if where := first_difference(old, new):
        raise ValueError(
            f"{who}.update: the new state differs from the old at {where}."
        )
    for (path, a), (_, b) in zip(
        leaves_with_path(old), leaves_with_path(new), strict=True
    ):
        if _type_of(a) != _type_of(b):
            raise ValueError(
                f"{who}.update: the state drifts at {spot(path)}, from {_type_of(a)} "
                f"to {_type_of(b)}. Keep statistics in the dtypes that `init` gave."
            )


def _type_of(x: Any) -> str:
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
        return type(x).__name__
    weak = ", weakly typed" if getattr(x, "weak_type", False) else ""
    return f"{x.dtype}{list(x.shape)}{weak}"
