"""Finite gradients keep everything finite."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._law import Broken, Fault, Law, Unsuited
from .._subject import Subject
from .._write import extras_code, literal
from ._compare import named_leaves, raw, require
from ._training import descends, moved, precision_of, STEPS, TARGET, update, waves


@dataclass(frozen=True)
class Event:
    """An event among the gradients of a run, as it may happen in any training.

    During the event, a gradient is `pull` times the gradient of the problem plus `push`
    with alternating signs. Before the event, it is the gradient of the problem. After
    the event, it is the gradient of the problem if `after` is true, and zero otherwise.

    **Arguments:**

    - `steps`: how many steps it lasts.
    - `push`, `pull`: the gradients during it.
    - `before`: how many steps come before it.
    - `after`: whether training goes on after it.
    - `rate`: a factor of the updates during it, like a schedule behind the rule.
    - `hole`: whether the first coordinate of every leaf always has the gradient zero.
    - `tree`: the name of the parameters in `TREES`.
    """

    steps: int = 1
    push: float = 0.0
    pull: float = 0.0
    before: int = 0
    after: bool = True
    rate: float = 1.0
    hole: bool = False
    tree: str = "one"

    def gradients(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`pull`, `push` and `rate` of each step."""
        step = np.arange(STEPS)
        during = (step >= self.before) & (step < self.before + self.steps)
        later = step >= self.before + self.steps
        pull = np.where(during, self.pull, np.where(later, float(self.after), 1.0))
        push = np.where(during, self.push, 0.0)
        return pull, push, np.where(during, self.rate, 1.0)


# The fewest numbers, and dtypes that mix. Each tree is one more compilation.
TREES: dict[str, Any] = {
    "one": np.ones(1, np.float32),
    "mixed": {"narrow": waves((3, 2), "bfloat16"), "w": waves((4, 3), "float32")},
}

# A constant gradient belongs to a loss without a minimum, so it must end at some step.
_EVENTS = (
    Event(),  # A first gradient of zero.
    Event(steps=STEPS),
    Event(rate=0.0, pull=1.0),
    Event(steps=STEPS, pull=1.0, hole=True),
    Event(steps=STEPS, push=1e-30),
    Event(push=1e-30),
    Event(push=1e-30, before=5),
    Event(steps=50, push=1e12, after=False),
    Event(push=1e12, pull=1.0, before=5),
    Event(steps=50, push=1e30, after=False),
    Event(push=1e30, pull=1.0),
    Event(push=1e30, pull=1.0, before=5),
)


def _events(subject: Subject) -> Iterable[Event]:
    for name in TREES:
        for event in _EVENTS:
            if event.push <= subject.largest_gradient:
                yield dataclasses.replace(event, tree=name)


def _drawn_events(subject: Subject) -> st.SearchStrategy[Event]:
    pushes = [0.0, 1e-30, 1e-12, 1e6, 1e12, 1e30]
    return st.builds(
        Event,
        steps=st.integers(1, 5),
        push=st.sampled_from([p for p in pushes if p <= subject.largest_gradient]),
        pull=st.sampled_from([0.0, 1.0]),
        before=st.integers(0, 5),
        after=st.sampled_from([True, False]),
        rate=st.sampled_from([1.0, 0.0]),
        hole=st.booleans(),
        tree=st.sampled_from(list(TREES)),
    )


def _finiteness(subject: Subject, event: Event) -> Fault | None:
    finite, grads, end = _run(subject, event)
    params = TREES[event.tree]
    wrong = np.argwhere(~finite)
    if len(wrong):
        step, leaf = (int(k) for k in wrong[0])
        raise Broken(
            f"at step {step}, {_names(subject, params)[leaf]}: not finite",
            _finite_code(subject, event, grads, step),
        )
    harmless = event.before == 0 and event.steps == 1 and event.push <= 1e-30
    if harmless and event.after and not event.hole:
        _require_start(subject, event, params, end)


def _require_start(subject: Subject, event: Event, params: Any, end: Any) -> None:
    """Requires progress after a first step of zero, if there is progress without it."""

    def wide(x: Any) -> Any:
        is_wide = jax.tree.map(lambda p: p.dtype != "bfloat16", params)
        return jax.tree.map(lambda keep, a: a if keep else None, is_wide, x)

    _, _, usual = _run(subject, Event(pull=1.0, tree=event.tree))
    if descends(wide(params), wide(usual)):
        require(
            descends(wide(params), wide(end)),
            f"after a first step of zero ({event}), training does not start",
            _start_code(subject, event),
        )


def _run(subject: Subject, event: Event) -> tuple[np.ndarray, Any, Any]:
    """Whether updates and state were finite at each step and leaf; the gradients; and
    the evaluation point at the end."""
    params = TREES[event.tree]
    with precision_of(subject, params) as params:
        program = subject.compiled(("finiteness", event.tree), _program(subject))
        signs = jax.tree.map(_signs, params)
        holes = jax.tree.map(lambda p: _hole(p, event.hole), params)
        try:
            found = program(params, signs, holes, *event.gradients())
        except Exception as error:
            if event.tree == "one":
                raise
            # Other laws promise that it accepts such trees.
            raise Unsuited(f"it does not accept such a tree: {error}") from error
    finite, grads, end = jax.tree.map(np.asarray, found)
    return finite, grads, end


def _signs(p: Any) -> np.ndarray:
    return np.where(np.arange(p.size) % 2, -1, 1).reshape(p.shape)


def _hole(p: Any, hole: bool) -> np.ndarray:
    return np.where((np.arange(p.size) == 0) & hole, 0, 1).reshape(p.shape)


def _program(subject: Subject) -> Any:
    rule = subject.rule

    def program(start: Any, signs: Any, holes: Any, *event: Any) -> Any:
        def step(carry: Any, now: Any) -> Any:
            params, state = carry
            pull, push, rate = now

            def grad(p: Any, sign: Any, hole: Any) -> Any:
                def like(x: Any) -> Any:
                    return x.astype(p.dtype)

                pulled = like(pull) * (p - TARGET)
                return like(hole) * (pulled + like(push) * like(sign))

            grads = jax.tree.map(grad, params, signs, holes)
            updates, state = update(subject, grads, state, params, rule=rule)
            used = jax.tree.map(lambda u: u * rate.astype(u.dtype), updates)
            params = moved(params, used, subject.largest_gradient)
            leaves = jax.tree.leaves((updates, state))
            finite = jnp.stack([jnp.all(jnp.isfinite(raw(x))) for x in leaves])
            return (params, state), (finite, grads)

        carry = (start, rule.init(start))
        (end, state), (finite, grads) = lax.scan(step, carry, event)
        return finite, grads, rule.eval_params(state, end)

    return program


def _names(subject: Subject, params: Any) -> list[str]:
    """The names of the leaves of updates and state."""
    with precision_of(subject, params) as params:
        state = jax.eval_shape(subject.rule.init, params)
    leaves = named_leaves("the update", params), named_leaves("the state", state)
    return [where for where, _ in itertools.chain(*leaves)]


def _start_code(subject: Subject, event: Event) -> str:
    first = f"{event.pull} * (p - {TARGET}) + {event.push}"
    used = f"p + (u if t else {event.rate} * u)"
    point = "params = transform.eval_params(state, params)\n" if subject.is_ours else ""
    return f"""\
def loss(params):
    leaves = jax.tree.leaves(params)
    return sum(jnp.sum((p.astype("float32") - {TARGET}) ** 2) for p in leaves)

start = params = {literal(TREES[event.tree])}
state = transform.init(params)
for t in range({STEPS}):
    grads = jax.tree.map(lambda p: p - {TARGET} if t else {first}, params)
    updates, state = transform.update(grads, state, params{extras_code(subject)})
    params = jax.tree.map(lambda p, u: {used}, params, updates)
{point}assert loss(params) < 0.9 * loss(start)"""


def _finite_code(subject: Subject, event: Event, grads: Any, step: int) -> str:
    extras = extras_code(
        subject,
        value="sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)) / 2",
        grad_fn=f"lambda p, *_: jax.tree.map(lambda x: x - {TARGET}, p)",
    )
    rates = event.gradients()[2][: step + 1]
    steps = [literal(jax.tree.map(lambda x: x[t], grads)) for t in range(step + 1)]
    scaled = bool(np.any(rates != 1))
    if scaled:
        steps = [f"({g}, {rate})" for g, rate in zip(steps, rates, strict=True)]
    each, rate = ("grads, rate", "rate * ") if scaled else ("grads", "")
    return f"""\
params = {literal(TREES[event.tree])}
state = transform.init(params)
for {each} in [{", ".join(steps)}]:
    updates, state = transform.update(grads, state, params{extras})
    params = jax.tree.map(lambda p, u: p + {rate}u, params, updates)
for x in jax.tree.leaves((updates, state)):
    assert jnp.isfinite(x).all()"""


finiteness = Law(
    "finiteness",
    "contract",
    "Finite gradients never produce an infinity or a NaN, and a first step of zero "
    "only delays training.",
    r"\|g_t\|_\infty \le 10^{30} \implies u_t, s_t \text{ finite}",
    "progress is a tenth of the loss in 100 steps",
    _finiteness,
    first=_events,
    drawn=_drawn_events,
    hooks=("eval_params",),
)
