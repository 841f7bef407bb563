"""Sharpness-aware minimisation: descent at the worst point nearby."""

from dataclasses import KW_ONLY
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    Extra,
    merge_metrics,
    name_of,
    tree,
)
from contrib_core.claims import claim, ISOMETRIES, Laws, Needs, Terms
from contrib_core.ranges import Natural, NonNegative, static
from contrib_core.schedule import increment, zero_count
from contrib_core.typing import Count, P, Scalar, Tree


class SAMState(AbstractState):
    """State of [`contrib_wrappers.SAM`][]."""

    steps_since_sync: Count  # adversarial steps since the last outer step
    opt_state: Any
    adv_state: Any
    cache: P | None  # x_k; `None` if the parameters are always x_k


class SAM(AbstractTransform[SAMState]):
    r"""Sharpness-aware minimisation: runs an optimizer with the gradients at a nearby
    point that an adversary chooses.

    Let $a$ be the adversary's updates, and $u$ those of the optimizer, which gets the
    parameters $x_k$ and the gradients at $y_{p-1}$:

    $$y_0 = x_k, \quad y_{i+1} = y_i - a(\nabla f(y_i)), \quad
      x_{k+1} = x_k + u(\nabla f(y_{p-1}))$$

    The minus sign turns the adversary, an ordinary optimizer that would descend, into
    one that ascends. The paper's method has $p = 2$ and the adversary
    `chain(normalize(), sgd(rho))`:

    $$y_1 = x_k + \rho \frac{\nabla f(x_k)}{\|\nabla f(x_k)\|}$$

    In *transparent* mode, each call of `update` takes one of these $p$ steps. Between
    outer steps, the parameters are $y_i$; `eval_params` always returns $x_k$. In
    *opaque* mode, each call takes all $p$ steps, and calls `grad_fn` for the gradients
    in between. Only the optimizer whose turn it is runs. With period 1, the optimizer
    runs alone. Averaging wrappers belong inside, as in `sam(schedule_free(...), ...)`,
    so that they average $x_k$.

    The invariances are those that both optimizers share. The adaptive adversary depends
    on the axes and on the origin.

    ??? cite "Reference"

        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving
        Generalization*, arXiv 2010.01412, algorithm 1. Adaptive: Kwon et al., *ASAM*,
        arXiv 2102.11600, algorithm 1.

    **Arguments:**

    - `optimizer`: a transform, ours or optax's. Its learning-rate schedule counts outer
        steps.
    - `adv_optimizer`: a transform, ours or optax's, written as if to descend. SAM
        negates its updates.
    - `sync_period`: $p \ge 1$, the number of gradients per outer step.
    - `reset_state`: whether the adversary restarts after each outer step.
    - `opaque_mode`: whether `update` takes the adversarial steps itself, with gradients
        from `grad_fn(params, i)` for $i$ from 0 to $p - 2$. The gradients that are
        passed to `update` are those at $y_0$.
    - `batch_axis_name`: in opaque mode, the axis of `jax.vmap` or `jax.shard_map` over
        which the gradients of `grad_fn` are averaged.
    - `adaptive`: whether the adversary gets $T \nabla f(y)$ and moves by $T$ times its
        updates, with $T = |y| + \eta$ entrywise. Use it for parameters whose scale does
        not matter, such as weights before a normalisation layer.
    - `eta`: $\eta \ge 0$, in units of the parameters; the authors use 0.01.

    **Raises:** `ValueError`

    - for a `sync_period` below 1 or a negative `eta`;
    - for a `batch_axis_name` in transparent mode;
    - for an adversary that recovers its own points from the parameters, because SAM
        negates its updates;
    - in opaque mode, for optimizers that need `value`, because the value at $x_k$ does
        not belong to the gradients at $y_i$.

    **Differences from optax.contrib:**

    - With period 1, the optimizer runs alone. In optax, it moves away from a start that
        is never updated, and diverges.
    - The optimizer that does not run cannot affect the result. optax mixes the updates
        of both by multiplication with 0 and 1, so an infinity in one becomes NaN.
    - States may hold flags and typed random keys. `value` and other extras reach the
        optimizer that runs. The adversary restarts at the new parameters.
    - `adaptive` does not exist in optax.

    !!! info

        In transparent mode, `value` is passed on unchanged. At an outer step, the
        optimizer thus gets the loss at $y_{p-1}$, where its gradients were taken too.
        Both belong to the worst loss nearby, so Polyak steps are consistent.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import normalize, sgd
        >>> from contrib_core import chain
        >>> from contrib_wrappers import sam
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = sam(sgd(0.1), chain(normalize(), sgd(0.05)))
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(20):
        ...     updates, state = opt.update(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> print(f"{f(x):.3f}")
        0.128

        ```

        In opaque mode, ten calls do the same:

        ```python
        >>> opt = sam(sgd(0.1), chain(normalize(), sgd(0.05)), opaque_mode=True)
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> grad_fn = lambda x, i: jax.grad(f)(x)
        >>> for _ in range(10):
        ...     grads = jax.grad(f)(x)
        ...     updates, state = opt.update(grads, state, x, grad_fn=grad_fn)
        ...     x = x + updates
        >>> print(f"{f(x):.3f}")
        0.128

        ```
    """

    terms: ClassVar[Terms] = {
        "period_one": {"period": "sync_period"},
        "radius_zero": {"adversary": "adv_optimizer", "opaque": "opaque_mode"},
        "opaque": {"adversary": "adv_optimizer", "opaque": "opaque_mode"},
    }

    optimizer: AbstractTransform[Any] = eqx.field(converter=as_transform)
    adv_optimizer: AbstractTransform[Any] = eqx.field(converter=as_transform)
    sync_period: Natural = static(2)
    reset_state: bool = static(True)
    opaque_mode: bool = static(False)
    batch_axis_name: str | None = static(None)
    _: KW_ONLY
    adaptive: bool = static(False)
    eta: NonNegative = 0.01

    def __check_init__(self):
        if self.adv_optimizer.owns_iterates:
            raise ValueError(
                f"SAM: the adversary {name_of(self.adv_optimizer)} recovers points of "
                "its own from the parameters. They would be wrong, because SAM moves "
                "the parameters against its updates. Pass an adversary such as "
                "`chain(normalize(), sgd(rho))`. As the `optimizer`, it is allowed."
            )
        if self.batch_axis_name is not None and not self.opaque_mode:
            raise ValueError(
                f"SAM: batch_axis_name={self.batch_axis_name!r} is the axis over which "
                "the gradients of `grad_fn` are averaged, so it requires opaque mode. "
                "Pass opaque_mode=True, or average the gradients for `update` yourself "
                "with `jax.lax.pmean`."
            )
        needs = self.optimizer.needs | self.adv_optimizer.needs
        if self._hides_steps and "value" in needs:
            raise ValueError(
                "SAM: in opaque mode the `value` is the loss at the parameters, but "
                "the gradients are taken at other points. For an optimizer that needs "
                "`value`, pass opaque_mode=False."
            )

    @property
    def _hides_steps(self) -> bool:
        return self.opaque_mode and self.sync_period != 1

    @property
    def _shows_steps(self) -> bool:
        return not self.opaque_mode and self.sync_period != 1

    @property
    def needs(self) -> Needs:
        """Everything that both optimizers need, plus the parameters and, in opaque
        mode, `grad_fn`.

        With period 1, everything that the optimizer needs.
        """
        if self.sync_period == 1:
            return self.optimizer.needs
        own: Needs = frozenset({"params"})
        if self.opaque_mode:
            own = frozenset({"params", "grad_fn"})
        return self.optimizer.needs | self.adv_optimizer.needs | own

    @property
    def owns_iterates(self) -> bool:
        """True in transparent mode, where the adversary moves the parameters. Otherwise
        whether the optimizer owns its iterates."""
        return self.optimizer.owns_iterates or self._shows_steps

    @property
    def laws(self) -> Laws:
        """The symmetries that both optimizers share, plus the laws about estimates of
        `optimizer`. With period 1, every law of `optimizer`, plus `neutral`."""
        if self.sync_period == 1:
            return self.optimizer.laws | claim("neutral")
        symmetries = ISOMETRIES | claim("gradient_scale", "units")
        if self.adaptive:
            symmetries = claim("permutation", "partition", "gradient_scale")
        both = self.optimizer.laws & self.adv_optimizer.laws & symmetries
        estimates = {"monotone", "bounded_growth", "initial_guess"}
        return both | self.optimizer.laws & estimates

    def start(self, params: Tree) -> SAMState:
        return SAMState(
            steps_since_sync=zero_count(),
            opt_state=self.optimizer.start(params),
            adv_state=self.adv_optimizer.start(params),
            cache=params if self._shows_steps else None,
        )

    def step(
        self, grads: Tree, state: SAMState, params: Tree, extra: Extra
    ) -> tuple[Tree, SAMState]:
        if self._shows_steps:
            return self._shown(grads, state, params, extra)
        if self._hides_steps:
            return self._hidden(grads, state, params, extra)
        updates, opt_state = self.optimizer.step(grads, state.opt_state, params, extra)
        return updates, SAMState(
            state.steps_since_sync, opt_state, state.adv_state, state.cache
        )

    def _shown(
        self, grads: Tree, state: SAMState, params: Tree, extra: Extra
    ) -> tuple[Tree, SAMState]:
        """Transparent mode: one step of the optimizer whose turn it is."""
        is_first = state.steps_since_sync == 0
        is_outer = state.steps_since_sync == self.sync_period - 1
        # A select would write the whole cache in every step; `cond` does not.
        cache = lax.cond(
            is_first, lambda: tree.cast_like(params, state.cache), lambda: state.cache
        )

        def outer(opt_state: Any, adv_state: Any) -> tuple[Tree, Any, Any]:
            # Value and gradients both belong to `params`, the worst point near the
            # cache.
            u, opt_state = self.optimizer.step(grads, opt_state, cache, extra)
            return tree.widen(u), opt_state, self._reset(adv_state, cache, u)

        def adversarial(opt_state: Any, adv_state: Any) -> tuple[Tree, Any, Any]:
            ascent, adv_state = self._ascend(grads, adv_state, params, extra)
            return tree.widen(ascent), opt_state, adv_state

        u, opt_state, adv_state = lax.cond(
            is_outer, outer, adversarial, state.opt_state, state.adv_state
        )
        updates = tree.map(
            lambda x, x_k, u: jnp.where(is_outer, (x_k - x) + u, u), params, cache, u
        )
        next_step = increment(state.steps_since_sync)
        return updates, SAMState(
            steps_since_sync=jnp.where(is_outer, zero_count(), next_step),
            opt_state=opt_state,
            adv_state=adv_state,
            cache=cache,
        )

    def _hidden(
        self, grads: Tree, state: SAMState, params: Tree, extra: Extra
    ) -> tuple[Tree, SAMState]:
        """Opaque mode: all steps of a period."""
        extra = extra.without("value")  # The value belongs to `params` only.
        point, adv_state = params, state.adv_state
        for i in range(self.sync_period - 1):
            ascent, adv_state = self._ascend(grads, adv_state, point, extra)
            point = tree.add(point, ascent)
            grads = extra.grad_fn(point, i)
            if self.batch_axis_name is not None:
                grads = lax.pmean(grads, self.batch_axis_name)
        updates, opt_state = self.optimizer.step(grads, state.opt_state, params, extra)
        adv_state = self._reset(adv_state, params, updates)
        return updates, SAMState(
            state.steps_since_sync, opt_state, adv_state, state.cache
        )

    def _ascend(
        self, grads: Tree, adv_state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        """The adversary's step, negated."""
        if self.adaptive:
            grads = self._times_size(grads, params)
        u, adv_state = self.adv_optimizer.step(grads, adv_state, params, extra)
        if self.adaptive:
            u = self._times_size(u, params)
        return tree.scale(-1, u), adv_state

    def _times_size(self, x: Tree, params: Tree) -> Tree:
        """`T x` of the adaptive adversary, bounded, because both may be large."""
        product = tree.map(
            lambda x, p, eta: (jnp.abs(p) + eta) * x, tree.widen(x), params, self.eta
        )
        return tree.saturate(product)

    def _reset(self, adv_state: Any, params: Tree, updates: Tree) -> Any:
        """The adversary's state after an outer step from `params`."""
        if not self.reset_state:
            return adv_state
        return self.adv_optimizer.start(tree.add(params, updates))

    def eval_point(self, state: SAMState, params: Tree) -> Tree:
        """The evaluation point of the optimizer at $x_k$, which the cache holds between
        outer steps."""
        if self._shows_steps:
            params = tree.where(state.steps_since_sync == 0, params, state.cache)
        return self.optimizer.eval_point(state.opt_state, params)

    def metrics(self, state: SAMState) -> dict[str, Scalar]:
        """The metrics of both optimizers. A name that occurs twice gets the prefix
        `adv` for the adversary."""
        outer = self.optimizer.metrics(state.opt_state)
        adversary = self.adv_optimizer.metrics(state.adv_state)
        return merge_metrics(outer, adversary, "adv")


sam = SAM
