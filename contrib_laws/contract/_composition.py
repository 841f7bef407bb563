"""A transform does the same inside other transforms as alone."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import jax

from contrib_core import chain, masked, scale, to_optax

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code
from ._compare import promise, require, require_same
from ._training import eval_params, few, precision_of, train


def _in_chain(transform: Any) -> Any:
    return chain(scale(1.0), chain(transform, scale(1.0)))


def _in_optax_chain(transform: Any) -> Any:
    import optax

    return optax.chain(to_optax(transform), optax.scale(1.0))


# Contexts that must change nothing, with their code.
_NEUTRAL: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "chain": ("contrib_core.chain(one, contrib_core.chain(transform, one))", _in_chain),
    "masked": ("contrib_core.masked(transform, True)", lambda t: masked(t, True)),
    "optax.chain": (
        "optax.chain(contrib_core.to_optax(transform), optax.scale(1.0))",
        _in_optax_chain,
    ),
}


def _contexts(subject: Subject) -> Iterable[str]:
    yield from (n for n in _NEUTRAL if n != "optax.chain" or _has_optax())
    yield from subject.wrappers


def _has_optax() -> bool:
    return importlib.util.find_spec("optax") is not None


def _composition(subject: Subject, context: str) -> Fault | None:
    if context in _NEUTRAL:
        _require_unchanged(subject, context)
    else:
        _require_accepted(subject, context)


def _require_unchanged(subject: Subject, context: str) -> None:
    rule = subject.rule
    written, wrap = _NEUTRAL[context]
    code = _code(subject, written)
    with precision_of(subject, few()) as params:
        expected = subject.once("alone", lambda: _seen(subject, rule, params))
        with promise(f"{context} should accept it", code):
            found = _seen(subject, wrap(subject.given), params)
    # Transformations of optax have neither evaluation points nor metrics.
    common = expected.keys() & found.keys()
    for part in sorted(common):
        require_same(f"{part} in {written}", expected[part], found[part], code)


def _require_accepted(subject: Subject, context: str) -> None:
    """Requires that a wrapper accepts it and forwards its metrics. This only traces: a
    wrapper around a rule is a transform, so every law can be checked for it."""
    wrapped = subject.wrappers[context](subject.rule)

    def traced(rule: Any) -> Any:
        return jax.eval_shape(lambda p: _seen(subject, rule, p), params)

    with precision_of(subject, few()) as params:
        expected = traced(subject.rule)
        with promise(f"{context} should accept it"):
            found = traced(wrapped)
    lost = expected["metrics"].keys() - found["metrics"].keys()
    require(not lost, f"{context} does not forward the metrics {lost}")


def _seen(subject: Subject, rule: Any, params: Any) -> dict[str, Any]:
    """Everything that a user sees of two steps."""
    params, state, updates = train(subject, params, rule.init(params), 2, rule=rule)
    seen = {"the updates": updates, "the parameters": params}
    if hasattr(rule, "metrics"):
        point = eval_params(rule, state, params)
        seen |= {"the evaluation point": point, "metrics": rule.metrics(state)}
    return seen


def _code(subject: Subject, written: str) -> str:
    is_ours = "optax" not in written
    return f"""\
{"one = contrib_core.scale(1.0)" if is_ours else "import optax"}

def seen(t, everything):
    params = jnp.array([1.0, 2.0])
    state = t.init(params)
    for _ in range(2):
        updates, state = t.update(params, state, params{extras_code(subject)})
        params = params + updates
    more = (t.eval_params(state, params), t.metrics(state)) if everything else ()
    return updates, params, *more

everything = hasattr(transform, "metrics") and {is_ours}
found = seen({written}, everything)
assert eqx.tree_equal(found, seen(transform, everything))"""


composition = Law(
    "composition",
    "contract",
    "Chains and masks that do nothing change nothing, and every wrapper accepts the "
    "transform and forwards its metrics.",
    r"\text{chain}(1, t, 1) = \text{masked}(t, \top) = t",
    "none: bitwise",
    _composition,
    first=_contexts,
    hooks=("eval_params", "metrics"),
)
