"""Conversion from and to optax, which is imported only by `to_optax`."""

import inspect
from collections.abc import Callable
from typing import Any, get_args, TYPE_CHECKING

import equinox as eqx
import equinox.internal as eqxi
import jax
from jax import lax

from ._errors import name_of
from ._mechanism import AbstractMechanism
from ._state import Extra
from ._transform import AbstractTransform, Transform
from .claims import Need, Needs
from .typing import Tree


if TYPE_CHECKING:
    import optax


class FromOptax(AbstractTransform[Any]):
    """An optax transformation as a transform.

    Its closures become pytrees, so that `eqx.filter_vmap` can sweep the hyperparameters
    in them. Its state is strongly typed, so that `lax.scan` accepts it. It gets the
    extras in its signature. Optax mixes dtypes, so it runs under standard promotion.

    **Raises:** `ValueError`, in a step, for a missing extra that has no default.
    """

    init_fn: Callable[..., Any]
    update_fn: Callable[..., Any]
    extras: frozenset[str] | None = eqx.field(static=True)  # `None`: any extra.
    required: frozenset[str] = eqx.field(static=True)  # The extras without a default.

    def __init__(self, transformation: Transform):
        parameters = inspect.signature(transformation.update).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.extras = None if takes_any else frozenset(p.name for p in parameters)
        named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.required = frozenset(p.name for p in named if p.default is p.empty)
        self.init_fn = eqxi.closure_to_pytree(transformation.init)
        self.update_fn = eqxi.closure_to_pytree(transformation.update)

    @property
    def needs(self) -> Needs:
        """The extras without a default, as far as the signature shows them."""
        known: tuple[Need, ...] = get_args(Need)
        return frozenset(name for name in known if name in self.required)

    def start(self, params: Tree) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return _strongly_typed(self.init_fn(params))

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        if missing := self.required - extra.given.keys():
            raise ValueError(
                f"FromOptax.update needs `{min(missing)}`: call `opt.update(grads, "
                f"state, params, {min(missing)}={min(missing)})`."
            )
        extras = dict(extra.given)
        if self.extras is not None:
            extras = {name: x for name, x in extras.items() if name in self.extras}
        with jax.numpy_dtype_promotion("standard"):
            updates, new_state = self.update_fn(grads, state, params, **extras)
        return updates, _strongly_typed(new_state)


def _strongly_typed(state: Any) -> Any:
    def leaf(x: Any) -> Any:
        weak = getattr(x, "weak_type", False)  # Typed keys have no `weak_type`.
        return lax.convert_element_type(x, x.dtype) if weak else x

    return jax.tree.map(leaf, state)


def as_transform(t: Transform) -> AbstractTransform[Any]:
    """`t` itself if it is a transform already, or [`contrib_core.FromOptax`][] of it if
    it has `init` and `update`, like an `optax.GradientTransformation`.

    **Raises:** `TypeError` for anything else, and `ValueError` for a mechanism, which
    may only be the first of a chain.
    """
    if isinstance(t, AbstractTransform):
        return t
    if isinstance(t, AbstractMechanism):
        raise ValueError(
            f"{name_of(t)} takes values of single examples: it must be the first of a "
            "chain, and the only mechanism in it. Put transforms, wrapped or not, "
            "behind it: `chain(mechanism, optax.adam(1e-3))`."
        )
    if isinstance(t, type):
        raise TypeError(f"{t.__name__} is a class: pass an instance, `{t.__name__}()`.")
    if callable(getattr(t, "init", None)) and callable(getattr(t, "update", None)):
        return FromOptax(t)
    hint = "a transform has `init` and `update`, as `optax.adam(1e-3)` has"
    if callable(t):
        hint = "call it: the transform is what it returns"
    raise TypeError(f"{t!r} is not a transform; {hint}.")


def to_optax(
    transform: Transform | AbstractMechanism[Any],
) -> "optax.GradientTransformationExtraArgs":
    """`transform` as an optax transformation, for `optax.chain`, `optax.MultiSteps`,
    flax's `TrainState`, `optimistix.OptaxMinimiser` and the like.

    **Raises:** `ImportError` without optax; it names the extra to install.
    """
    try:
        import optax
    except ImportError as error:
        raise ImportError(
            'to_optax needs optax: pip install "contrib-algebra[optax]".'
        ) from error
    is_mechanism = isinstance(transform, AbstractMechanism)
    inner: Any = transform if is_mechanism else as_transform(transform)
    # Plain functions, because optax's containers compare and hash what they hold.
    return optax.GradientTransformationExtraArgs(
        lambda params: inner.init(params),
        lambda updates, state, params=None, **extra: inner.update(
            updates, state, params, **extra
        ),
    )
