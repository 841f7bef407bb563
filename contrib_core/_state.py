"""What a transform is called with besides gradients, and what it remembers."""

from collections.abc import Callable
from typing import Any, Generic, TypeAlias

import equinox as eqx
from jaxtyping import Array

from ._types import P, Scalar, Tree


GradFn: TypeAlias = Callable[..., Tree]
"""Gradients at other parameters: `(params, *args) -> grads`."""


class AbstractState(eqx.Module, Generic[P]):
    """Base of all states. The annotation of a field is its role.

    `P` is a tree shaped like the parameters, `Scalar` a real number in the accumulator
    dtype, `Scalars` a vector of some, `Count` an int32 step counter, `Flag` a truth
    value; anything else is the state of an inner transform. States are final: they are
    never subclassed further.
    """


class AbstractUnprotected(eqx.Module):
    """What is computed of single examples, and may reach a rule as noise only."""


class Extra(eqx.Module):
    """What a step may use besides gradients, state and parameters.

    Built by `update` from its keyword arguments. A wrapper that changes coordinates
    translates the `grad_fn`; a wrapper that calls its inner rule at another point drops
    the `value`, which belongs to the old one.
    """

    given: dict[str, Any] = eqx.field(default_factory=dict)

    @property
    def value(self) -> Scalar:
        """The loss at `params`. **Raises:** `ValueError` if it was not given."""
        return self._get("value")

    @property
    def grad_fn(self) -> GradFn:
        """`(params, *args) -> grads`. **Raises:** `ValueError` if it was not given."""
        return self._get("grad_fn")

    @property
    def key(self) -> Array:
        """A random key. **Raises:** `ValueError` if it was not given."""
        return self._get("key")

    def _get(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        raise ValueError(
            f"This step was given no `{name}`. A rule that uses it says so in `needs`, "
            "and a wrapper that needs it of its inner rule must pass it on."
        )

    def without(self, name: str) -> "Extra":
        """These extras, but for `name`."""
        return Extra({k: v for k, v in self.given.items() if k != name})

    def only(self, name: str) -> "Extra":
        """Of these extras, `name`, if it was given."""
        return Extra({k: v for k, v in self.given.items() if k == name})

    def map_value(self, translate: Callable[[Scalar], Scalar]) -> "Extra":
        """These extras with their `value`, if there is one, in another precision."""
        if "value" not in self.given:
            return self
        return Extra(self.given | {"value": translate(self.value)})

    def map_grad_fn(self, translate: Callable[[GradFn], GradFn]) -> "Extra":
        """These extras with their `grad_fn`, if there is one, in other coordinates."""
        if "grad_fn" not in self.given:
            return self
        return Extra(self.given | {"grad_fn": translate(self.grad_fn)})
