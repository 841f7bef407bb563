"""Averages of the iterates, for evaluating the model."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    Extra,
    merge_metrics,
    tree,
)
from contrib_core.claims import claim, Laws, Needs, PARAMS
from contrib_core.ranges import enforce_ranges, Fraction, NonNegative
from contrib_core.schedule import debias, increment, value_at, zero_count
from contrib_core.typing import Count, P, Scalar, Schedule, Tree


class PolynomialDecay(eqx.Module):
    r"""The weight $w_t = (1 + \gamma) / (t + \gamma)$ of iterate $t = 1, 2, \dots$

    Iterate $i$ then has a weight of about $i^\gamma$ in the average. The last fraction
    $1 - 2^{-1 / (1 + \gamma)}$ of the iterates has half of the total weight; with
    $\gamma = 8$, these are the last 7 percent.

    ??? cite "Reference"

        Shamir & Zhang, *Stochastic Gradient Descent for Non-smooth Optimization:
        Convergence Results and Optimal Averaging Schemes*, arXiv 1212.1824, section 4.

    **Arguments:**

    - `gamma`: $\gamma \ge 0$, dimensionless; 0 gives the mean of all iterates.

    **Raises:** `ValueError` for a negative `gamma`.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_wrappers import polynomial_decay
        >>> print(jax.vmap(polynomial_decay(1.0))(jnp.arange(1, 4)))
        [1.        0.6666667 0.5      ]

        ```
    """

    gamma: NonNegative = 8.0

    def __check_init__(self):
        enforce_ranges(self)

    def __call__(self, count: Count) -> Scalar:
        """The weight of iterate `count`, in the default float dtype."""
        dtype = jnp.result_type(float)
        gamma = jnp.asarray(self.gamma, dtype)
        return (1 + gamma) / (jnp.asarray(count, dtype) + gamma)


class Exponential(eqx.Module):
    r"""The weight $w_t = (1 - \beta) / (1 - \beta^t)$ of iterate $t = 1, 2, \dots$

    After $t$ steps, iterate $i$ has a weight proportional to $\beta^{t - i}$. The
    result is an exponential moving average with bias correction.

    ??? cite "Reference"

        Kingma & Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980,
        section 3.

    **Arguments:**

    - `decay`: $\beta$ in [0, 1), dimensionless; 0 gives the last iterate.

    **Raises:** `ValueError` for a `decay` outside [0, 1).

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_wrappers import exponential
        >>> print(jax.vmap(exponential(0.5))(jnp.arange(1, 4)))
        [1.        0.6666667 0.5714286]

        ```
    """

    decay: Fraction = 0.999

    def __check_init__(self):
        enforce_ranges(self)

    def __call__(self, count: Count) -> Scalar:
        """The weight of iterate `count`, in the default float dtype."""
        like = jnp.zeros((), jnp.result_type(float))
        # Both use `debias`, so that the first weight is exactly 1.
        first = increment(zero_count())
        return debias(self.decay, first, like) / debias(self.decay, count, like)


polynomial_decay = PolynomialDecay

exponential = Exponential


def uniform() -> PolynomialDecay:
    """Weights $1 / t$, which make the average the mean of all iterates."""
    return PolynomialDecay(0.0)


class AverageState(AbstractState):
    """State of [`contrib_wrappers.Average`][]."""

    inner_state: Any
    average: P  # a_t
    count: Count  # t


class Average(AbstractTransform[AverageState]):
    r"""Averages the iterates of `inner`, and returns the updates of `inner` unchanged.

    Let $x_t$ be the parameters after $t$ steps of `inner`. The average is

    $$a_t = (1 - w_t)\, a_{t-1} + w_t x_t, \quad t = 1, 2, \dots$$

    `eval_params` returns $a_t$. Since $w_1 = 1$, the initial parameters do not enter
    the average. If `inner` has its own evaluation points, as schedule-free does, the
    wrapper averages these points instead of $x_t$. The updates are those of `inner`, so
    the invariances are too.

    The average is stored in float32 or wider. It averages the model's parameters after
    rounding to their dtype, because the gradients are taken there. With
    `contrib_wrappers.master_weights`, inside or outside of this wrapper, it averages
    the wide copy.

    ??? cite "Reference"

        Ivgi, Hinder, Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step
        Size Schedule*, arXiv 2302.12022, section 4, evaluates DoG at such an average.
        The weights come from Shamir & Zhang, arXiv 1212.1824, section 4.

    **Arguments:**

    - `inner`: a transform, ours or optax's, that includes the learning rate, because
        its updates are added to the parameters to get $x_t$.
    - `weight`: a function that maps the count $t = 1, 2, \dots$ to the weight $w_t$ in
        [0, 1], with $w_1 = 1$. Examples are [`contrib_wrappers.PolynomialDecay`][],
        [`contrib_wrappers.uniform`][] and [`contrib_wrappers.Exponential`][].

    **Raises:** `ValueError` if `weight` is not a function, or if it is a class or
    recipe that must be called first: pass `uniform()`, not `uniform`.

    **Differences from optax.contrib and from the paper:** optax.contrib has no such
    wrapper. Weights and average follow the authors' code. In addition, $w_t$ is rounded
    so that $w_t$ and $1 - w_t$ add up to exactly 1 in the dtype of the average.

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

    inner: AbstractTransform[Any] = eqx.field(converter=as_transform)
    weight: Schedule = PolynomialDecay()

    def __check_init__(self):
        if self.weight is uniform or isinstance(self.weight, type):
            raise ValueError(
                "Average: `weight` must be called before it is passed: "
                f"`average(inner, {self.weight.__name__}())`."
            )
        if not callable(self.weight):
            raise ValueError(
                "Average: `weight` must be a function of the count from 1 on, whose "
                f"first value is 1, such as `uniform()`; got {self.weight!r}."
            )

    @property
    def needs(self) -> Needs:
        """Everything that `inner` needs, plus the parameters, which it averages."""
        return self.inner.needs | PARAMS

    @property
    def owns_iterates(self) -> bool:
        """Always true: nothing but its updates may move the parameters, because it
        averages the points that its updates lead to."""
        return True

    @property
    def laws(self) -> Laws:
        """Every law of `inner` except those about the evaluation point, plus `neutral`:
        it changes no update."""
        return self.inner.laws - {"average", "initial_guess"} | claim("neutral")

    def start(self, params: Tree) -> AverageState:
        return AverageState(
            inner_state=self.inner.start(params),
            average=tree.widen(params),
            count=zero_count(),
        )

    def step(
        self, grads: Tree, state: AverageState, params: Tree, extra: Extra
    ) -> tuple[Tree, AverageState]:
        updates, inner_state = self.inner.step(grads, state.inner_state, params, extra)
        count = increment(state.count)
        new_params = tree.add(params, tree.cast_like(updates, params))
        iterate = self.inner.eval_point(inner_state, new_params)
        weight = value_at(self.weight, count, like=state.average)
        # Round the weight so that it and its complement add up to exactly 1. In
        # float32, 1 - 1e-3 has an error of 1e-8; without this line, the average of a
        # constant would have a relative error of 1e-5.
        weight = 1 - (1 - weight)
        new_state = AverageState(
            inner_state=inner_state,
            average=tree.lerp(state.average, iterate, weight),
            count=count,
        )
        return updates, new_state

    def eval_point(self, state: AverageState, params: Tree) -> Tree:
        return state.average

    def metrics(self, state: AverageState) -> dict[str, Scalar]:
        """`average/weight`: the weight $w_t$ of the last iterate. The metrics of
        `inner` are included; a name that occurs twice gets the prefix `inner`."""
        count = jnp.maximum(state.count, 1)  # Before the first step, show its weight.
        own = {"average/weight": value_at(self.weight, count, like=state.average)}
        return merge_metrics(own, self.inner.metrics(state.inner_state), "inner")


average = Average
