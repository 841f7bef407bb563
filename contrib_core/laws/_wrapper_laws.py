"""What wrappers promise: each law is about the wrappers whose state, or whose recipe,
has what it speaks of."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np

from .. import tree
from .._combine import add_decayed_weights, scale
from .._state import AbstractState, Extra
from .._transform import AbstractTransform
from .._types import P, Tree
from ._law import Fault, Law
from ._problem import ARRAY, Case, MIXED, Problem, problems, STEPS
from ._run import AVERAGE, MECHANIC, parts_of, rounding, Run, run, UNIT
from ._subject import Subject, wraps
from ._write import (
    arguments_code,
    difference_code,
    numbers,
    run_code,
    steps_code,
)


_ROUNDING = "2⁸ T u (κ + 1) of the largest update, as for the symmetries"


def _cases(subject: Subject) -> st.SearchStrategy[Case]:
    layouts = (ARRAY, MIXED)
    return st.one_of([st.builds(Case, st.just(x), problems(x.size)) for x in layouts])


def _small_cases(subject: Subject) -> st.SearchStrategy[Case]:
    return st.builds(Case, st.just(ARRAY), problems(ARRAY.size))


class ProbeState(AbstractState[P]):
    """State of the probe."""

    momentum: P


class Probe(AbstractTransform[ProbeState[Tree]]):
    """What wrappers are tried around: decay and momentum, so that they must show it the
    parameters and keep its state."""

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, which decay."""
        return frozenset({"params"})

    def start(self, params: Tree) -> ProbeState[Tree]:
        return ProbeState(tree.accumulator_like(params))

    def step(
        self, grads: Tree, state: ProbeState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, ProbeState[Tree]]:
        decayed = tree.axpy(0.01, params, tree.widen(grads))
        momentum = tree.axpy(0.9, state.momentum, decayed)
        return tree.scale(-0.1, momentum), ProbeState(momentum)


PROBE = Probe()
_PROBE_CODE = "chain(add_decayed_weights(0.01), sgd(0.1, momentum=0.9))"


def _around_probe(subject: Subject, **more: Any) -> Any:
    """The wrapper around the probe; other optimisers are the base."""
    first = next(iter(subject.parameters))
    return subject.make(**{first: PROBE}, **more)


def _around_probe_code(subject: Subject, **more: str) -> str:
    first = next(iter(subject.parameters))
    return subject.make_code(**{first: _PROBE_CODE}, **more)


def _difference(
    subject: Subject, other: Subject, case: Case, how: str, codes: tuple[str, str]
) -> Fault | None:
    """The first update that is not that of another transform.

    **Arguments:**

    - `how`: what the other one is, for a sentence.
    - `codes`: both, for a test.
    """
    wanted, jittered = run(other, case.layout, case.problem)
    found, _ = run(subject, case.layout, case.problem)
    allowed = rounding(wanted, jittered)
    error = np.max(np.abs(found.updates - wanted.updates), axis=1)
    # Not `error > allowed`, which is false for NaN.
    wrong = np.flatnonzero(~(error <= allowed))
    if not len(wrong):
        return None
    t = int(wrong[0])
    a, b = found.updates[t], wanted.updates[t]
    return Fault(
        f"update {t} is {numbers(a, b)}, that of {how} {numbers(b, a)}",
        difference_code(subject, case, codes, t, float(allowed[t])),
    )


# Any wrapper


def _is_not_neutral(subject: Subject, case: Case) -> Fault | None:
    around, codes = subject, ("transform", subject.inner_code)
    is_recipe = subject.recipe is not None and wraps(subject.recipe)
    inner = subject.variant("inner", lambda: PROBE if is_recipe else subject.inner)
    if is_recipe:
        around = subject.variant("neutral", lambda: _around_probe(subject))
        codes = (_around_probe_code(subject), _PROBE_CODE)
    return _difference(around, inner, case, "what it wraps", codes)


neutral = Law(
    "neutral",
    "wrapper",
    "On real parameters of full precision it does what it wraps does, and no more.",
    r"W(t) = t \text{ on real trees}",
    _ROUNDING,
    _is_not_neutral,
    drawn=_cases,
    excuse=lambda subject: "it wraps nothing" if subject.inner is None else None,
)


# Schedule-free


def _is_no_average(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    z, total, b1 = (found.parts[name] for name in AVERAGE)
    mean, before = case.problem.start, 0.0
    tolerance = 2.0**8 * STEPS * UNIT * _largest(case.problem, found, z)
    for t in range(STEPS):
        weight = (total[t] - before) / total[t] if total[t] else 0.0
        mean, before = mean + weight * (z[t] - mean), total[t]
        expected = (1 - b1[t]) * z[t] + b1[t] * mean
        off = found.points[t] - expected
        if not np.all(np.abs(off) <= tolerance):
            return Fault(
                f"after step {t} the parameters are {numbers(found.points[t])}, the "
                f"interpolation of z and its average {numbers(expected)}",
                _average_code(subject, case, t, tolerance),
            )
        off = (found.evaluated[t] - mean) * b1[t]
        # At b1 = 0 there is no average, and optax does not tell.
        if subject.is_ours and not np.all(np.abs(off) <= tolerance):
            return Fault(
                f"after step {t} `eval_params` is {numbers(found.evaluated[t])}, the "
                f"average of z is {numbers(mean)}",
                _average_code(subject, case, t, tolerance),
            )
    return None


def _average_code(subject: Subject, case: Case, t: int, tolerance: float) -> str:
    place, _ = parts_of(subject, AVERAGE) or ("state", None)
    close = f"rtol=0, atol={tolerance:.2g})"
    evaluated = "(transform.eval_params(state, x) - mean) * s.b1"
    check = [f"np.testing.assert_allclose({evaluated}, 0, {close}"]
    lines = [
        f"s = {place}",
        "weight = (s.weight_sum - before) / s.weight_sum if s.weight_sum else 0.0",
        "mean, before = mean + weight * (s.z - mean), s.weight_sum",
        "expected = (1 - s.b1) * s.z + s.b1 * mean",
        f"np.testing.assert_allclose(x, expected, {close}",
        *(check if subject.is_ours else []),
    ]
    return steps_code(subject, case, t + 1, "mean, before = start, 0.0", lines)


def _largest(problem: Problem, found: Run, *others: np.ndarray) -> float:
    """The largest number among the parameters, and others: they round each other."""
    return max(np.max(np.abs(x)) for x in (problem.start, found.points, *others))


def _lacks(names: tuple[str, ...]) -> Callable[[Subject], str | None]:
    def excuse(subject: Subject) -> str | None:
        if parts_of(subject, names) is None:
            return f"its state has no fields {', '.join(names)}"
        return None

    return excuse


average = Law(
    "average",
    "wrapper",
    "Schedule-free: the parameters are at all times the interpolation of the base's "
    "iterates and their weighted average, where the model is evaluated.",
    r"y_t = (1 - \beta) z_t + \beta x_t, \quad x_t = \sum w_i z_i / \sum w_i",
    "2⁸ T u of the largest parameter, divided by β for the average",
    _is_no_average,
    drawn=_small_cases,
    excuse=_lacks(AVERAGE),
    hooks=("eval_params",),
)


# Mechanic


def _is_off_line(subject: Subject, case: Case) -> Fault | None:
    (found, _) = run(subject, case.layout, case.problem)
    x0, s = (found.parts[name] for name in MECHANIC)
    total = np.sum(s.reshape(STEPS, -1), axis=1)
    eps = subject.parameters["eps"].default
    start, delta, kept = case.problem.start, np.zeros(ARRAY.size), 0.0
    for t, x in enumerate([start, *found.points[:-1]]):
        delta = kept * delta - 0.1 * case.problem.grad(x, t)  # The step of the base.
        kept = total[t] / (total[t] + eps)
        expected = start + total[t] * delta
        growth = np.max(total[: t + 1]) / np.min(total[: t + 1])
        tolerance = 2.0**8 * STEPS * UNIT * growth * _largest(case.problem, found, x0)
        if not np.all(np.abs(found.points[t] - expected) <= tolerance):
            return Fault(
                f"after step {t} the parameters are {numbers(found.points[t])}, those "
                f"on the line {numbers(expected)}",
                _line_code(subject, case, t, eps, tolerance),
            )
    return None


def _line_code(
    subject: Subject, case: Case, t: int, eps: float, tolerance: float
) -> str:
    place, _ = parts_of(subject, MECHANIC) or ("state", None)
    curved = " + curvature * (point - start)" if case.problem.curvature else ""
    lines = [
        f"delta = kept * delta - 0.1 * (grads[t - 1]{curved})",
        f"total = jnp.sum({place}.s)",
        f"point, kept = x, total / (total + {eps})",
        "expected = start + total * delta",
        f"np.testing.assert_allclose(x, expected, rtol=0, atol={tolerance:.2g})",
    ]
    before = "point, delta, kept = start, 0.0, 0.0"
    return steps_code(subject, case, t + 1, before, lines)


def _is_no_mechanic(subject: Subject) -> str | None:
    if subject.recipe is None:
        return "it takes the wrapper itself, to know what it wraps"
    return _lacks(MECHANIC)(subject)


mechanic = Law(
    "mechanic",
    "wrapper",
    "Mechanic: the iterates are the start plus the learned scale times the base's sum "
    "of updates, of which a step keeps s / (s + ε) where it is recovered from them.",
    r"x_t = x_0 + s_t \Delta_t, \quad "
    r"\Delta_{t+1} = \tfrac{s_t}{s_t + \epsilon} \Delta_t + u_t",
    "2⁸ T u of the largest parameter, times the growth of s, by which differences of "
    "parameters are divided and multiplied",
    _is_off_line,
    drawn=_small_cases,
    excuse=_is_no_mechanic,
)


# Sharpness-aware minimisation


def _is_no_sam(subject: Subject) -> str | None:
    if "sync_period" not in subject.parameters:
        return "it takes a wrapper with a `sync_period`"
    return None


def _sam(
    name: str, sentence: str, formula: str, written: dict[str, str], **keywords: Any
) -> Law:
    """The law that with these keywords it does what it wraps."""

    def fault(subject: Subject, case: Case) -> Fault | None:
        special = subject.variant(name, lambda: _around_probe(subject, **keywords))
        base = subject.variant("inner", lambda: PROBE)
        codes = (_around_probe_code(subject, **written), _PROBE_CODE)
        return _difference(special, base, case, "what it wraps", codes)

    return Law(
        name,
        "wrapper",
        sentence,
        formula,
        _ROUNDING,
        fault,
        drawn=_small_cases,
        excuse=_is_no_sam,
    )


sam_period = _sam(
    "sam_period",
    "Sharpness-aware minimisation of period 1 has no adversarial steps: it is its "
    "base.",
    r"\text{SAM}(t, a; p = 1) = t",
    {"sync_period": "1"},
    sync_period=1,
)
sam_radius = _sam(
    "sam_radius",
    "Sharpness-aware minimisation of radius 0 looks for the worst point nowhere: it is "
    "its base.",
    r"\text{SAM}(t, 0; \text{opaque}) = t",
    {"adv_optimizer": "scale(0.0)", "opaque_mode": "True"},
    adv_optimizer=scale(0.0),
    opaque_mode=True,
)


def _is_opaque_other(subject: Subject, case: Case) -> Fault | None:
    p, half = case.problem, STEPS // 2
    seeing, opaque = (
        subject.variant(
            f"opaque={mode}",
            lambda mode=mode: subject.make(
                optimizer=PROBE, adv_optimizer=PROBE, opaque_mode=mode
            ),
        )
        for mode in (False, True)
    )
    twice = dataclasses.replace(p, grads=np.repeat(p.grads[:half], 2, axis=0))
    seen, _ = run(seeing, case.layout, twice)
    hidden, jittered = run(opaque, case.layout, p)
    largest = _largest(p, hidden)
    allowed = rounding(hidden, jittered)[:half] + 2.0**8 * UNIT * largest
    error = np.max(np.abs(seen.points[1::2] - hidden.points[:half]), axis=1)
    wrong = np.flatnonzero(~(error <= allowed))
    if not len(wrong):
        return None
    t = int(wrong[0])
    a, b = seen.points[2 * t + 1], hidden.points[t]
    first, second = (
        arguments_code(opaque, q, n) for q, n in ((twice, 2 * t + 2), (p, t + 1))
    )

    def made(mode: str) -> str:
        return subject.make_code(
            optimizer=_PROBE_CODE, adv_optimizer=_PROBE_CODE, opaque_mode=mode
        )

    code = [
        run_code(opaque, case.layout, p, "run"),
        "with jax.enable_x64(True):",
        f"    _, first, _ = run({made('False')}, {first})",
        f"    _, second, _ = run({made('True')}, {second})",
        f"np.testing.assert_allclose(second, first, rtol=0, atol={allowed[t]:.2g})",
    ]
    return Fault(
        f"after outer step {t} the parameters are {numbers(a, b)} in transparent mode, "
        f"{numbers(b, a)} in opaque mode",
        "\n".join(code),
    )


sam_modes = Law(
    "sam_modes",
    "wrapper",
    "Sharpness-aware minimisation in opaque mode, which calls for gradients itself, is "
    "that in transparent mode, of twice as many steps.",
    r"x^\text{opaque}_k = x^\text{transparent}_{2 k}",
    _ROUNDING,
    _is_opaque_other,
    drawn=_small_cases,
    excuse=_is_no_sam,
)


# Chains


def _is_no_chain(subject: Subject) -> str | None:
    kinds = [p.kind for p in subject.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return "it takes a function of any number of transforms"
    return None


class _InTurn(AbstractTransform[Any]):
    """What a chain is to do, written plainly."""

    links: tuple[AbstractTransform, ...]

    def start(self, params: Tree) -> Any:
        return [link.start(params) for link in self.links]

    def step(
        self, grads: Tree, state: Any, params: Tree, extra: Extra
    ) -> tuple[Tree, Any]:
        states = []
        for link, before in zip(self.links, state, strict=True):
            grads, after = link.step(grads, before, params, extra)
            states.append(after)
        return grads, states


_LINKS = (add_decayed_weights(0.25), PROBE, scale(0.5))
_LINKS_CODE = f"a, b, c = add_decayed_weights(0.25), {_PROBE_CODE}, scale(0.5)"


def _is_no_monoid(subject: Subject, case: Case) -> Fault | None:
    make = subject.make
    a, b, c = _LINKS
    plain = subject.variant("plain", lambda: _InTurn(_LINKS))
    nested = {
        "{0}(a, b, c)": lambda: make(a, b, c),
        "{0}({0}(a, b), c)": lambda: make(make(a, b), c),
        "{0}(a, {0}(b, c))": lambda: make(a, make(b, c)),
        "{0}(a, {0}(), b, c)": lambda: make(a, make(), b, c),
    }
    for written, made in nested.items():
        other = subject.variant(written, made)
        written = written.format(subject.name)
        codes = (written, "chain(a, b, c)")
        if fault := _difference(other, plain, case, "a, b and c in turn", codes):
            return Fault(f"{written}: {fault.what}", f"{_LINKS_CODE}\n{fault.code}")
    return None


monoid = Law(
    "monoid",
    "wrapper",
    "A chain does what its links do, in turn: nested in any way, and with empty chains "
    "in it.",
    r"(a \cdot b) \cdot c = a \cdot (b \cdot c), \quad a \cdot 1 = a = 1 \cdot a",
    _ROUNDING,
    _is_no_monoid,
    drawn=_small_cases,
    excuse=_is_no_chain,
)


WRAPPERS = (neutral, average, mechanic, sam_period, sam_radius, sam_modes, monoid)
