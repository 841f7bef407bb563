"""Wrappers and chains that break a promise, some of them barely."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from contrib_algos import sgd
from contrib_core import (
    AbstractState,
    AbstractTransform,
    chain,
    Count,
    Extra,
    increment,
    P,
    RealLike,
    Scalar,
    Terms,
    Tree,
    tree,
    zero_count,
)
from contrib_core.claims import Needs, PARAMS
from support.mutants_laws import lawful, mutant, rounded


# Any wrapper


class Around(AbstractTransform[Any]):
    """Runs `inner`, with functions that mutants replace.

    - `before`, `after`: changes of the gradients and of the updates.
    - `keep`: the next state of `inner`, from its states before and after the step.
    - `shown`: the parameters that `inner` gets.
    """

    inner: AbstractTransform
    before: Callable[..., Any] = eqx.field(static=True, default=lambda g: g)
    after: Callable[..., Any] = eqx.field(static=True, default=lambda u: u)
    keep: Callable[..., Any] = eqx.field(static=True, default=lambda old, new: new)
    shown: Callable[..., Any] = eqx.field(static=True, default=lambda x: x)

    @property
    def needs(self) -> Needs:
        return self.inner.needs

    def start(self, params: Tree) -> Any:
        return self.inner.start(params)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        updates, new_state = self.inner.step(
            self.before(grads), state, self.shown(params), extra
        )
        return self.after(updates), self.keep(state, new_state)


@lawful("neutral")
def nothing_around(inner: AbstractTransform):
    return Around(inner)


@lawful("neutral")
def nothing_around_momentum():
    return Around(sgd(0.1, momentum=0.9))


@mutant("neutral")
def conjugates_what_is_real(inner: AbstractTransform):
    return Around(inner, before=lambda g: jax.tree.map(jnp.negative, g))


@mutant("neutral")
def rounds_the_updates(inner: AbstractTransform):
    return Around(inner, after=rounded)


@mutant("neutral")
def leaves_out_what_has_no_axes(inner: AbstractTransform):
    def after(updates: Tree) -> Tree:
        return jax.tree.map(lambda u: u if u.ndim else 0 * u, updates)

    return Around(inner, after=after)


@mutant("neutral")
def forgets_the_state(inner: AbstractTransform):
    return Around(inner, keep=lambda old, new: old)


@mutant("neutral")
def forgets_momentum():
    return Around(sgd(0.1, momentum=0.9), keep=lambda old, new: old)


@mutant("neutral")
def shows_other_parameters(inner: AbstractTransform):
    return Around(inner, shown=tree.zeros_like)


# Averages


class AveragedState(AbstractState):
    terms: ClassVar[Terms] = {"average": {"z": "z", "weight": "total", "beta": "b1"}}

    b1: Scalar
    total: Scalar
    z: P
    base_state: Any


class Averaged(AbstractTransform[AveragedState]):
    """Schedule-free training, with functions that mutants replace.

    - `weigh`: the share of the new iterate in the average, from its weight and the sums
        of weights before and after it.
    - `average`: the average, from the previous one, z before and after, and the share.
    - `interpolate`: the parameters, from z, its average and `b1`.
    - `evaluate`: where to evaluate the model, from the parameters, z and the average.
    """

    base_optimizer: AbstractTransform
    b1: RealLike = 0.9
    weigh: Callable[..., Any] = eqx.field(
        static=True, default=lambda w, before, after: w / after
    )
    average: Callable[..., Any] = eqx.field(
        static=True, default=lambda x, z, new_z, c: tree.lerp(x, new_z, c)
    )
    interpolate: Callable[..., Any] = eqx.field(static=True, default=tree.lerp)
    evaluate: Callable[..., Any] = eqx.field(static=True, default=lambda y, z, x: x)

    @property
    def needs(self) -> Needs:
        return frozenset({"params"})

    def start(self, params: Tree) -> AveragedState:
        return AveragedState(
            b1=tree.scalar(self.b1, like=params),
            total=tree.scalar(0, like=params),
            z=params,
            base_state=self.base_optimizer.start(params),
        )

    def step(
        self, grads: Tree, state: AveragedState, params: Tree, extra: Extra
    ) -> tuple[Tree, AveragedState]:
        u, base_state = self.base_optimizer.step(grads, state.base_state, params, extra)
        before, after = state.total, state.total + 1.0
        z = tree.add(state.z, u)
        c = self.weigh(1.0, before, after)
        x = self.average(_average(params, state), state.z, z, c)
        y = self.interpolate(z, x, state.b1)
        return tree.sub(y, params), AveragedState(state.b1, after, z, base_state)

    def eval_point(self, state: AveragedState, params: Tree) -> Tree:
        return self.evaluate(params, state.z, _average(params, state))


def _average(params: Tree, state: AveragedState) -> Tree:
    b1 = state.b1
    return tree.map(lambda y, z, b: (y - (1 - b) * z) / b, params, state.z, b1)


@lawful("average")
def averaged(base_optimizer: AbstractTransform):
    return Averaged(base_optimizer)


@mutant("average")
def weighs_one_step_late(base_optimizer: AbstractTransform):
    return Averaged(
        base_optimizer, weigh=lambda w, before, after: w / jnp.maximum(before, w)
    )


@mutant("average")
def averages_the_previous_iterate(base_optimizer: AbstractTransform):
    return Averaged(base_optimizer, average=lambda x, z, new_z, c: tree.lerp(x, z, c))


@mutant("average")
def evaluates_at_the_iterate(base_optimizer: AbstractTransform):
    return Averaged(base_optimizer, evaluate=lambda y, z, x: z)


@mutant("average")
def evaluates_at_the_parameters(base_optimizer: AbstractTransform):
    return Averaged(base_optimizer, evaluate=lambda y, z, x: y)


@mutant("average")
def rounds_beta(base_optimizer: AbstractTransform):
    return Averaged(
        base_optimizer,
        interpolate=lambda z, x, b1: tree.lerp(z, x, rounded(b1)),
    )


# A scaled sum


class ScaledState(AbstractState):
    terms: ClassVar[Terms] = {"scaled_sum": {"start": "x0", "scale": "s"}}

    x0: P
    s: Any
    m: Any
    v: Any
    r: Any
    count: Count
    base_state: Any


class Scaled(AbstractTransform[ScaledState]):
    """A learned scale for the base's summed updates, as in Mechanic, with functions
    that mutants replace.

    - `collect`: the sum of the base's updates, from the previous sum and an update.
    - `anchor`: the start, from the previous one, the parameters and the step number.
    - `total`: the scale, from its parts and the previous parts.
    """

    terms: ClassVar[Terms] = {"scaled_sum": {"epsilon": "eps"}}

    base_optimizer: AbstractTransform
    eps: RealLike = 1e-8
    collect: Callable[..., Any] = eqx.field(static=True, default=tree.add)
    anchor: Callable[..., Any] = eqx.field(static=True, default=lambda x0, x, t: x0)
    total: Callable[..., Any] = eqx.field(
        static=True, default=lambda s, before: jnp.sum(s)
    )

    @property
    def needs(self) -> Needs:
        return frozenset({"params"})

    def start(self, params: Tree) -> ScaledState:
        parts = 1 - 0.1 ** jnp.arange(1, 7, dtype=tree.accumulator_dtype(params))
        none = jnp.zeros_like(parts)
        return ScaledState(
            x0=params,
            s=none + 1e-2,
            m=none,
            v=none,
            r=none,
            count=zero_count(),
            base_state=self.base_optimizer.start(params),
        )

    def step(
        self, grads: Tree, state: ScaledState, params: Tree, extra: Extra
    ) -> tuple[Tree, ScaledState]:
        eps, s = self.eps, state.s
        betas = 1 - 0.1 ** jnp.arange(1, 7, dtype=s.dtype)
        u, base_state = self.base_optimizer.step(grads, state.base_state, params, extra)
        x0 = self.anchor(state.x0, params, state.count)
        moved = tree.sub(params, x0)
        collected = tree.scale(1 / (jnp.sum(s) + eps), moved)
        h = -tree.dot(grads, collected)
        m = jnp.maximum(betas * state.m, jnp.abs(h) + eps)
        v = betas**2 * state.v + h**2
        r = jnp.maximum(betas * state.r + s * jnp.clip(h, -state.m, state.m), 0)
        new_s = (1e-2 / 6 * m + r) / (jnp.sqrt(v) + eps)
        scale = self.total(new_s, s)
        x = tree.axpy(scale, self.collect(collected, u), x0)
        count = increment(state.count)
        new_state = ScaledState(x0, new_s, m, v, r, count, base_state)
        return tree.sub(x, params), new_state


@lawful("scaled_sum")
def scaled(base_optimizer: AbstractTransform, eps=1e-8):
    return Scaled(base_optimizer, eps)


@mutant("scaled_sum")
def adds_updates_twice(base_optimizer: AbstractTransform, eps=1e-8):
    return Scaled(
        base_optimizer, eps, collect=lambda total, u: tree.axpy(2.0, u, total)
    )


@mutant("scaled_sum")
def forgets_updates(base_optimizer: AbstractTransform, eps=1e-8):
    return Scaled(base_optimizer, eps, collect=lambda total, u: u)


@mutant("scaled_sum")
def drifts_by_a_billionth(base_optimizer: AbstractTransform, eps=1e-8):
    return Scaled(base_optimizer, eps, anchor=lambda x0, x, t: tree.lerp(x0, x, 1e-9))


@mutant("scaled_sum")
def anchors_at_step_1(base_optimizer: AbstractTransform, eps=1e-8):
    def anchor(x0: Tree, x: Tree, t: Count) -> Tree:
        return tree.where(t <= 1, x, x0)

    return Scaled(base_optimizer, eps, anchor=anchor)


@mutant("scaled_sum")
def scales_one_step_late(base_optimizer: AbstractTransform, eps=1e-8):
    return Scaled(base_optimizer, eps, total=lambda s, before: jnp.sum(before))


@mutant("scaled_sum")
def leaves_out_a_part(base_optimizer: AbstractTransform, eps=1e-8):
    return Scaled(base_optimizer, eps, total=lambda s, before: jnp.sum(s[1:]))


# Sharpness-aware minimisation


class SamState(AbstractState):
    count: Count
    cache: P
    opt_state: Any
    adv_state: Any


class Sam(AbstractTransform[SamState]):
    """Sharpness-aware minimisation, with functions that mutants replace.

    - `is_outer`: whether a step is an outer one, from its number and the period.
    - `perturb`: adversarial updates, from updates that would descend.
    - `returned`: updates of outer steps, from the cached parameters, the present ones
        and the updates of the outer optimizer.
    - `rounds`: the number of adversarial steps in opaque mode, from the period.
    - `keep`: the next state of the outer optimizer, from its states before and after.
    - `perturb_unseen`, `resets_unseen`: differences of opaque mode.
    """

    terms: ClassVar[Terms] = {
        "period_one": {"period": "sync_period"},
        "radius_zero": {"adversary": "adv_optimizer", "opaque": "opaque_mode"},
        "opaque": {"adversary": "adv_optimizer", "opaque": "opaque_mode"},
    }

    optimizer: AbstractTransform
    adv_optimizer: AbstractTransform
    sync_period: int = eqx.field(static=True)
    reset_state: bool = eqx.field(static=True)
    opaque_mode: bool = eqx.field(static=True)
    is_outer: Callable[..., Any] = eqx.field(
        static=True, default=lambda t, period: t % period == period - 1
    )
    perturb: Callable[..., Any] = eqx.field(
        static=True, default=lambda u: tree.scale(-1.0, u)
    )
    perturb_unseen: Callable[..., Any] | None = eqx.field(static=True, default=None)
    returned: Callable[..., Any] = eqx.field(
        static=True, default=lambda cache, x, u: tree.add(tree.sub(cache, x), u)
    )
    rounds: Callable[..., Any] = eqx.field(static=True, default=lambda p: p - 1)
    keep: Callable[..., Any] = eqx.field(static=True, default=lambda old, new: new)
    resets_unseen: bool = eqx.field(static=True, default=True)

    @property
    def needs(self) -> Needs:
        opaque: Needs = frozenset({"grad_fn"} if self.opaque_mode else ())
        return PARAMS | self.optimizer.needs | opaque

    def start(self, params: Tree) -> SamState:
        return SamState(
            zero_count(),
            params,
            self.optimizer.start(params),
            self.adv_optimizer.start(params),
        )

    def step(
        self, grads: Tree, state: SamState, params: Tree, extra: Extra
    ) -> tuple[Tree, SamState]:
        if self.opaque_mode:
            return self._opaque(grads, state, params, extra)
        period = self.sync_period
        cache = tree.where(state.count % period == 0, params, state.cache)

        def adversarial(state: SamState) -> Any:
            u, adv = self.adv_optimizer.step(grads, state.adv_state, params, extra)
            return self.perturb(u), state.opt_state, adv

        def outer(state: SamState) -> Any:
            u, opt = self.optimizer.step(grads, state.opt_state, cache, extra)
            adv = self.adv_optimizer.start(params)
            adv = adv if self.reset_state else state.adv_state
            opt = self.keep(state.opt_state, opt)
            return self.returned(cache, params, u), opt, adv

        is_outer = self.is_outer(state.count, period)
        updates, opt, adv = lax.cond(is_outer, outer, adversarial, state)
        return updates, SamState(increment(state.count), cache, opt, adv)

    def _opaque(
        self, grads: Tree, state: SamState, params: Tree, extra: Extra
    ) -> tuple[Tree, SamState]:
        x, adv = params, state.adv_state
        perturb = self.perturb_unseen or self.perturb
        for i in range(self.rounds(self.sync_period)):
            u, adv = self.adv_optimizer.step(grads, adv, x, extra)
            x = tree.add(x, perturb(u))
            grads = extra.grad_fn(x, i)
        updates, opt = self.optimizer.step(grads, state.opt_state, params, extra)
        if self.reset_state and self.resets_unseen:
            adv = self.adv_optimizer.start(params)
        opt = self.keep(state.opt_state, opt)
        return updates, SamState(increment(state.count), params, opt, adv)


def _recipe(functions: Callable[[], dict[str, Any]]) -> Callable[..., Sam]:
    """A recipe for a `Sam` with other functions."""

    def sam(
        optimizer: AbstractTransform,
        adv_optimizer: AbstractTransform,
        sync_period: int = 2,
        reset_state: bool = True,
        opaque_mode: bool = False,
        batch_axis_name: str | None = None,
    ) -> Sam:
        del batch_axis_name
        return Sam(
            optimizer,
            adv_optimizer,
            sync_period,
            reset_state,
            opaque_mode,
            **functions(),
        )

    sam.__name__ = sam.__qualname__ = functions.__name__
    return sam


@lawful("period_one", "radius_zero", "opaque")
@_recipe
def sam():
    return {}


@mutant("opaque")
@_recipe
def counts_from_one():
    return {"is_outer": lambda t, period: (t + 1) % period == period - 1}


@mutant("period_one")
@_recipe
def is_adversarial_once():
    return {"is_outer": lambda t, period: t > 0}


@mutant("period_one")
@_recipe
def forgets_where_it_was():
    return {"returned": lambda cache, x, u: tree.sub(u, x)}


@mutant("period_one")
@_recipe
def forgets_the_outer_state():
    return {"keep": lambda old, new: old}


@mutant("period_one", "opaque")
@_recipe
def rounds_what_it_returns():
    return {"returned": lambda cache, x, u: rounded(tree.add(tree.sub(cache, x), u))}


@mutant("radius_zero")
@_recipe
def moves_by_a_billionth():
    return {"perturb": lambda u: tree.map(lambda u: 1e-9 - u, u)}


@mutant("radius_zero")
@_recipe
def divides_by_the_radius():
    def perturb(u: Tree) -> Tree:
        return tree.scale(-1 / tree.norm(u), u)

    return {"perturb": perturb}


@mutant("opaque")
@_recipe
def descends_unseen():
    return {"perturb_unseen": lambda u: u}


@mutant("opaque")
@_recipe
def takes_a_step_more_unseen():
    return {"rounds": lambda period: period}


@mutant("opaque")
@_recipe
def takes_no_step_unseen():
    return {"rounds": lambda period: 0}


@mutant("opaque")
@_recipe
def rounds_unseen():
    return {"perturb_unseen": lambda u: tree.scale(-1.0, rounded(u))}


@mutant("opaque")
@_recipe
def never_resets_unseen():
    return {"resets_unseen": False}


@mutant("opaque")
@_recipe
def stays_where_it_looked():
    return {"returned": lambda cache, x, u: u}


# Chains


@lawful("monoid")
def chained(*transforms):
    return chain(*transforms)


class Link(AbstractTransform[Any]):
    """A chain with a function of the updates between its links."""

    transforms: tuple[AbstractTransform, ...]
    between: Callable[..., Any] = eqx.field(static=True)

    @property
    def needs(self) -> Needs:
        return frozenset({"params"})

    def start(self, params: Tree) -> Any:
        return tuple(t.start(params) for t in self.transforms)

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        new_states = []
        for t, inner in zip(self.transforms, state, strict=True):
            grads, new_state = t.step(self.between(grads), inner, params, extra)
            new_states.append(new_state)
        return grads, tuple(new_states)


@mutant("monoid")
def drops_the_last_of_nested_chains(*transforms):
    flat: list[AbstractTransform] = []
    for t in transforms:
        flat.extend(t.transforms[:-1] if isinstance(t, Link) else [t])
    return Link(tuple(flat), lambda g: g)


@mutant("monoid")
def reverses_nested_chains(*transforms):
    flat: list[AbstractTransform] = []
    for t in transforms:
        flat.extend(t.transforms[::-1] if isinstance(t, Link) else [t])
    return Link(tuple(flat), lambda g: g)


@mutant("monoid")
def reverses(*transforms):
    return chain(*transforms[::-1])


@mutant("monoid")
def does_nothing(*transforms):
    return chain()


@mutant("monoid")
def negates_if_empty(*transforms):
    return chain(*transforms) if transforms else Link((sgd(1.0),), lambda g: g)


@mutant("monoid")
def rounds_between(*transforms):
    return Link(transforms, rounded)


@mutant("monoid")
def forgets_the_states(*transforms):
    return Around(chain(*transforms), keep=lambda old, new: old)
