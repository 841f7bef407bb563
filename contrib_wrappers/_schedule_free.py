"""Schedule-Free: averaging and interpolation in place of a learning-rate schedule."""

from dataclasses import KW_ONLY
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    Extra,
    merge_metrics,
    name_of,
    tree,
)
from contrib_core.claims import claim, ISOMETRIES, Laws, Needs, PARAMS, Terms
from contrib_core.ranges import Fraction, NonNegative, Rate, static
from contrib_core.schedule import increment, value_at, zero_count
from contrib_core.typing import AnyTree, Count, P, Scalar, Tree

from ._split import RealAndImaginary


class ScheduleFreeState(AbstractState):
    """State of [`contrib_wrappers.ScheduleFree`][]."""

    terms: ClassVar[Terms] = {
        "average": {"z": "z", "weight": "weight_sum", "beta": "b1"}
    }

    b1: Scalar  # \beta, which `schedule_free_eval_params` reads
    weight_sum: Scalar  # \sum w_i
    step_count: Count  # t
    max_lr: Scalar  # \max \gamma_i
    base_optimizer_state: Any
    z: P  # z_t, the iterates of the base optimizer


class ScheduleFree(AbstractTransform[ScheduleFreeState]):
    r"""Runs a base optimizer on $z$, and takes gradients between $z$ and its average.

    Let $y_t$ be the parameters, $u_t$ the base optimizer's update for the gradient at
    $y_t$, $w_t = (\max_{i \le t} \gamma_i)^p$ and $c_t = w_t / \sum_{i \le t} w_i$:

    $$z_{t+1} = z_t + u_t, \quad
      x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}, \quad
      y_{t+1} = (1 - \beta) z_{t+1} + \beta x_{t+1}$$

    Evaluate the model at the average $x$, which `eval_params` returns. The state does
    not store $x$, because it follows from $y$ and $z$. Without $x$, the update is
    $y_{t+1} - y_t = c_t (z_{t+1} - y_t) + (1 - c_t) (1 - \beta) u_t$, which needs no
    division by $\beta$. The invariances are those of the base optimizer.

    ??? cite "Reference"

        Defazio et al., *The Road Less Scheduled*, arXiv 2405.15682, equations (3) to
        (5). The weights follow the authors' code.

    **Arguments:**

    - `base_optimizer`: a transform, ours or optax's, with the learning rate
        `learning_rate`. Use one without momentum, because the interpolation replaces
        it.
    - `learning_rate`: $\gamma$, a number or a schedule, with warm-up and without decay.
        The weights depend only on its ratios over time.
    - `b1`: $\beta$ in [0, 1). With 0, the parameters are $z$, and the average is lost.
    - `weight_lr_power`: $p \ge 0$.
    - `state_dtype`: $z$ is stored in this dtype or in that of the parameters, whichever
        is wider. `None` stands for the dtype of the parameters.
    - `base_at`: the parameters that the base optimizer gets, for example for weight
        decay or to measure distances. "y" is where the gradients are taken. "z" is
        moved by the base optimizer's own updates, and has the dtype in which it is
        stored. Pass "z" for DoG, because y, and so a distance measured at y, changes
        only slowly. COCOB and Mechanic require "z".

    **Raises:** `ValueError` for `b1` outside [0, 1), for a negative `learning_rate` or
    `weight_lr_power`, for a `base_at` other than "y" and "z", for "z" with a base
    optimizer that needs `value`, and for "y" with one that recovers points of its own
    from the parameters.

    **Differences from optax.contrib:**

    - The weights and the base optimizer evaluate the learning rate at the same count.
        In optax the counts differ by one, so warm-up differs from the authors' code.
    - `b1 = 0` is legal. `b1` and the weights are always float32 or wider.
    - `state_dtype` never narrows: float64 and complex parameters keep their precision.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import sgd
        >>> from contrib_wrappers import schedule_free
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = schedule_free(sgd(1.0), learning_rate=1.0)
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(5):
        ...     updates, state = opt.update(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> print(f"{f(opt.eval_params(state, x)):.3f}")
        0.241

        ```
    """

    base_optimizer: AbstractTransform[Any] = eqx.field(converter=as_transform)
    learning_rate: Rate
    b1: Fraction = 0.9
    weight_lr_power: NonNegative = 2.0
    state_dtype: DTypeLike | None = static(jnp.float32)
    _: KW_ONLY
    base_at: Literal["y", "z"] = static("y")

    def __check_init__(self):
        base = self.base_optimizer
        if self.base_at == "z" and "value" in base.needs:
            raise ValueError(
                'ScheduleFree: with base_at="z" the base optimizer gets z, but `value` '
                "is the loss at y. For a base optimizer that needs `value`, pass "
                'base_at="y".'
            )
        if self.base_at == "y" and base.owns_iterates:
            raise ValueError(
                f"ScheduleFree: {name_of(base)} recovers points of its own from "
                "the parameters, so only its own updates may move these. They move z, "
                'not y: pass base_at="z".'
            )

    @property
    def needs(self) -> Needs:
        """Everything that the base optimizer needs, plus the parameters."""
        return self.base_optimizer.needs | PARAMS

    @property
    def owns_iterates(self) -> bool:
        """Always true: it recovers the average from the parameters."""
        return True

    @property
    def laws(self) -> Laws:
        """The symmetries of the base optimizer that averaging keeps, plus `average`."""
        kept = ISOMETRIES | claim("gradient_scale", "units", "monotone")
        return self.base_optimizer.laws & kept | claim("average")

    def start(self, params: Tree) -> ScheduleFreeState:
        z = params if self.state_dtype is None else tree.widen(params, self.state_dtype)
        return ScheduleFreeState(
            b1=tree.scalar(self.b1, like=params),
            weight_sum=tree.scalar(0, like=params),
            step_count=zero_count(),
            max_lr=tree.scalar(0, like=params),
            base_optimizer_state=self.base_optimizer.start(
                z if self.base_at == "z" else params
            ),
            z=z,
        )

    def step(
        self, grads: Tree, state: ScheduleFreeState, params: Tree, extra: Extra
    ) -> tuple[Tree, ScheduleFreeState]:
        base_params = params
        if self.base_at == "z":
            # Pass z in its own dtype. In the dtype of the parameters, the points that a
            # base optimizer recovers from z would lose precision.
            base_params = state.z
            extra = extra.without("value")  # The value is the loss at y.
        u, base_state = self.base_optimizer.step(
            grads, state.base_optimizer_state, base_params, extra
        )
        lr = value_at(self.learning_rate, state.step_count, like=state.b1)
        max_lr = jnp.maximum(state.max_lr, lr)
        weight = max_lr**self.weight_lr_power
        weight_sum = state.weight_sum + weight
        c = tree.divide(weight, weight_sum)

        # The formula uses only the new z, so that XLA can update z in place.
        z = tree.add(state.z, u)
        rest = (1 - c) * (1 - state.b1)
        updates = tree.map(
            lambda z, y, u, c, rest: c * (z - y) + rest * u, z, params, u, c, rest
        )
        new_state = ScheduleFreeState(
            b1=state.b1,
            weight_sum=weight_sum,
            step_count=increment(state.step_count),
            max_lr=max_lr,
            base_optimizer_state=base_state,
            z=z,
        )
        return updates, new_state

    def eval_point(self, state: ScheduleFreeState, params: Tree) -> Tree:
        """The average $x = (y - (1-\\beta) z) / \\beta$."""
        return tree.map(_average, params, state.z, state.b1)

    def metrics(self, state: ScheduleFreeState) -> dict[str, Scalar]:
        """`schedule_free/weight`: the last $c_t$. The metrics of the base optimizer are
        included; a name that occurs twice gets the prefix `base`."""
        weight = state.max_lr**self.weight_lr_power
        own = {"schedule_free/weight": tree.divide(weight, state.weight_sum)}
        base = self.base_optimizer.metrics(state.base_optimizer_state)
        return merge_metrics(own, base, "base")


def _average(y: Array, z: Array, b1: Array) -> Array:
    return jnp.where(b1 == 0, y, tree.divide(y - (1 - b1) * z, b1))


schedule_free = ScheduleFree


def schedule_free_eval_params(state: AnyTree, params: AnyTree) -> AnyTree:
    """The parameters to evaluate a schedule-free model at.

    Use it in code that has the state, but not the optimizer `opt`. Otherwise call
    `opt.eval_params(state, params)`, which inside `master_weights` is more precise,
    because it uses the wide copy of `params`.

    **Arguments:**

    - `state`: a [`contrib_wrappers.ScheduleFreeState`][], or the state of a chain, a
        mask or a wrapper that contains one.
    - `params`: the parameters, or the model, as passed to `update`.

    **Raises:** `ValueError` unless `state` contains exactly one `ScheduleFreeState`.
    """
    found = [x for x in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(x)]
    if len(found) != 1:
        raise ValueError(
            "schedule_free_eval_params: the state must contain one ScheduleFreeState; "
            f"found {len(found)}. For other states, call `opt.eval_params(state, "
            "params)`."
        )
    (own,) = found

    def leaf(y: Any, z: Any) -> Any:
        if z is None:  # Masked out, or not a parameter.
            return y
        if isinstance(z, RealAndImaginary):
            return lax.complex(leaf(y.real, z.real), leaf(y.imag, z.imaginary))
        return tree.map(_average, y, z, own.b1)

    leaves = eqx.filter(params, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(leaf, leaves, own.z), params)


def _is_ours(x: Any) -> bool:
    return isinstance(x, ScheduleFreeState)
