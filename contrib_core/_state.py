"""What a transform is called with besides gradients, and what it remembers."""

from collections.abc import Callable
from typing import Any, Generic

import equinox as eqx
from jaxtyping import Array, PyTree

from ._types import P, Scalar


class AbstractState(eqx.Module, Generic[P]):
    """Base of all states. The annotation of a field is its role.

    `P` is a tree shaped like the parameters, `Scalar` a real number in the accumulator
    dtype, `Count` an int32 step counter, `Flag` a truth value; anything else is the
    state of an inner transform. States are final: they are never subclassed further.
    """


class Extra(eqx.Module):
    """What a step may use besides gradients, state and parameters.

    Built by `update`. A wrapper that changes coordinates translates it; a wrapper that
    calls its inner rule at another point drops the `value`, which belongs to the old.
    """

    value: Scalar | None = None  # Loss at `params`.
    grad_fn: Callable[..., PyTree[Any]] | None = None  # (params, *args) -> gradients.
    key: Array | None = None  # Random key of this step.
    rest: dict[str, Any] = eqx.field(default_factory=dict)  # Whatever else came.

    def as_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of `update` that this was built from."""
        given = {"value": self.value, "grad_fn": self.grad_fn, "key": self.key}
        return self.rest | {k: v for k, v in given.items() if v is not None}
