"""The state of a transform, and the extra arguments of a step."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
from jaxtyping import Array

from .claims import Need, Terms
from .typing import Scalar, Tree


GradFn: TypeAlias = Callable[..., Tree]
"""Gradients at other parameters: `(params, *args) -> grads`."""


class AbstractState(eqx.Module):
    """Base of all states. The annotation of a field is its role.

    `P` is a tree shaped like the parameters, `Scalar` a real number in the accumulator
    dtype, `Scalars` several of them, `Count` an int32 step counter, `Flag` a truth
    value, `KeyData` a random key; anything else is the state of an inner transform.
    Concrete states are final: they have no subclasses.

    `terms` says for each law, by name, which field stands for each term of its formula.
    """

    terms: ClassVar[Terms] = MappingProxyType({})


class Extra(eqx.Module):
    """The arguments of a step besides gradients, state and parameters.

    `update` builds it from its keyword arguments. A wrapper that changes coordinates
    must translate `grad_fn`. A wrapper that calls its inner rule at another point must
    drop `value`, which is the loss at the old point.
    """

    given: Mapping[str, Any] = eqx.field(default_factory=dict)

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

    def _get(self, name: Need) -> Any:
        if name in self.given:
            return self.given[name]
        raise ValueError(
            f"This step was given no `{name}`. A rule that uses it must list it in "
            "`needs`, and a wrapper must list what its inner rule needs."
        )

    def without(self, name: Need) -> "Extra":
        """These extras without `name`."""
        return Extra({k: v for k, v in self.given.items() if k != name})

    def map(self, name: Need, translate: Callable[[Any], Any]) -> "Extra":
        """These extras, with `translate` applied to `name` if it was given."""
        if name not in self.given:
            return self
        return Extra({**self.given, name: translate(self.given[name])})
