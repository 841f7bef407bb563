"""Averages of the iterates, to evaluate the model at."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    at,
    check_fraction,
    check_nonnegative,
    Count,
    debias,
    Extra,
    increment,
    merge_metrics,
    P,
    RealLike,
    Scalar,
    Schedule,
    Transform,
    Tree,
    tree,
    zero_count,
)


class PolynomialDecay(eqx.Module):
    r"""The weight $w_t = (1 + \gamma) / (t + \gamma)$ of iterate $t = 1, 2, \dots$

    Then iterate $i$ counts about as $i^\gamma$: half of the average is made of the last
    $1 - 2^{-1 / (1 + \gamma)}$ of the iterates, at $\gamma = 8$ of the last 7 percent.

    ??? cite "Reference"

        Shamir & Zhang, *Stochastic Gradient Descent for Non-smooth Optimization:
        Convergence Results and Optimal Averaging Schemes*, arXiv 1212.1824, section 4.

    **Arguments:**

    - `gamma`: $\gamma \ge 0$, dimensionless; 0 is the mean of all iterates.

    **Raises:** `ValueError` for a negative `gamma`.
    """

    gamma: RealLike = 8.0

    def __post_init__(self):
        check_nonnegative(self, "gamma")

    def __call__(self, count: Count) -> Scalar:
        """The weight of iterate `count`, in the default float dtype."""
        dtype = jnp.result_type(float)
        gamma = jnp.asarray(self.gamma, dtype)
        return (1 + gamma) / (jnp.asarray(count, dtype) + gamma)


class Exponential(eqx.Module):
    r"""The weight $w_t = (1 - \beta) / (1 - \beta^t)$ of iterate $t = 1, 2, \dots$

    Then iterate $i$ of $t$ counts as $\beta^{t - i}$: an exponential moving average,
    without the bias towards its start.

    ??? cite "Reference"

        Kingma & Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980,
        section 3.

    **Arguments:**

    - `decay`: $\beta$ in [0, 1), dimensionless; 0 is the last iterate.

    **Raises:** `ValueError` for a `decay` outside [0, 1).
    """

    decay: RealLike = 0.999

    def __post_init__(self):
        check_fraction(self, "decay")

    def __call__(self, count: Count) -> Scalar:
        """The weight of iterate `count`, in the default float dtype."""
        like = jnp.zeros((), jnp.result_type(float))
        # Both by `debias`, so that the first weight is exactly 1.
        first = increment(zero_count())
        return debias(self.decay, first, like) / debias(self.decay, count, like)


def polynomial_decay(gamma: RealLike = 8.0) -> PolynomialDecay:
    r"""Weights $(1 + \gamma) / (t + \gamma)$: [`contrib_wrappers.PolynomialDecay`][].
    At 8 they are those of the authors of DoG."""
    return PolynomialDecay(gamma)


def uniform() -> PolynomialDecay:
    """Weights $1 / t$, so that the average is the mean of all iterates."""
    return PolynomialDecay(0.0)


def exponential(decay: RealLike = 0.999) -> Exponential:
    r"""Weights $(1 - \beta) / (1 - \beta^t)$: [`contrib_wrappers.Exponential`][]."""
    return Exponential(decay)


class AverageState(AbstractState[P]):
    """State of [`contrib_wrappers.Average`][]."""

    inner_state: Any
    average: P  # a_t
    count: Count  # t


class Average(AbstractTransform[AverageState[Tree]]):
    r"""Averages the iterates of `inner`, and changes nothing else.

    With $x_t$ the parameters after $t$ steps of `inner`:

    $$a_t = (1 - w_t)\, a_{t-1} + w_t x_t, \quad t = 1, 2, \dots$$

    `eval_params` gives $a_t$. $w_1$ is 1, so the start has no part in it. If `inner`
    has points of its own to evaluate the model at, as schedule-free has, these are
    averaged. Updates, and so invariances, are those of `inner`.

    The average is kept in float32 or wider, of the parameters that the model has, which
    for parameters of 16 bits are rounded ones: those that the gradients were taken at.
    Inside of `contrib_wrappers.master_weights` they are those of the wide copy, and
    around it too.

    ??? cite "Reference"

        Ivgi, Hinder, Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step
        Size Schedule*, arXiv 2302.12022, section 4, where DoG is evaluated so; the
        weights are those of Shamir & Zhang, arXiv 1212.1824, section 4.

    **Arguments:**

    - `inner`: a transform, ours or optax's, learning rate included: $x_t$ is where its
        updates lead.
    - `weight`: a function of the count $t$, from 1 on, to the weight $w_t$ in [0, 1]:
        [`contrib_wrappers.polynomial_decay`][], [`contrib_wrappers.uniform`][],
        [`contrib_wrappers.exponential`][], or another with $w_1 = 1$.

    **Raises:** `ValueError` for a `weight` that is no function, or makes one.

    **Differences from optax.contrib and from the paper:** optax.contrib has no such
    wrapper. The weights and the average are those of the authors' code, rounded to the
    average's dtype so that $w_t$ and $1 - w_t$ add up to 1 exactly.
    """

    inner: AbstractTransform = eqx.field(converter=as_transform)
    weight: Schedule = PolynomialDecay()

    def __post_init__(self):
        is_recipe = self.weight in (polynomial_decay, uniform, exponential)
        if is_recipe or isinstance(self.weight, type):
            raise ValueError(
                "Average: `weight` makes weights when it is called: "
                f"`average(inner, {self.weight.__name__}())`."
            )
        if not callable(self.weight):
            raise ValueError(
                "Average: `weight` must be a function of the count from 1 on, whose "
                f"first value is 1, such as `uniform()`; got {self.weight!r}."
            )

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, which it averages where its updates lead, and what `inner`
        needs."""
        return self.inner.needs | {"params", "iterates"}

    @property
    def laws(self) -> frozenset[str]:
        """Those of `inner` that are about updates and estimates, and neutrality."""
        evaluated = {"average", "initial_guess"}
        return self.inner.laws - evaluated | {"neutral"}

    def start(self, params: Tree) -> AverageState[Tree]:
        return AverageState(
            inner_state=self.inner.start(params),
            average=tree.widen(params),
            count=zero_count(),
        )

    def step(
        self, grads: Tree, state: AverageState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, AverageState[Tree]]:
        updates, inner_state = self.inner.step(grads, state.inner_state, params, extra)
        count = increment(state.count)
        new_params = tree.add(params, tree.cast_like(updates, params))
        iterate = self.inner.eval_point(inner_state, new_params)
        weight = at(self.weight, count, like=state.average)
        # Rounded so that it and its complement add up to 1. In float32 1 - 1e-3 is off
        # by 1e-8, and the average of a constant would be off by 1e-5 of it.
        weight = 1 - (1 - weight)
        new_state = AverageState(
            inner_state=inner_state,
            average=tree.lerp(state.average, iterate, weight),
            count=count,
        )
        return updates, new_state

    def eval_point(self, state: AverageState[Tree], params: Tree) -> Tree:
        return state.average

    def metrics(self, state: AverageState[Tree]) -> dict[str, Scalar]:
        """`average/weight`: $w_t$ of the last iterate; and those of `inner`, prefixed
        by `inner` where that averages too."""
        count = jnp.maximum(state.count, 1)  # Before the first step, what it will be.
        own = {"average/weight": at(self.weight, count, like=state.average)}
        return merge_metrics(own, self.inner.metrics(state.inner_state), "inner")


def average(inner: Transform, weight: Schedule = PolynomialDecay()) -> Average:
    """Averages the iterates of `inner`: [`contrib_wrappers.Average`][], whose arguments
    these are.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import sgd
        >>> from contrib_wrappers import average, uniform
        >>> opt = average(sgd(0.25), uniform())
        >>> x = jnp.array(8.0)
        >>> state = opt.init(x)
        >>> for _ in range(3):  # x becomes 4, 2, 1.
        ...     updates, state = opt.update(jax.grad(jnp.square)(x), state, x)
        ...     x = x + updates
        >>> print(f"{x:.3f} {opt.eval_params(state, x):.3f}")
        1.000 2.333

        ```
    """
    return Average(inner, weight)
