"""C1, C2 and C6: what goes in and out. Nothing is computed, so any tree will do."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import numpy as np

from ._law import Fault, Law
from ._strategies import DTYPES, structures
from ._subject import Subject
from ._training import (
    eval_params,
    extras,
    gradient,
    named_leaves,
    parameters,
    precision_of,
    promise,
    require,
    require_same_type,
    train,
    update,
    waves,
)
from ._write import extras_code, literal, step_code


# The fewest numbers, the fewest with two dtypes, every kind of leaf, and a raw model.
ONE = np.ones(1, np.float32)
TWO = {"a": ONE, "b": ONE.astype("bfloat16")}
MATRIX = {"a": ONE, "b": ONE[None]}  # Some transforms look at no vectors.
MANY = parameters() | {
    name: waves((3, 2), name)
    for name in ("bfloat16", "float16", "complex64", "float64", "complex128")
}


def _model() -> eqx.nn.MLP:
    return eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))


def _first(subject: Subject) -> Iterator[Any]:
    yield from (ONE, TWO, MANY, {"none": None})
    if subject.is_ours:  # Which say that they set aside what is no parameter.
        yield _model()


def _trees(subject: Subject) -> st.SearchStrategy[Any]:
    """Trees of every dtype; their numbers do not matter."""

    def filled(structure: Any) -> Any:
        return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), structure)

    of_dtypes = [structures(*names, modules=False) for names in DTYPES.values()]
    # `None` by itself is no tree, but parameters that were not given.
    return st.one_of(of_dtypes).map(filled).filter(lambda tree: tree is not None)


# C1


def _types(subject: Subject, model: Any) -> Fault | None:
    with precision_of(subject, model) as model:
        # What `jax.grad` and `eqx.filter_grad` return has this structure too.
        params, fixed = eqx.partition(model, eqx.is_inexact_array)

        def run(params: Any) -> Any:
            own = eqx.combine(params, fixed)
            state = subject.given.init(own)
            updates, state = update(subject, params, state, own)
            return updates, eval_params(subject.given, state, own)

        written = _model_code if jax.tree.leaves(fixed) else _types_code
        code = written(subject, params)
        with promise("it should be accepted", code):
            updates, point = eqx.filter_eval_shape(run, params)
        require_same_type("updates", params, updates, code, weak=False)
        trained = eqx.filter(point, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        require_same_type("evaluation point", params, trained, code, weak=False)


_TYPES = "def types(x):\n    return jax.tree.map(lambda a: (a.shape, a.dtype), x)\n"


def _types_code(subject: Subject, params: Any) -> str:
    check = "assert types(updates) == types(params)"
    point = "assert types(transform.eval_params(state, params)) == types(params)"
    steps = step_code(subject, params, "updates, state")
    return "\n".join([_TYPES, *steps, check, *([point] if subject.is_ours else [])])


def _model_code(subject: Subject, params: Any) -> str:
    """The same of the raw model."""
    return f"""\
{_TYPES}
model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
grads = eqx.filter(model, eqx.is_inexact_array)
state = transform.init(model)
updates, state = transform.update(grads, state, model{extras_code(subject)})
assert types(updates) == types(grads)
assert types(transform.eval_params(state, updates)) == types(grads)"""


C1 = Law(
    "C1",
    "contract",
    "Updates have the structure, shapes and dtypes of the parameters.",
    r"\text{type}(u_t) = \text{type}(x_t)",
    "none",
    _types,
    first=_first,
    drawn=_trees,
    hooks=("eval_params",),
    share=0.5,
)


# C2


def _constant_state(subject: Subject, tree: Any) -> Fault | None:
    with precision_of(subject, tree) as params:
        code = _constant_state_code(subject, params)

        def step(carry: Any) -> Any:
            return train(subject, *carry, steps=1)[:2]

        with promise("its state should have a type", code):
            state = jax.eval_shape(subject.given.init, params)
            _, new_state = jax.eval_shape(step, (params, state))
        for where, leaf in named_leaves("the state", state):
            require(not leaf.weak_type, f"{where} is weakly typed", code)
        require_same_type("the new state", state, new_state, code)
        # Loops ask for no more than that.
        if tree is ONE:
            _require_one_trace(step, (params, subject.given.init(params)), code)


def _require_one_trace(step: Callable[[Any], Any], carry: Any, code: str) -> None:
    for where, leaf in named_leaves("the state", carry[1]):
        kind = type(leaf).__name__
        require(isinstance(leaf, jax.Array), f"{where}: {kind}, not jax.Array", code)
    traces = []

    @jax.jit
    def counted(carry: Any) -> Any:
        traces.append(None)
        return step(carry)

    for _ in range(3):
        carry = counted(carry)
    require(len(traces) == 1, f"{len(traces)} traces in three steps, not 1")


def _constant_state_code(subject: Subject, params: Any) -> str:
    types = (
        "def types(x):\n"
        "    return jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), x)\n"
    )
    checks = [
        "for x in jax.tree.leaves(state):",
        "    assert isinstance(x, jax.Array) and not x.weak_type, x",
        "assert types(new_state) == types(state)",
    ]
    return "\n".join([types, *step_code(subject, params, "_, new_state"), *checks])


C2 = Law(
    "C2",
    "contract",
    "The type of the state never changes: loops take it, and nothing retraces.",
    r"\text{type}(s_{t+1}) = \text{type}(s_t)",
    "none",
    _constant_state,
    first=lambda subject: [t for t in _first(subject) if not isinstance(t, eqx.Module)],
    drawn=_trees,
    share=0.5,
)


# C6

_KNOWN = ("params", "value", "grad_fn", "key", "iterates")


def _extras(subject: Subject, more: dict[str, Any]) -> Fault | None:
    given = subject.given
    unknown = set(getattr(given, "needs", ())) - set(_KNOWN)
    code = f"assert set(transform.needs) <= {{*{_KNOWN}}}, transform.needs"
    require(not unknown, f"it needs {unknown}, which nobody knows", code)
    with precision_of(subject, MATRIX) as params:
        grads = gradient(params)
        state = jax.eval_shape(given.init, params)
        known = extras(subject, grads)
        # Of optax nobody knows what it cannot do without.
        needs = getattr(given, "needs", frozenset(known))
        known = {name: x for name, x in known.items() if name in needs}
        code = _extras_code(subject, params, more)

        def run(state: Any, **extra: Any) -> Any:
            return given.update(grads, state, params, **known, **extra)

        with promise("it should need nothing that it does not say", code):
            plain = jax.eval_shape(run, state)
        with promise("extras that it does not know should be tolerated", code):
            with_more = jax.eval_shape(lambda s: run(s, **more), state)
        require_same_type("what update returns with them", plain, with_more, code)
        if hasattr(given, "needs"):
            _require_named(subject, grads, state, known | {"params": params})


def _require_named(subject: Subject, grads: Any, state: Any, known: Any) -> None:
    """What is needed and missing is named, and what is not said to be needed is not."""
    given = subject.given
    needed = given.needs - {"iterates"}  # No argument, but a promise of the caller.
    known = {name: x for name, x in known.items() if name in needed}
    for missing in needed:
        message = _error_without(given, grads, state, known, missing)
        for part in (type(given).__name__, f"`{missing}", "opt.update("):
            require(
                part in message,
                f"without {missing} the error should contain {part!r}: {message}",
                _named_code(subject, missing),
            )
    if "params" not in needed:
        code = "\n".join(_call_without(subject, "params"))
        with promise("it needs `params`, and does not say so", code):
            updates = jax.eval_shape(
                lambda s: given.update(grads, s, **known)[0], state
            )
        require_same_type("updates without params", grads, updates, weak=False)


def _error_without(
    given: Any, grads: Any, state: Any, known: dict[str, Any], missing: str
) -> str:
    others = {k: v for k, v in known.items() if k != missing}
    try:
        jax.eval_shape(lambda s: given.update(grads, s, **others), state)
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__} instead of ValueError: {error}"
    return "there was none"


def _call_without(subject: Subject, missing: str) -> list[str]:
    params = "" if missing == "params" else ", params"
    extras = extras_code(subject, missing=missing)
    return [
        f"params = {literal(MATRIX)}",
        "state = transform.init(params)",
        f"transform.update(params, state{params}{extras})",
    ]


def _named_code(subject: Subject, missing: str) -> str:
    *lines, call = _call_without(subject, missing)
    return "\n".join(
        [
            *lines,
            'message = ""',
            "try:",
            f"    {call}",
            "except ValueError as error:",
            "    message = str(error)",
            f'for part in (type(transform).__name__, "`{missing}", "opt.update("):',
            "    assert part in message, message",
        ]
    )


def _extras_code(subject: Subject, params: Any, more: dict[str, Any]) -> str:
    unknown = "".join(f", {name}={x!r}" for name, x in more.items())
    lines = step_code(subject, params, "_", unknown)
    return "\n".join(lines)


C6 = Law(
    "C6",
    "contract",
    "Extras that it does not know are tolerated; what it needs and is missing is "
    "named.",
    r"U_t(x; g, e) = U_t(x; g), \quad e \text{ unknown}",
    "none",
    _extras,
    first=lambda subject: [{"flag": 1}, {"batch_stats": {"mean": 0.0}}],
    drawn=lambda subject: st.dictionaries(
        st.sampled_from(["aux", "flag", "loss", "metrics", "rng"]),
        st.sampled_from([1, 0.5, None, (), "text"]),
        min_size=1,
    ),
    hooks=("needs",),
    share=0.2,
)
