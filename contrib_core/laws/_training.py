"""The problem that contract laws train on, and loops over it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax

from .. import tree
from .._combine import apply_updates
from ._law import Broken
from ._subject import Subject


# The solution of the problem that everything is trained on, half the squared distance
# to it, and for how many steps.
TARGET = 0.5
STEPS = 100

# In float64 rounding is 1e-16 of what is computed. The first steps of the rules that
# measure a distance are 1e-6 of the parameters, so these distances, and the updates,
# are good to about 1e-10: a thousandth of this.
ROUNDING = 1e-7


# Parameters


def waves(shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> np.ndarray:
    """Numbers between -1 and 1, of both signs and none of them 0, times `scale`."""
    x = np.sin(1.0 + np.arange(np.prod(shape, dtype=int))).reshape(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 0.5j * np.cos(x)
    return np.asarray(scale * x, jnp.dtype(dtype))


def parameters(dtype: Any = "float32", scale: float = 1.0) -> dict[str, Any]:
    """Parameters of one dtype, with every kind of leaf that is legal."""
    shapes = {"b": (3,), "empty": (0, 2), "t": (), "w": (4, 3)}
    leaves = {name: waves(shape, dtype, scale) for name, shape in shapes.items()}
    return leaves | {"none": None}


def few(dtype: Any = "float32", scale: float = 1.0) -> dict[str, Any]:
    """Parameters of one dtype in a scalar and a matrix, for what has to be compiled."""
    return {name: waves(s, dtype, scale) for name, s in {"t": (), "w": (4, 3)}.items()}


@contextlib.contextmanager
def precision_of(subject: Subject, params: Any) -> Iterator[Any]:
    """Gives `params` as arrays of JAX, where there are 64-bit types if they have some,
    and where dtypes mix as the subject needs it."""
    wide = [x for x in jax.tree.leaves(params) if eqx.is_inexact_array(x)]
    is_wide = any(x.dtype in (np.float64, np.complex128) for x in wide)
    with jax.enable_x64(is_wide), subject.promotion():
        yield jax.tree.map(lambda x: jnp.asarray(x) if eqx.is_array(x) else x, params)


# Steps


def gradient(params: Any) -> Any:
    """The gradient of half the squared distance to the solution."""
    return jax.tree.map(lambda p: p - TARGET, params)


def loss(params: Any) -> float:
    """Half the squared distance to the solution, in float64."""
    leaves = [np.asarray(x, np.complex128) for x in jax.tree.leaves(params)]
    return float(sum(np.sum(np.abs(x - TARGET) ** 2) for x in leaves)) / 2


def descends(start: Any, end: Any) -> bool:
    """Whether the loss has fallen by a tenth or more."""
    return loss(end) < 0.9 * loss(start)


def extras(subject: Subject, grads: Any) -> dict[str, Any]:
    """What `update` takes besides gradients, state and parameters."""
    # Which may be NumPy's.
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(_trainable(grads))]
    known = {
        # A loss that is finite, as the gradients are.
        "value": jnp.nan_to_num(tree.sq_norm(leaves) / 2),
        "grad_fn": lambda params, *_: gradient(_trainable(params)),
        "key": jax.random.key(0),
    }
    return {name: known[name] for name in subject.takes}


def _trainable(params: Any) -> Any:
    return eqx.filter(params, eqx.is_inexact_array)


def update(
    subject: Subject, grads: Any, state: Any, params: Any, *, rule: Any = None
) -> Any:
    """`update` of `rule`, by default what was given, with all that it takes."""
    rule = subject.given if rule is None else rule
    return rule.update(grads, state, params, **extras(subject, grads))


def train(
    subject: Subject, params: Any, state: Any, steps: int, *, rule: Any = None
) -> Any:
    """Parameters, state and last updates after `steps`, one call each."""
    updates = None
    for _ in range(steps):
        updates, state = update(subject, gradient(params), state, params, rule=rule)
        params = apply_updates(params, updates)
    return params, state, updates


def fit(
    subject: Subject, rule: Any, params: Any, steps: int, most: float = np.inf
) -> Any:
    """Parameters and state after `steps` from a fresh state, in one loop."""
    return path(subject, rule, params, steps, most)[0]


def path(
    subject: Subject, rule: Any, params: Any, steps: int, most: float = np.inf
) -> Any:
    """That, and the parameters after each step."""

    def body(carry: Any, _: None) -> tuple[Any, Any]:
        params, state = carry
        updates, state = update(subject, gradient(params), state, params, rule=rule)
        params = moved(params, updates, most)
        return (params, state), params

    return lax.scan(body, (params, rule.init(params)), length=steps)


def moved(params: Any, updates: Any, most: float) -> Any:
    """Parameters after a step, but for steps beyond `most`, which are not taken: what
    runs away has gradients that nobody promises to take."""
    new = apply_updates(params, updates)
    return tree.where(tree.max_abs(new) <= most, new, params)


def eval_params(rule: Any, state: Any, params: Any) -> Any:
    """`rule.eval_params`, which optax does not have."""
    if not hasattr(rule, "eval_params"):
        return params
    return rule.eval_params(state, params)


# Comparisons


@contextlib.contextmanager
def promise(what: str, code: str = "") -> Iterator[None]:
    """Turns any exception into `Broken`, which says what was promised."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise Broken(f"{what}: {type(error).__name__}: {text}", code) from error


def require(condition: Any, what: str, code: str = "") -> None:
    """Raises `Broken` unless `condition`."""
    if not condition:
        raise Broken(what, code)


def type_of(x: Any, weak: bool = True) -> str:
    """Shape, dtype and weak type of an array; the class of anything else."""
    if not hasattr(x, "dtype"):
        return type(x).__name__
    is_weak = weak and getattr(x, "weak_type", False)
    return f"{x.dtype}{list(x.shape)}{' (weakly typed)' if is_weak else ''}"


def require_same_type(
    what: str, x: Any, y: Any, code: str = "", *, weak: bool = True
) -> None:
    """Both have one structure, and leaves of one shape, dtype and weak type."""
    require(
        jax.tree.structure(x) == jax.tree.structure(y),
        f"{what}: the structure is {jax.tree.structure(y)}, not "
        f"{jax.tree.structure(x)}",
        code,
    )
    for path, a, b in _pairs(x, y):
        given, wanted = type_of(b, weak), type_of(a, weak)
        require(given == wanted, f"{what}{path}: {given}, not {wanted}", code)


def require_same(what: str, x: Any, y: Any, code: str = "") -> None:
    """Both are bitwise the same."""
    require_same_type(what, x, y, code, weak=False)
    for path, a, b in _pairs(x, y):
        same = np.asarray(raw(a)).tobytes() == np.asarray(raw(b)).tobytes()
        require(same, f"{what}{path}: {b}, not {a}", code)


def require_close(what: str, x: Any, y: Any, code: str = "") -> None:
    """Both are the same up to rounding, relative to the largest entry of a leaf."""
    require_same_type(what, x, y, code, weak=False)
    for path, a, b in _pairs(x, y):
        a, b = np.asarray(raw(a)), np.asarray(raw(b))
        tolerance = ROUNDING * np.max(np.abs(a), initial=0)
        close = np.allclose(b, a, rtol=0, atol=tolerance)
        require(close, f"{what}{path}: {b}, not {a}", code)


def _pairs(x: Any, y: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two trees, with where they are."""
    pairs = zip(named_leaves("", x), jax.tree.leaves(y), strict=True)
    for (where, a), b in pairs:
        yield where, a, b


def named_leaves(what: str, x: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a tree, with what to call them in a sentence."""
    for path, leaf in jtu.tree_leaves_with_path(x):
        yield (f"{what} at {jtu.keystr(path)}" if path else what), leaf


def raw(x: Any) -> Any:
    """`x` itself, or the numbers that typed random keys are."""
    is_array = isinstance(x, jax.Array)
    is_key = is_array and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def snapshot(x: Any) -> Any:
    """The numbers in the arrays of `x`, copied into memory that nobody else has."""
    return jax.tree.map(lambda a: np.array(raw(a), copy=True), x)


Restore = Callable[[Any, Any], Any]
"""Saves its first argument, and restores it into the structure of its second."""
