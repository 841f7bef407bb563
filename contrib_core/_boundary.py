"""The boundary between users and rules: conversions and checks at trace time.

Users pass equinox models, NumPy arrays and incomplete gradients. A rule sees trees of
floating-point arrays whose structures match. No check runs in compiled code.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from . import tree
from ._errors import Caller, first_difference, leaves_with_path, spot
from ._state import Extra, GradFn
from .claims import Need, Needs
from .typing import AnyTree, Scalar, T, Tree


def trainable(x: AnyTree) -> Tree:
    """`x` with inexact arrays as strongly typed JAX arrays, and other leaves `None`."""
    return jax.tree.map(_array_or_none, x)


def _array_or_none(leaf: Any) -> Array | None:
    if not eqx.is_inexact_array(leaf):
        return None
    if not isinstance(leaf, jax.Array):
        return jnp.array(leaf)  # A copy: on CPUs JAX may otherwise use NumPy's memory.
    # The first step would drop a weak type, and so change the type of the state.
    return lax.convert_element_type(leaf, leaf.dtype) if leaf.weak_type else leaf


def in_precision(transform: T, like: AnyTree) -> T:
    """`transform` with its real array hyperparameters in the accumulator dtype of
    `like`, strongly typed, so that they never promote the trees that they multiply."""

    def leaf(x: Any) -> Any:
        if eqx.is_inexact_array(x) and not jnp.iscomplexobj(x):
            return lax.convert_element_type(x, dtype)
        return x

    dtype = tree.accumulator_dtype(like)
    return jax.tree.map(leaf, transform)


def own_buffers(state: T, inputs: AnyTree) -> T:
    """`state` with a copy of every array that is also in `inputs`, or twice in `state`:
    JAX refuses to donate the same buffer twice."""
    seen = {id(leaf) for leaf in jax.tree.leaves(inputs)}

    def leaf(x: Any) -> Any:
        if isinstance(x, jax.Array) and id(x) in seen:
            x = jnp.copy(x)
        seen.add(id(x))
        return x

    return jax.tree.map(leaf, state)


# Gradients


def checked_gradients(caller: Caller, grads: AnyTree, params: Tree | None) -> Tree:
    """The trainable leaves of `grads`, no wider than the statistics of `params`.

    **Raises:** `ValueError` if `params` are given and a gradient does not fit them.
    """
    grads = trainable(grads)
    if params is None:
        return grads
    check_gradients(caller, grads, params)
    return narrowed_to(grads, params)


def check_gradients(caller: Caller, grads: AnyTree, params: Tree) -> None:
    """Raises `ValueError` unless structures, shapes and complex leaves match."""
    if jax.tree.structure(grads) != jax.tree.structure(params):
        raise ValueError(_misfit(caller, grads, params))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True)
    for i, (p, g) in enumerate(pairs):
        if p.shape != g.shape:
            raise ValueError(
                f"{caller}: at {_spot(params, i)} the gradient has shape {g.shape}, "
                f"the parameter {p.shape}."
            )
        if (p.dtype.kind == "c") != (g.dtype.kind == "c"):
            raise ValueError(
                f"{caller}: at {_spot(params, i)} the gradient is {g.dtype}, the "
                f"parameter {p.dtype}: either both are complex or neither is."
            )


def _spot(x: AnyTree, i: int) -> str:
    path, _ = jax.tree_util.tree_leaves_with_path(x)[i]
    return spot(path)


def _misfit(caller: Caller, grads: Tree, params: Tree) -> str:
    where = first_difference(params, grads)
    wanted = dict(leaves_with_path(params))
    given = dict(leaves_with_path(grads))
    for path, p in wanted.items():
        if p is not None and path in given and given[path] is None:
            return (
                f"{caller}: the parameter at {spot(path)} ({_type_of(p)}) has no "
                "gradient. Differentiate with respect to all parameters: `grads = "
                "eqx.filter_grad(loss)(model)`. To train only some of them, pass "
                "`eqx.filter(model, spec)` to both `init` and `update`."
            )
    for path, g in given.items():
        if g is not None and path in wanted and wanted[path] is None:
            return (
                f"{caller}: there is a gradient at {spot(path)}, but the parameter "
                "is not a floating-point array, so it is not trained. Convert it with "
                "`jnp.asarray(x)`, or remove its gradient."
            )
    return (
        f"{caller}: gradients and parameters differ in structure at {where}. Call "
        "`opt.update(grads, state, params)` with the `grads` that `jax.grad` or "
        "`eqx.filter_grad` returns for these `params`."
    )


def narrowed_to(grads: Tree, params: Tree) -> Tree:
    """`grads` with leaves no wider than the accumulator dtype of `params`. For example,
    NumPy's float64 gradients must not widen the statistics of float32 parameters."""
    if tree.accumulator_dtype(grads) == tree.accumulator_dtype(params):
        return grads
    return jax.tree.map(lambda g, p: tree.cast_like(g, tree.widen(p)), grads, params)


# Other arguments


def check_given(caller: Caller, needs: Needs, given: Mapping[str, Any]) -> None:
    """Raises `ValueError` for the first argument in `needs` that was not given."""
    for name in sorted(name for name in needs if given.get(name) is None):
        raise ValueError(
            f"{caller} needs `{name}`: call `{_call(needs)}`, where {_MEANING[name]}."
        )


_NAMED = get_args(Need)

_MEANING = {
    "params": "`params` are the parameters that the gradients were taken at",
    "value": "`value=loss` is the loss at `params`",
    "grad_fn": "`grad_fn(params, i)` returns the gradients at other parameters",
    "key": "`key` is a fresh random key",
}


def _call(needs: Needs) -> str:
    names = sorted(needs - {"params"})
    named = "".join(f", {k}={'loss' if k == 'value' else k}" for k in names)
    return f"opt.update(grads, state, params{named})"


def checked_extra(
    caller: Caller, given: Mapping[str, Any], like: Tree, model: AnyTree
) -> Extra:
    """The extras of a step: the loss as a scalar, `grad_fn` on trainable leaves."""
    extra = Extra({k: x for k, x in given.items() if x is not None or k not in _NAMED})
    extra = extra.map("value", lambda value: _scalar_value(caller, value, like))
    return extra.map("grad_fn", lambda grad_fn: _of_trainable(caller, grad_fn, model))


def _scalar_value(caller: Caller, value: Any, like: Tree) -> Scalar:
    if jnp.shape(value) != () or jnp.iscomplexobj(value):
        raise ValueError(
            f"{caller}: `value` must be one real number, the loss at `params`; got "
            f"shape {jnp.shape(value)}, {jnp.result_type(value)}."
        )
    return tree.scalar(value, like)


def _of_trainable(
    caller: Caller, grad_fn: Callable[..., Any], model: AnyTree
) -> GradFn:
    """`grad_fn` of the trainable leaves of `model`; it checks its gradients."""
    fixed = jax.tree.map(lambda x: None if eqx.is_inexact_array(x) else x, model)
    part = Caller(caller.transform, ", `grad_fn`")

    def of_leaves(params: Tree, *args: Any) -> Tree:
        grads = grad_fn(eqx.combine(params, fixed), *args)
        return checked_gradients(part, grads, params)

    return of_leaves


# States


def check_origin(
    caller: Caller, needed: AnyTree, state: AnyTree, error: Exception
) -> None:
    """Raises `ValueError` from `error`, which a step raised, if `state` differs from
    `needed` in structure, shapes or dtypes."""
    wrong = first_difference(needed, state)
    if wrong is None:
        pairs = zip(leaves_with_path(needed), leaves_with_path(state), strict=True)
        wrong = next((spot(p) for (p, a), (_, b) in pairs if not _is_like(a, b)), None)
    if wrong is not None:
        raise ValueError(
            f"{caller}: `state` belongs to other parameters or to another "
            f"transform; it differs at {wrong}. Start with `state = opt.init("
            "params)`, and continue with the state that `update` returns."
        ) from error


def _is_like(a: Any, b: Any) -> bool:
    return a is b or (jnp.shape(a), a.dtype) == (jnp.shape(b), jnp.result_type(b))


def check_state(caller: Caller, old: AnyTree, new: AnyTree) -> None:
    """Raises `ValueError` unless `new` has the type of `old`: structure, shapes, dtypes
    and weak types. Another type would retrace every step, or break `lax.scan`."""
    before, old_structure = jax.tree.flatten(old)
    after, new_structure = jax.tree.flatten(new)
    if old_structure != new_structure:
        where = first_difference(old, new)
        raise ValueError(f"{caller}: the new state differs from the old at {where}.")
    # Abstract values of JAX are quick to compare. NumPy arrays have none.
    types = [getattr(x, "aval", None) for x in before]
    if None not in types and types == [getattr(x, "aval", None) for x in after]:
        return
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if _type_of(a) != _type_of(b):
            raise ValueError(
                f"{caller}: the state drifts at {_spot(old, i)}, from {_type_of(a)} "
                f"to {_type_of(b)}. Keep each field in the type that `init` gave it."
            )


def _type_of(x: Any) -> str:
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
        return type(x).__name__
    weak = ", weakly typed" if getattr(x, "weak_type", False) else ""
    return f"{x.dtype}{list(x.shape)}{weak}"
