"""Sharpness-aware minimisation: descent at the worst point nearby."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from contrib_core import (
    AbstractState,
    AbstractTransform,
    as_transform,
    check_nonnegative,
    check_whole,
    Count,
    Extra,
    increment,
    ISOMETRIES,
    merge_metrics,
    name_of,
    P,
    RealLike,
    Scalar,
    Transform,
    Tree,
    tree,
    zero_count,
)


class SAMState(AbstractState[P]):
    """State of [`contrib_wrappers.SAM`][]."""

    steps_since_sync: Count  # adversarial steps since the last outer one
    opt_state: Any
    adv_state: Any
    cache: P | None  # x_k; None where it is the parameters themselves


class SAM(AbstractTransform[SAMState[Tree]]):
    r"""Sharpness-aware minimisation: an optimizer, given the gradients at a point that
    an adversary has moved away to.

    From the parameters $x_k$, with $a$ the adversary's updates, and $u$ those of the
    optimizer, which is shown $x_k$, and gradients at $y_{p-1}$:

    $$y_0 = x_k, \quad y_{i+1} = y_i - a(\nabla f(y_i)), \quad
      x_{k+1} = x_k + u(\nabla f(y_{p-1}))$$

    So the adversary is written as one that descends, like any optimizer; and it is the
    paper's with $p = 2$ and `chain(normalize(), sgd(rho))`:

    $$y_1 = x_k + \rho \frac{\nabla f(x_k)}{\|\nabla f(x_k)\|}$$

    In *transparent* mode each call of `update` is one of these $p$ steps, and between
    two outer steps the parameters are $y_i$; `eval_params` are $x_k$ at all times. In
    *opaque* mode each call is all $p$, for which it asks `grad_fn` for gradients. Only
    the optimizer that is due is run. Period 1 is the optimizer alone. What averages
    goes inside, as `sam(schedule_free(...), ...)`, so that it averages $x_k$.

    Invariances are those that both optimizers have. The adaptive adversary knows the
    axes, and where the origin is.

    ??? cite "Reference"

        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving
        Generalization*, arXiv 2010.01412, algorithm 1. Adaptive: Kwon et al., *ASAM*,
        arXiv 2102.11600, algorithm 1.

    **Arguments:**

    - `optimizer`: a transform, ours or optax's. Its learning rate schedule counts outer
        steps.
    - `adv_optimizer`: a transform, ours or optax's, that would descend, and is made to
        ascend.
    - `sync_period`: $p \ge 1$, how many steps make an outer one.
    - `reset_state`: whether the adversary starts anew after each outer step.
    - `opaque_mode`: whether adversarial steps are taken inside of `update`, by
        `grad_fn(params, i)` for $i$ from 0 to $p - 2$. The gradients that `update` is
        given are those of the first one.
    - `batch_axis_name`: in opaque mode, the axis of `jax.vmap` or `jax.shard_map` over
        which the gradients of `grad_fn` are averaged.
    - `adaptive`: whether the adversary is given $T \nabla f(y)$, and moves by $T$ times
        its updates, with $T = |y| + \eta$ entrywise: for parameters whose scale does
        not matter, as before a normalisation.
    - `eta`: $\eta \ge 0$, in units of the parameters; 0.01 is the authors'.

    **Raises:** `ValueError` for a `sync_period` below 1, for a negative `eta`, for an
    adversary that recovers points of its own from the parameters, because it is moved
    against its updates; and in opaque mode for optimizers that need `value`, which
    belongs to parameters that they are not given the gradients of.

    **Differences from optax.contrib:**

    - Period 1 is the optimizer. In optax it moves away from a start that is never
        updated, and diverges.
    - Where nothing is chosen, nothing leaks: optax mixes both optimizers' updates by
        multiplication, so that one infinity makes NaN of the other.
    - States may hold flags and typed random keys; `value` and other extras reach the
        optimizer that is due; the adversary is reset to a start at the new parameters.
    - `adaptive` is not in optax.

    !!! info

        The loss at the parameters that `update` was given is passed on as it is: to the
        optimizer, at an outer step, that at $y_{p-1}$. It belongs to the gradients, as
        those of the worst loss nearby, so that Polyak steps are consistent.
    """

    optimizer: AbstractTransform = eqx.field(converter=as_transform)
    adv_optimizer: AbstractTransform = eqx.field(converter=as_transform)
    sync_period: int = eqx.field(default=2, static=True)
    reset_state: bool = eqx.field(default=True, static=True)
    opaque_mode: bool = eqx.field(default=False, static=True)
    batch_axis_name: str | None = eqx.field(default=None, static=True)
    adaptive: bool = eqx.field(default=False, kw_only=True, static=True)
    eta: RealLike = eqx.field(default=0.01, kw_only=True)

    def __post_init__(self):
        check_whole(self, "sync_period")
        check_nonnegative(self, "eta")
        # Fields are not converted yet.
        optimizer = as_transform(self.optimizer)
        adversary = as_transform(self.adv_optimizer)
        if "iterates" in adversary.needs:
            raise ValueError(
                f"SAM: the adversary {name_of(adversary)} recovers points of its own "
                "from the parameters. They would be wrong, because these are moved "
                "against its updates. Take one that does not, as "
                "`chain(normalize(), sgd(rho))`; as `optimizer` it is right."
            )
        if self.batch_axis_name is not None and not self.opaque_mode:
            raise ValueError(
                f"SAM: batch_axis_name={self.batch_axis_name!r} is the axis over which "
                "the gradients of `grad_fn` are averaged, so it is for opaque mode: "
                "say opaque_mode=True, or average the gradients for `update` yourself, "
                "by `jax.lax.pmean`."
            )
        if self._hides_steps and "value" in optimizer.needs | adversary.needs:
            raise ValueError(
                "SAM: in opaque mode the `value` is that at the parameters, and not at "
                "the points in between, where the optimizers are given gradients. With "
                "one that needs `value`, say opaque_mode=False."
            )

    @property
    def _hides_steps(self) -> bool:
        return self.opaque_mode and self.sync_period > 1

    @property
    def _shows_steps(self) -> bool:
        return not self.opaque_mode and self.sync_period > 1

    @property
    def needs(self) -> frozenset[str]:
        """What both optimizers need, and the parameters: in transparent mode to stay
        where it has put them, in opaque mode a `grad_fn`."""
        if self.sync_period == 1:
            return self.optimizer.needs
        own = {"params", "grad_fn" if self.opaque_mode else "iterates"}
        return self.optimizer.needs | self.adv_optimizer.needs | own

    @property
    def laws(self) -> frozenset[str]:
        """The symmetries of both optimizers, and how the estimates of the outer one
        behave; in period 1 it is that."""
        if self.sync_period == 1:
            return self.optimizer.laws | {"neutral"}
        symmetries = ISOMETRIES | {"gradient_scale", "units"}
        if self.adaptive:
            symmetries = frozenset({"permutation", "partition", "gradient_scale"})
        both = self.optimizer.laws & self.adv_optimizer.laws & symmetries
        estimates = {"monotone", "bounded_growth", "initial_guess"}
        return both | self.optimizer.laws & estimates

    def start(self, params: Tree) -> SAMState[Tree]:
        return SAMState(
            steps_since_sync=zero_count(),
            opt_state=self.optimizer.start(params),
            adv_state=self.adv_optimizer.start(params),
            cache=params if self._shows_steps else None,
        )

    def step(
        self, grads: Tree, state: SAMState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, SAMState[Tree]]:
        if self._shows_steps:
            return self._shown(grads, state, params, extra)
        if self._hides_steps:
            return self._hidden(grads, state, params, extra)
        updates, opt_state = self.optimizer.step(grads, state.opt_state, params, extra)
        return updates, SAMState(
            state.steps_since_sync, opt_state, state.adv_state, state.cache
        )

    def _shown(
        self, grads: Tree, state: SAMState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, SAMState[Tree]]:
        """One step of the optimizer that is due."""
        is_first = state.steps_since_sync == 0
        is_outer = state.steps_since_sync == self.sync_period - 1
        # Not a select, which would write all of it in every step.
        cache = lax.cond(
            is_first, lambda: tree.cast_like(params, state.cache), lambda: state.cache
        )

        def outer(opt_state: Any, adv_state: Any) -> tuple[Tree, Any, Any]:
            # The value is that at `params`, as the gradients are, and not at the cache:
            # both are those of the worst loss near the cache.
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
        self, grads: Tree, state: SAMState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, SAMState[Tree]]:
        """All steps of a period."""
        extra = extra.without("value")  # Which belongs to `params`.
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
        """The adversary's step, away from where it would descend to."""
        if self.adaptive:
            grads = self._times_size(grads, params)
        u, adv_state = self.adv_optimizer.step(grads, adv_state, params, extra)
        if self.adaptive:
            u = self._times_size(u, params)
        return tree.scale(-1, u), adv_state

    def _times_size(self, x: Tree, params: Tree) -> Tree:
        """`T x` of the adaptive adversary, with a bound, since both may be large."""
        product = tree.map(
            lambda x, p, eta: (jnp.abs(p) + eta) * x, tree.widen(x), params, self.eta
        )
        return tree.saturate(product)

    def _reset(self, adv_state: Any, params: Tree, updates: Tree) -> Any:
        """The adversary's state after an outer step from `params`."""
        if not self.reset_state:
            return adv_state
        return self.adv_optimizer.start(tree.add(params, updates))

    def eval_point(self, state: SAMState[Tree], params: Tree) -> Tree:
        """That of the optimizer, whose parameters are the cache between outer steps."""
        if self._shows_steps:
            params = tree.where(state.steps_since_sync == 0, params, state.cache)
        return self.optimizer.eval_point(state.opt_state, params)

    def metrics(self, state: SAMState[Tree]) -> dict[str, Scalar]:
        """Those of both optimizers; the adversary's are prefixed by `adv` where the
        other has them too."""
        outer = self.optimizer.metrics(state.opt_state)
        adversary = self.adv_optimizer.metrics(state.adv_state)
        return merge_metrics(outer, adversary, "adv")


def sam(
    optimizer: Transform,
    adv_optimizer: Transform,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: str | None = None,
    *,
    adaptive: bool = False,
    eta: RealLike = 0.01,
) -> SAM:
    """Sharpness-aware minimisation: [`contrib_wrappers.SAM`][].

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
    return SAM(
        optimizer,
        adv_optimizer,
        sync_period,
        reset_state,
        opaque_mode,
        batch_axis_name,
        adaptive=adaptive,
        eta=eta,
    )
