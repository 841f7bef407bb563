"""Schedule-Free: averaging and interpolation in place of a learning-rate schedule."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from contrib_algos import RMS
from contrib_core import (
    AbstractState,
    AbstractTransform,
    add_decayed_weights,
    as_transform,
    at,
    chain,
    check_fraction,
    check_nonnegative,
    check_one_of,
    Count,
    Extra,
    increment,
    ISOMETRIES,
    LinearWarmup,
    merge_metrics,
    name_of,
    P,
    RealLike,
    RealOrSchedule,
    Scalar,
    scale_by_learning_rate,
    Transform,
    Tree,
    tree,
    zero_count,
)

from ._split import RealAndImaginary


class ScheduleFreeState(AbstractState[P]):
    """State of [`contrib_wrappers.ScheduleFree`][]."""

    b1: Scalar  # \beta, for `schedule_free_eval_params`
    weight_sum: Scalar  # \sum w_i
    step_count: Count  # t
    max_lr: Scalar  # \max \gamma_i
    base_optimizer_state: Any
    z: P  # z_t, the iterates of the base optimizer


class ScheduleFree(AbstractTransform[ScheduleFreeState[Tree]]):
    r"""Runs a base optimizer on $z$, and trains at an interpolation with its average.

    With $w_t = (\max_{i \le t} \gamma_i)^p$, $c_t = w_t / \sum_{i \le t} w_i$ and $u_t$
    the base optimizer's update at $y_t$, the parameters:

    $$z_{t+1} = z_t + u_t, \quad
      x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}, \quad
      y_{t+1} = (1 - \beta) z_{t+1} + \beta x_{t+1}$$

    The average $x$, where the model is to be evaluated, is not stored: it follows from
    $y$ and $z$. Eliminating it, $y_{t+1} - y_t = c_t (z_{t+1} - y_t) + (1 - c_t)
    (1 - \beta) u_t$, which needs no division by $\beta$. Invariances are those of the
    base optimizer.

    ??? cite "Reference"

        Defazio et al., *The Road Less Scheduled*, arXiv 2405.15682, equations (3) to
        (5); weights as in the authors' code.

    **Arguments:**

    - `base_optimizer`: a transform, ours or optax's, whose learning rate is
        `learning_rate`, and without momentum: the interpolation takes its place.
    - `learning_rate`: $\gamma$, number or schedule, with warm-up and without decay.
        Only its ratios over time matter here.
    - `b1`: $\beta$ in [0, 1). At 0 the parameters are $z$, and the average is lost.
    - `weight_lr_power`: $p \ge 0$.
    - `state_dtype`: $z$ is kept in the wider of it and the parameters' own dtype;
        `None`, in its own.
    - `base_at`: the parameters that the base optimizer is shown, for weight decay or
        distances: "y", where the gradients are taken, or "z", which its own updates
        have moved, in the dtype that it is kept in. DoG wants "z": y follows only
        slowly, and so would its distance. COCOB and Mechanic need it.

    **Raises:** `ValueError` for `b1` outside [0, 1), for a negative `learning_rate` or
    `weight_lr_power`, for another `base_at` than "y" and "z", for "z" around a base
    that needs `value`, and for "y" around one that recovers points of its own from the
    parameters.

    **Differences from optax.contrib:**

    - The weight and the base optimizer read their learning rates at the same count. In
        optax these differ by one, so that warm-up differs from the authors' code.
    - `b1 = 0` is legal, and `b1` and the weights are float32 or wider always.
    - `state_dtype` never narrows: float64 and complex parameters keep their precision.
    """

    base_optimizer: AbstractTransform = eqx.field(converter=as_transform)
    learning_rate: RealOrSchedule
    b1: RealLike = 0.9
    weight_lr_power: RealLike = 2.0
    state_dtype: DTypeLike | None = eqx.field(default=jnp.float32, static=True)
    base_at: Literal["y", "z"] = eqx.field(default="y", static=True)

    def __post_init__(self):
        check_fraction(self, "b1")
        check_nonnegative(self, "learning_rate", "weight_lr_power")
        check_one_of(self, "base_at", "y", "z")
        base = as_transform(self.base_optimizer)  # Converted only after this.
        if self.base_at == "z" and "value" in base.needs:
            raise ValueError(
                'ScheduleFree: with base_at="z" the base optimizer is shown z, but the '
                'value is that at y. For a base that needs `value`, say base_at="y".'
            )
        if self.base_at == "y" and "iterates" in base.needs:
            raise ValueError(
                f"ScheduleFree: {name_of(base)} recovers points "
                "of its own from parameters that it alone has moved. These are z, and "
                'not y: say base_at="z".'
            )

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, to be where it has put them, for the average is recovered
        from them; and what the base optimizer needs."""
        return self.base_optimizer.needs | {"params", "iterates"}

    @property
    def laws(self) -> frozenset[str]:
        """The symmetries of the base optimizer, which averages keep."""
        kept = ISOMETRIES | {"gradient_scale", "units", "monotone"}
        return self.base_optimizer.laws & kept | {"average"}

    def start(self, params: Tree) -> ScheduleFreeState[Tree]:
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
        self, grads: Tree, state: ScheduleFreeState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, ScheduleFreeState[Tree]]:
        base_params = params
        if self.base_at == "z":
            base_params = state.z  # As wide as it is, for what recovers points from it.
            extra = extra.without("value")  # Which belongs to y.
        u, base_state = self.base_optimizer.step(
            grads, state.base_optimizer_state, base_params, extra
        )
        lr = at(self.learning_rate, state.step_count, like=state.b1)
        max_lr = jnp.maximum(state.max_lr, lr)
        weight = max_lr**self.weight_lr_power
        weight_sum = state.weight_sum + weight
        c = tree.divide(weight, weight_sum)

        # In terms of the new z, so that z can be updated in place.
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

    def eval_point(self, state: ScheduleFreeState[Tree], params: Tree) -> Tree:
        """The average $x = (y - (1-\\beta) z) / \\beta$."""
        return tree.map(_average, params, state.z, state.b1)

    def metrics(self, state: ScheduleFreeState[Tree]) -> dict[str, Scalar]:
        """`schedule_free/weight`: the last $c_t$; and those of the base optimizer,
        prefixed by `base` where that is schedule-free too."""
        weight = state.max_lr**self.weight_lr_power
        own = {"schedule_free/weight": tree.divide(weight, state.weight_sum)}
        base = self.base_optimizer.metrics(state.base_optimizer_state)
        return merge_metrics(own, base, "base")


def _average(y: Array, z: Array, b1: Array) -> Array:
    return jnp.where(b1 == 0, y, tree.divide(y - (1 - b1) * z, b1))


def schedule_free(
    base_optimizer: Transform,
    learning_rate: RealOrSchedule,
    b1: RealLike = 0.9,
    weight_lr_power: RealLike = 2.0,
    state_dtype: DTypeLike | None = jnp.float32,
    *,
    base_at: Literal["y", "z"] = "y",
) -> ScheduleFree:
    """Makes `base_optimizer` schedule-free: [`contrib_wrappers.ScheduleFree`][]."""
    return ScheduleFree(
        base_optimizer, learning_rate, b1, weight_lr_power, state_dtype, base_at
    )


def schedule_free_sgd(
    learning_rate: RealOrSchedule = 1.0,
    warmup_steps: RealLike | None = None,
    b1: RealLike = 0.9,
    weight_decay: RealLike | None = None,
    weight_lr_power: RealLike = 2.0,
    state_dtype: DTypeLike | None = jnp.float32,
    *,
    mask: Any = None,
    decay_at: Literal["y", "z"] = "y",
) -> ScheduleFree:
    r"""Schedule-free gradient descent.

    **Arguments:**

    - `learning_rate`: $\gamma$, in units of parameters over gradients.
    - `warmup_steps`: if given, step $k$ (from 0) has the learning rate
        $\gamma \min(1, (k + 1) / \text{warmup\_steps})$.
    - `weight_decay`: times the parameters, is added to the gradients.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].
    - `decay_at`: the parameters that decay, "y" as in the authors' code or "z".
    - the rest: as for [`contrib_wrappers.ScheduleFree`][].

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_wrappers import schedule_free_sgd
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = schedule_free_sgd()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(5):
        ...     updates, state = opt.update(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> print(f"{f(opt.eval_params(state, x)):.3f}")
        0.241

        ```
    """
    learning_rate = _warmed_up(learning_rate, warmup_steps)
    base = _base([], learning_rate, weight_decay, mask)
    return ScheduleFree(base, learning_rate, b1, weight_lr_power, state_dtype, decay_at)


def schedule_free_adamw(
    learning_rate: RealOrSchedule = 0.0025,
    warmup_steps: RealLike | None = None,
    b1: RealLike = 0.9,
    b2: RealLike = 0.999,
    eps: RealLike = 1e-8,
    weight_decay: RealLike | None = 0.0,
    weight_lr_power: RealLike = 2.0,
    state_dtype: DTypeLike | None = jnp.float32,
    *,
    mask: Any = None,
    decay_at: Literal["y", "z"] = "y",
) -> ScheduleFree:
    """Schedule-free AdamW, without a buffer for the first moment.

    **Arguments:**

    - `learning_rate`: in units of the parameters.
    - `b2`, `eps`: of the second moment, as for [`contrib_algos.Adam`][].
    - `weight_decay`: per step, in units of the learning rate.
    - the rest: as for [`contrib_wrappers.schedule_free_sgd`][].
    """
    learning_rate = _warmed_up(learning_rate, warmup_steps)
    base = _base([RMS(b2, eps)], learning_rate, weight_decay, mask)
    return ScheduleFree(base, learning_rate, b1, weight_lr_power, state_dtype, decay_at)


def _warmed_up(
    learning_rate: RealOrSchedule, warmup_steps: RealLike | None
) -> RealOrSchedule:
    if warmup_steps is None:
        return learning_rate
    return LinearWarmup(learning_rate, warmup_steps)


def _base(
    direction: list[Transform],
    learning_rate: RealOrSchedule,
    weight_decay: RealLike | None,
    mask: Any,
) -> AbstractTransform:
    decay = add_decayed_weights(weight_decay, mask)
    return chain(*direction, decay, scale_by_learning_rate(learning_rate))


def schedule_free_eval_params(state: PyTree[Any], params: PyTree[Any]) -> PyTree[Any]:
    """The parameters to evaluate a schedule-free model at.

    As `opt.eval_params(state, params)`, for code that has the state only. (Inside
    `master_weights` the latter is more precise: it knows the wide copy of `params`.)

    **Arguments:**

    - `state`: a [`contrib_wrappers.ScheduleFreeState`][], or any state that contains
        one: of a chain, a mask, a wrapper.
    - `params`: the parameters, or the model, as given to `update`.

    **Raises:** `ValueError` unless `state` contains exactly one such state.
    """
    found = [x for x in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(x)]
    if len(found) != 1:
        raise ValueError(
            "schedule_free_eval_params: the state must contain one ScheduleFreeState; "
            f"found {len(found)}. For others, call `opt.eval_params(state, params)`."
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
