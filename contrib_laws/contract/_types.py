"""Updates have the type of the parameters."""

from typing import Any

import equinox as eqx
import jax

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code, step_code
from ._compare import promise, require_same_type
from ._training import eval_params, precision_of, update
from ._trees import drawn_trees, first_trees


def _types(subject: Subject, model: Any) -> Fault | None:
    with precision_of(subject, model) as model:
        # `jax.grad` and `eqx.filter_grad` return this structure too.
        params, fixed = eqx.partition(model, eqx.is_inexact_array)

        def run(params: Any) -> Any:
            own = eqx.combine(params, fixed)
            state = subject.given.init(own)
            updates, state = update(subject, params, state, own)
            return updates, eval_params(subject.given, state, own)

        written = _model_code if jax.tree.leaves(fixed) else _code
        code = written(subject, params)
        with promise("it should accept these parameters", code):
            updates, point = eqx.filter_eval_shape(run, params)
        require_same_type("updates", params, updates, code, weak=False)
        trained = eqx.filter(point, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        require_same_type("evaluation point", params, trained, code, weak=False)


_TYPES = "def types(x):\n    return jax.tree.map(lambda a: (a.shape, a.dtype), x)\n"


def _code(subject: Subject, params: Any) -> str:
    check = "assert types(updates) == types(params)"
    point = "assert types(transform.eval_params(state, params)) == types(params)"
    steps = step_code(subject, params, "updates, state")
    return "\n".join([_TYPES, *steps, check, *([point] if subject.is_ours else [])])


def _model_code(subject: Subject, params: Any) -> str:
    """The same test on the raw model."""
    return f"""\
{_TYPES}
model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
grads = eqx.filter(model, eqx.is_inexact_array)
state = transform.init(model)
updates, state = transform.update(grads, state, model{extras_code(subject)})
assert types(updates) == types(grads)
assert types(transform.eval_params(state, updates)) == types(grads)"""


types = Law(
    "types",
    "contract",
    "Updates have the structure, shapes and dtypes of the parameters.",
    r"\text{type}(u_t) = \text{type}(x_t)",
    "none",
    _types,
    first=first_trees,
    drawn=drawn_trees,
    hooks=("eval_params",),
    share=0.5,
)
