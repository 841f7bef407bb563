"""Interop with optax, which is imported only where it is asked for."""

import inspect
from collections.abc import Callable
from typing import Any, TYPE_CHECKING

import equinox as eqx
import equinox.internal as eqxi
import jax
from jax import lax

from ._state import Extra
from ._transform import AbstractTransform, name_of, Transform
from ._types import Tree


if TYPE_CHECKING:
    import optax


class FromOptax(AbstractTransform[Any]):
    """An optax transformation as a transform.

    Its closures become pytrees, so that hyperparameters inside them can be swept by
    `eqx.filter_vmap`; its state is made strongly typed, so that it can be scanned over.
    Extras go to transformations that take them. Optax mixes dtypes, so it runs under
    standard promotion whatever the mode around it.
    """

    init_fn: Callable[..., Any]
    update_fn: Callable[..., Any]
    extras: frozenset[str] | None = eqx.field(static=True)  # `None` takes any.
    required: frozenset[str] = eqx.field(static=True)  # Of these, without a default.

    def __init__(self, transformation: Transform):
        parameters = inspect.signature(transformation.update).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.extras = None if takes_any else frozenset(p.name for p in parameters)
        self.required = frozenset(
            p.name
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        )
        self.init_fn = eqxi.closure_to_pytree(transformation.init)
        self.update_fn = eqxi.closure_to_pytree(transformation.update)

    @property
    def needs(self) -> frozenset[str]:
        """The extras that it has no defaults for, as far as its signature tells: that
        of `optax.chain` does not, nor does any that it needs the parameters."""
        return self.required

    def start(self, params: Tree) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return _strongly_typed(self.init_fn(params))

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        extras = {
            name: x
            for name, x in extra.given.items()
            if self.extras is None or name in self.extras
        }
        with jax.numpy_dtype_promotion("standard"):
            updates, new_state = self.update_fn(grads, state, params, **extras)
        return updates, _strongly_typed(new_state)


def _strongly_typed(state: Any) -> Any:
    def leaf(x: Any) -> Any:
        weak = getattr(x, "weak_type", False)  # Which typed keys do not have.
        return lax.convert_element_type(x, x.dtype) if weak else x

    return jax.tree.map(leaf, state)


def as_transform(t: Any, *, is_first: bool = False) -> AbstractTransform:
    """`t` itself if it is one of ours, and [`contrib_core.FromOptax`][] of it if it has
    `init` and `update` like an `optax.GradientTransformation`.

    **Arguments:**

    - `t`: a transform.
    - `is_first`: whether it is given the gradients as they come, which what needs those
        of single examples has to be.

    **Raises:** `TypeError` for anything else, and `ValueError` for a transform that is
    not the first, and has to be.
    """
    if isinstance(t, AbstractTransform):
        if "examples" in t.needs and not is_first:
            raise ValueError(
                f"{name_of(t)} needs what it is given of single examples as it comes: "
                "it must be the first of a chain, and the only one of its kind. Put "
                "other transforms, and wrappers around these, behind it: "
                f"`chain({name_of(t)}, adam(1e-3))`."
            )
        return t
    if isinstance(t, type):
        raise TypeError(f"{t.__name__} is a class: pass an instance, `{t.__name__}()`.")
    if callable(getattr(t, "init", None)) and callable(getattr(t, "update", None)):
        return FromOptax(t)
    hint = (
        "call it: the transform is what it returns"
        if callable(t)
        else (
            "a transform has `init` and `update`, as `adam(1e-3)` or `optax.adam(1e-3)`"
        )
    )
    raise TypeError(f"{t!r} is not a transform; {hint}.")


def to_optax(transform: Transform) -> "optax.GradientTransformationExtraArgs":
    """`transform` as an optax transformation, for `optax.chain`, `optax.MultiSteps`,
    flax's `TrainState`, `optimistix.OptaxMinimiser` and the like.

    **Raises:** `ImportError` without optax, saying which extra brings it.
    """
    try:
        import optax
    except ImportError as error:
        raise ImportError(
            'to_optax needs optax: pip install "contrib-algebra[optax]".'
        ) from error
    inner = as_transform(transform, is_first=True)
    # Plain functions, because optax's containers compare and hash what they hold.
    return optax.GradientTransformationExtraArgs(
        lambda params: inner.init(params),
        lambda updates, state, params=None, **extra: inner.update(
            updates, state, params, **extra
        ),
    )
