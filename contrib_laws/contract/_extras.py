"""Extras: unknown ones are tolerated, missing ones are named."""

from typing import Any

import hypothesis.strategies as st
import jax

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code, literal, step_code
from ._compare import promise, require, require_same_type
from ._training import extras_for, gradient, precision_of
from ._trees import MATRIX


_KNOWN = ("params", "value", "grad_fn", "key")


def _extras(subject: Subject, more: dict[str, Any]) -> Fault | None:
    given = subject.given
    unknown = set(getattr(given, "needs", ())) - set(_KNOWN)
    code = f"assert set(transform.needs) <= {{*{_KNOWN}}}, transform.needs"
    require(not unknown, f"it needs {unknown}, which do not exist", code)
    with precision_of(subject, MATRIX) as params:
        grads = gradient(params)
        state = jax.eval_shape(given.init, params)
        known = extras_for(subject, grads)
        # Optax does not declare its needs.
        needs = getattr(given, "needs", frozenset(known))
        known = {name: x for name, x in known.items() if name in needs}
        code = _code(subject, params, more)

        def run(state: Any, **extra: Any) -> Any:
            return given.update(grads, state, params, **known, **extra)

        with promise("it should need only what it declares", code):
            plain = jax.eval_shape(run, state)
        with promise("it should tolerate extras that it does not know", code):
            with_more = jax.eval_shape(lambda s: run(s, **more), state)
        require_same_type("the result of update with extras", plain, with_more, code)
        if hasattr(given, "needs"):
            _require_named(subject, grads, state, known | {"params": params})


def _require_named(subject: Subject, grads: Any, state: Any, known: Any) -> None:
    """An error names each missing extra that is needed; nothing else is needed."""
    given = subject.given
    needed = given.needs
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
        with promise("it should declare that it needs `params`", code):
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


def _code(subject: Subject, params: Any, more: dict[str, Any]) -> str:
    unknown = "".join(f", {name}={x!r}" for name, x in more.items())
    lines = step_code(subject, params, "_", unknown)
    return "\n".join(lines)


extras = Law(
    "extras",
    "contract",
    "Unknown extras are tolerated, and a missing one is named by the error.",
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
