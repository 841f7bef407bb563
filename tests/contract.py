"""What every transform guarantees, one check each; see `test_contract.py`.

A check takes a transform, anything with `init` and `update`, and raises
`AssertionError`, with a message that says what does not hold. The checks do not rely
on what `AbstractTransform.update` verifies: each catches a transform that is broken
without it (`test_contract_mutants.py`).
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from zoo import WRAPPERS

from contrib_core import apply_updates, chain, masked, scale, to_optax
from contrib_wrappers import master_weights, split_real_and_imaginary


# In float64 rounding is 1e-16 of what is computed. The first steps of the rules that
# measure a distance are 1e-6 of the parameters, so these distances, and the updates,
# are good to about 1e-10: a thousandth of this.
ROUNDING = 1e-7

# The solution of the problem that everything is trained on, for so many steps.
TARGET = 0.5
STEPS = 100


# The problem: half the squared distance to a point


def parameters(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Parameters of one dtype, with every kind of leaf that is legal."""

    shapes = {"b": (3,), "empty": (0, 2), "t": (), "w": (4, 3)}
    leaves = {name: _waves(shape, dtype) for name, shape in shapes.items()}
    return leaves | {"none": None}


def _waves(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Numbers between -1 and 1, of both signs and none of them 0."""
    x = np.sin(1.0 + np.arange(np.prod(shape, dtype=int))).reshape(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 0.5j * np.cos(x)
    return jnp.asarray(x, dtype)


def gradient(params: Any) -> Any:
    """The gradient of `loss`."""
    return jax.tree.map(lambda p: p - TARGET, params)


def loss(params: Any) -> float:
    """Half the squared distance to the solution, in float64."""
    leaves = [np.asarray(x, np.complex128) for x in jax.tree.leaves(params)]
    return float(sum(np.sum(np.abs(x - TARGET) ** 2) for x in leaves)) / 2


def update(transform: Any, grads: Any, state: Any, params: Any, **extra: Any) -> Any:
    """`transform.update`, given what it needs."""
    squares = (
        jnp.sum(jnp.abs(g).astype("float32") ** 2) for g in jax.tree.leaves(grads)
    )
    supply = {
        # A loss that is finite, as the gradients are.
        "value": lambda: jnp.nan_to_num(sum(squares, start=jnp.float32(0)) / 2),
        "grad_fn": lambda: lambda x, *_: gradient(x),
        "key": lambda: jax.random.key(0),
    }
    needed = {k: v() for k, v in supply.items() if k in needs(transform)}
    return transform.update(grads, state, params, **needed, **extra)


def needs(transform: Any) -> frozenset[str]:
    """What `update` cannot do without; of an optax transformation nobody knows."""
    if isinstance(transform, optax.GradientTransformationExtraArgs):
        return frozenset({"value", "grad_fn", "key"})
    return getattr(transform, "needs", frozenset())


def train(transform: Any, params: Any, state: Any, steps: int) -> Any:
    """Parameters, state and last updates after `steps`, one call each."""
    updates = None
    for _ in range(steps):
        updates, state = update(transform, gradient(params), state, params)
        params = apply_updates(params, updates)
    return params, state, updates


def scan(transform: Any, params: Any, state: Any, steps: int) -> Any:
    """Parameters and state after `steps`, in one loop."""

    def body(carry: Any, _: None) -> tuple[Any, None]:
        params, state, _ = train(transform, *carry, steps=1)
        return (params, state), None

    return lax.scan(body, (params, state), length=steps)[0]


def fit(transform: Any, params: Any, steps: int) -> Any:
    """`scan` from a fresh state."""
    return scan(transform, params, transform.init(params), steps)


# How checks compare and complain


@contextlib.contextmanager
def promise(what: str) -> Iterator[None]:
    """Turns any exception into an `AssertionError` that says what was promised."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def assert_same_type(what: str, x: Any, y: Any, *, weak: bool = True) -> None:
    """Both have one structure, and leaves of one shape, dtype and weak type."""
    assert jax.tree.structure(x) == jax.tree.structure(y), (
        f"{what}: the structure is {jax.tree.structure(y)}, not {jax.tree.structure(x)}"
    )
    for (path, a), b in zip(
        jtu.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True
    ):
        given, wanted = type_of(b, weak), type_of(a, weak)
        assert given == wanted, f"{what} at {jtu.keystr(path)}: {given}, not {wanted}"


def type_of(x: Any, weak: bool = True) -> str:
    """Shape, dtype and weak type of an array; the class of anything else."""
    if not hasattr(x, "dtype"):
        return type(x).__name__
    is_weak = weak and getattr(x, "weak_type", False)
    return f"{x.dtype}{list(x.shape)}{' (weakly typed)' if is_weak else ''}"


def assert_equal(what: str, x: Any, y: Any) -> None:
    """Both are bitwise the same."""
    assert_same_type(what, x, y, weak=False)
    for (path, a), b in zip(
        jtu.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), (
            f"{what} at {jtu.keystr(path)}: {b}, not {a}"
        )


def assert_close(what: str, x: Any, y: Any, unit: Any = None) -> None:
    """Both are the same up to rounding, relative to the largest entry of a leaf."""
    assert_same_type(what, x, y, weak=False)
    for (path, a), b in zip(
        jtu.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        tolerance = ROUNDING * np.max(np.abs(a), initial=0)
        assert np.allclose(b, a, rtol=0, atol=tolerance), (
            f"{what} at {jtu.keystr(path)}: {b}, not {a}"
        )


def assert_progress(what: str, start: Any, end: Any) -> None:
    """The loss has fallen by a tenth or more."""
    assert loss(end) < 0.9 * loss(start), (
        f"{what}: no progress, the loss went from {loss(start)} to {loss(end)}"
    )


def snapshot(x: Any) -> Any:
    """The arrays of `x`, copied into memory that nobody else has."""
    return jax.tree.map(lambda a: np.array(a, copy=True), x)


# C1


def check_types(transform: Any) -> None:
    """C1: updates have the structure, shapes and dtypes of the parameters."""
    dtypes = ["bfloat16", "float16", "complex64"]
    mixed = {name: _waves((3, 2), jnp.dtype(name)) for name in dtypes}
    _check_types_of("mixed dtypes", transform, {"float32": parameters(), **mixed})
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    _check_types_of("a raw model", transform, model)
    with jax.enable_x64(True):
        wide = {name: _waves((3, 2), name) for name in ("float64", "complex128")}
        _check_types_of("64-bit types", transform, {"narrow": mixed, **wide})


def check_types_of_one_kind(transform: Any) -> None:
    """C1: as `check_types`, for trees of one dtype, of one leaf, and of none."""
    for dtype in ("bfloat16", "float16", "complex64"):
        _check_types_of(dtype, transform, parameters(jnp.dtype(dtype)))
    _check_types_of("one leaf", transform, jnp.ones(3))
    _check_types_of("no leaves", transform, {"none": None})
    with jax.enable_x64(True):
        _check_types_of("float64", transform, parameters(jnp.float64))


def _check_types_of(name: str, transform: Any, model: Any) -> None:
    def run(params: Any) -> Any:
        own = eqx.combine(params, fixed)
        state = transform.init(own)
        updates, new_state = update(transform, params, state, own)
        return updates, state, new_state, eval_params(transform, new_state, own)

    # What `jax.grad` and `eqx.filter_grad` return has this structure too.
    params, fixed = eqx.partition(model, eqx.is_inexact_array)
    # Nothing is compiled or computed.
    with promise(f"C1: {name} should be accepted"):
        updates, state, new_state, point = eqx.filter_eval_shape(run, params)
    assert_same_type(f"C1: updates of {name}", params, updates, weak=False)
    assert_same_type(f"C1: new state of {name}", state, new_state)
    trained = eqx.filter(point, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    assert_same_type(f"C1: evaluation point of {name}", params, trained, weak=False)


def eval_params(transform: Any, state: Any, params: Any) -> Any:
    """`transform.eval_params`, which optax does not have."""
    if not hasattr(transform, "eval_params"):
        return params
    return transform.eval_params(state, params)


# C2


def check_constant_state(transform: Any) -> None:
    """C2: the type of the state never changes: loops take it, nothing retraces."""
    params = parameters()
    state = transform.init(params)
    for path, leaf in jtu.tree_leaves_with_path(state):
        where = f"C2: the state at {jtu.keystr(path)}"
        assert isinstance(leaf, jax.Array), f"{where} is {type(leaf)}, not an array"
        assert not leaf.weak_type, f"{where} is weakly typed"
    carry = (params, state)
    assert_same_type(
        "C2: init under jit", state, jax.eval_shape(transform.init, params)
    )

    def step(carry: Any) -> Any:
        params, state, _ = train(transform, *carry, steps=1)
        return params, state

    with promise("C2: lax.scan, while_loop and cond should take the state"):
        loops = [
            lambda c: lax.scan(lambda c, _: (step(c), None), c, length=2)[0],
            lambda c: lax.while_loop(lambda _: True, step, c),
            lambda c: lax.cond(True, step, lambda c: c, c),
        ]
        for loop in loops:
            assert_same_type(
                "C2: the state after a loop", carry, jax.eval_shape(loop, carry)
            )

    traces = []

    @jax.jit
    def counted(carry: Any) -> Any:
        traces.append(None)
        return step(carry)

    for _ in range(3):
        carry = counted(carry)
    assert len(traces) == 1, f"C2: {len(traces)} traces in three steps, not 1"


# C3


def check_transformations(transform: Any) -> None:
    """C3: jit, scan and vmap give what a loop of single calls gives, up to rounding.

    Under vmap both the problem and the hyperparameters vary, which are arrays there and
    under jit, but Python numbers in the loop.
    """
    with jax.enable_x64(True), promise("C3: jit, scan and vmap should work"):
        problems = [parameters(jnp.float64)]
        problems.append(jax.tree.map(lambda x: 0.5 * x, problems[0]))
        hyper = [with_arrays(transform), with_arrays(transform, 0.9)]

        params, state, _ = train(transform, problems[0], transform.init(problems[0]), 4)
        jitted = eqx.filter_jit(fit)
        single = [jitted(*pair, 4) for pair in zip(hyper, problems, strict=True)]
        assert_close("C3: jit and scan", (params, state), single[0])

        swept = stack(hyper)
        batch = eqx.filter_jit(eqx.filter_vmap(lambda t, p: fit(t, p, 4)))(
            swept, stack(problems)
        )
        assert_close("C3: vmap", stack(single), batch)


def with_arrays(transform: Any, factor: float = 1.0) -> Any:
    """`transform` with arrays in place of numbers, multiplied by `factor`."""
    dtype = jnp.result_type(float)

    def leaf(x: Any) -> Any:
        finite = isinstance(x, float) and math.isfinite(x)  # Infinite means "off".
        return jnp.array(factor * x, dtype) if finite else x

    return jax.tree.map(leaf, transform)


def stack(trees: list[Any]) -> Any:
    """The arrays of all trees along a new first axis."""

    def leaf(*xs: Any) -> Any:
        return jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0]

    return jax.tree.map(leaf, *trees)


# C4


def check_purity(transform: Any) -> None:
    """C4: inputs are left alone, and nothing of theirs is in the state."""
    _check_inputs_unchanged(transform)
    _check_donation(transform)


def _check_inputs_unchanged(transform: Any) -> None:
    # Arrays of NumPy are mutable, and JAX can share their memory: 64 bytes aligned.
    params = jax.tree.map(_aligned, parameters())
    before = snapshot(params)
    state = transform.init(params)
    assert_equal("C4: the parameters after init", before, params)
    state_before = snapshot(state)
    jax.tree.map(lambda x: x.fill(7), params)
    assert_equal("C4: the state after its parameters were mutated", state_before, state)

    inputs = jax.tree.map(_aligned, (gradient(before), before))
    inputs_before = snapshot(inputs)
    _, new_state = update(transform, inputs[0], state, inputs[1])
    assert_equal("C4: the inputs of update", inputs_before, inputs)
    assert_equal("C4: the state given to update", state_before, state)
    new_before = snapshot(new_state)
    jax.tree.map(lambda x: x.fill(7), inputs)
    assert_equal("C4: the new state after inputs were mutated", new_before, new_state)


def _aligned(x: Any) -> np.ndarray:
    """A copy that JAX may put its arrays in."""
    x = np.asarray(x)
    buffer = np.zeros(x.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    own = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    own[...] = x
    return own


def _check_donation(transform: Any) -> None:
    # Arrays as hyperparameters: the state must not share theirs either.
    arrays, rest = eqx.partition(with_arrays(transform), eqx.is_array)

    def step(arrays: Any, params: Any, state: Any) -> Any:
        return train(eqx.combine(arrays, rest), params, state, steps=1)[:2]

    donating = jax.jit(step, donate_argnums=(1, 2), keep_unused=True)
    params = parameters()
    state = eqx.combine(arrays, rest).init(params)
    leaves = jax.tree.leaves((params, state))
    with promise("C4: parameters and state should be donatable at every step"):
        for _ in range(3):
            params, state = donating(arrays, params, state)
        donated = all(x.is_deleted() for x in leaves if x.size)
        assert donated, "C4: nothing was donated, so this shows nothing"
        eqx.combine(arrays, rest).init(params)


# C5


# A constant gradient is that of a loss without a minimum, so it ends at some time.
BEGIN = np.arange(STEPS) < 50
FIRST, SPIKE = np.arange(STEPS) == 0, np.arange(STEPS) == 5

# Gradients are `pull` times the gradient of the problem plus `push`, without the first
# coordinate of every leaf if `hole`; and updates are multiplied by `rate`.
SCENARIOS: dict[str, dict[str, Any]] = {
    "a first gradient of zero": {"pull": ~FIRST},
    "gradients of zero for ever": {"pull": 0},
    "a learning rate that is zero at first": {"rate": ~FIRST},
    "one zero coordinate": {"hole": True},
    "gradients of 1e30": {"pull": 0, "push": 1e30 * BEGIN},
    "gradients of 1e12": {"pull": 0, "push": 1e12 * BEGIN},
    "gradients of 1e-30": {"pull": 0, "push": 1e-30},
    "gradients of 1e30 at first": {"push": 1e30 * FIRST},
    "gradients of 1e-30 at first": {"pull": ~FIRST, "push": 1e-30 * FIRST},
    "gradients of 1e12 once": {"push": 1e12 * SPIKE},
    "gradients of 1e30 once": {"push": 1e30 * SPIKE},
    "gradients of 1e-30 once": {"pull": ~SPIKE, "push": 1e-30 * SPIKE},
}


def check_finite(
    transform: Any, *, descends: bool = True, ours: bool = True, mixed: bool = True
) -> None:
    """C5: finite gradients never make anything infinite or NaN, or end the training.

    Unless `ours`, gradients of 1e30 may. If `mixed`, with a leaf in bfloat16.
    """
    narrow = {"narrow": _waves((3, 2), jnp.bfloat16)} if mixed else {}
    wide = {"b": _waves((3,), jnp.float32), "w": _waves((4, 3), jnp.float32)}
    names = [name for name in SCENARIOS if ours or "1e30" not in name]
    ends = _scenarios(transform, wide | narrow, names, descends)
    if descends:
        for name in ("a first gradient of zero", "gradients of 1e-30 at first"):
            end = {key: ends[name][key] for key in wide}
            assert_progress(f"C5: with {name}", wide, end)


def check_finite_narrow(
    transform: Any, *, descends: bool = True, ours: bool = True
) -> None:
    """C5: as `check_finite`, with nothing but bfloat16."""
    names = [name for name in SCENARIOS if ours or "1e30" not in name]
    _scenarios(transform, parameters(jnp.bfloat16), names, descends)


def _scenarios(
    transform: Any, params: Any, names: list[str], descends: bool
) -> dict[str, Any]:
    """Where to evaluate the model at the end of each scenario; all was finite."""

    def step(carry: Any, now: Any) -> Any:
        params, state = carry
        pull, push, rate = now
        grads = jax.tree.map(lambda a, p, b: a * (p - TARGET) + b, pull, params, push)
        updates, state = update(transform, grads, state, params)
        used = jax.tree.map(lambda u, r: u * r, updates, rate)
        # What does not descend may run away, and then its gradients are not finite.
        params = apply_updates(params, used) if descends else params
        # As one vector, for the time that it takes to compile.
        leaves = [
            x.astype(jnp.float32).ravel() for x in jax.tree.leaves((updates, state))
        ]
        return (params, state), jnp.concatenate(leaves)

    @jax.jit
    @jax.vmap
    def run(scenario: Any) -> Any:
        start = (params, transform.init(params))
        (end, state), history = lax.scan(step, start, scenario)
        return history, eval_params(transform, state, end)

    # All scenarios at once, for the same reason.
    history, points = snapshot(run(stack([_numbers(name, params) for name in names])))
    start = (params, transform.init(params))
    paths = [[p] * x.size for p, x in jtu.tree_leaves_with_path(start)]
    for scenario, i, j in np.argwhere(~np.isfinite(history)):
        path = jtu.keystr(sum(paths, start=[])[j])
        raise AssertionError(
            f"C5: with {names[scenario]}, at step {i}: (updates, state){path} is not "
            "finite"
        )
    each = [jax.tree.map(lambda x: x[i], points) for i in range(len(names))]
    return dict(zip(names, each, strict=True))


def _numbers(name: str, params: Any) -> tuple[Any, Any, Any]:
    """`pull`, `push` and `rate` for every coordinate at every step."""
    scenario = {"pull": 1, "push": 0, "rate": 1, "hole": False} | SCENARIOS[name]

    def leaves(key: str, pattern: Callable[[Any], Any]) -> Any:
        steps = np.broadcast_to(np.asarray(scenario[key], np.float32), STEPS)

        def leaf(p: jax.Array) -> jax.Array:
            coordinates = pattern(np.arange(p.size)).reshape(p.shape)
            return jnp.asarray(np.multiply.outer(steps, coordinates), p.dtype)

        return jax.tree.map(leaf, params)

    def keep(index: Any) -> Any:
        return np.where(index == 0, not scenario["hole"], True)

    signs = leaves("push", lambda index: np.where(index % 2, -1, 1) * keep(index))
    return leaves("pull", keep), signs, leaves("rate", np.ones_like)


# C6


def check_extras(transform: Any) -> None:
    """C6: unknown extras are tolerated; what is needed and missing is named."""
    params = parameters()
    grads = gradient(params)
    state = jax.eval_shape(transform.init, params)

    def run(state: Any, **extra: Any) -> Any:
        return update(transform, grads, state, params, **extra)

    with promise("C6: unknown extras should be tolerated"):
        plain = jax.eval_shape(run, state)
        more = jax.eval_shape(
            lambda s: run(s, batch_stats={"mean": 0.0}, flag=1), state
        )
    assert_same_type("C6: what update returns with unknown extras", plain, more)

    given = {
        "params": params,
        "value": jnp.float32(1),
        "grad_fn": lambda x, *_: gradient(x),
        "key": jax.random.key(0),
    }
    needed = needs(transform)
    assert needed <= set(given), f"C6: needs {set(needed)}, of which nobody knows all"
    for missing in needed:
        others = {k: v for k, v in given.items() if k in needed - {missing}}
        message = _error_without(transform, grads, state, others)
        for part in (type(transform).__name__, f"`{missing}", "opt.update("):
            assert part in message, (
                f"C6: without {missing}, the error should contain {part!r}: {message}"
            )
    if "params" not in needed:
        with promise("C6: what is not said to be needed should not be"):
            some = {k: v for k, v in given.items() if k in needed}
            updates = jax.eval_shape(
                lambda s: transform.update(grads, s, **some)[0], state
            )
        assert_same_type("C6: updates without params", grads, updates, weak=False)


def _error_without(transform: Any, grads: Any, state: Any, given: Any) -> str:
    try:
        jax.eval_shape(lambda s: transform.update(grads, s, **given), state)
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__} instead of ValueError: {error}"
    return "there was none"


# C7


def check_equinox_checkpoint(transform: Any) -> None:
    """C7: a run that was saved by equinox and resumed is bitwise the same."""

    def restore(carry: Any, like: Any) -> Any:
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, carry)
        file.seek(0)
        return eqx.tree_deserialise_leaves(file, like)

    _check_checkpoint(transform, restore)


def check_orbax_checkpoint(transform: Any, folder: Path) -> None:
    """C7: a run that was saved by orbax and resumed is bitwise the same."""

    def restore(carry: Any, like: Any) -> Any:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "state", carry)
            checkpointer.wait_until_finished()
            return checkpointer.restore(folder / "state", like)

    _check_checkpoint(transform, restore)


def _check_checkpoint(transform: Any, restore: Callable[[Any, Any], Any]) -> None:
    # Zero-size leaves are beyond orbax.
    params = {k: v for k, v in parameters().items() if k != "empty"}
    step = jax.jit(lambda params, state: train(transform, params, state, steps=1)[:2])
    start = (params, transform.init(params))
    halfway = step(*step(*start))
    expected = step(*step(*halfway))
    with promise("C7: the state should be saved and restored"):
        restored = restore(halfway, start)
        assert_equal("C7: the restored state", halfway, restored)
        resumed = step(*step(*restored))
    assert_equal("C7: the state of the resumed run", expected, resumed)


# C8


def check_sharding(transform: Any, axis_type: AxisType, *, ours: bool = True) -> None:
    """C8: sharded parameters give the same, with a state that is sharded like them.

    Unless `ours`, `init` under jit need not do that on automatic axes.
    """
    with jax.enable_x64(True):
        mesh = jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))
        shapes = {"w": (16, 4), "b": (8,), "t": ()}
        specs = {"w": ("devices", None), "b": ("devices",), "t": ()}
        local = {k: _waves(s, jnp.float64) for k, s in shapes.items()}
        expected = train(transform, local, transform.init(local), 2)[:2]
        with jax.set_mesh(mesh), promise("C8: sharded parameters should work"):
            shardings = {
                k: NamedSharding(mesh, PartitionSpec(*s)) for k, s in specs.items()
            }
            params = jax.device_put(local, shardings)
            by_shape = {shapes[k]: s for k, s in shardings.items() if shapes[k]}
            state = transform.init(params)
            _assert_sharded("the state of init", state, by_shape)
            if ours or axis_type == AxisType.Explicit:
                jitted = jax.jit(transform.init)(params)
                _assert_sharded("the state of init under jit", jitted, by_shape)
            step = jax.jit(lambda params, state: train(transform, params, state, 1)[:2])
            for _ in range(2):
                params, state = step(params, state)
                _assert_sharded("the parameters after a step", params, by_shape)
                _assert_sharded("the state after a step", state, by_shape)
        assert_close("C8: sharded and not", expected, (params, state))


def _assert_sharded(what: str, x: Any, by_shape: dict[Any, NamedSharding]) -> None:
    for path, leaf in jtu.tree_leaves_with_path(x):
        wanted = by_shape.get(leaf.shape)
        if wanted is not None:
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (
                f"C8: {what} at {jtu.keystr(path)}: {leaf.sharding}, not {wanted}"
            )


# C9


def check_low_precision(
    transform: Any,
    dtype: Any,
    *,
    descends: bool = True,
    narrow: bool = True,
    ours: bool = True,
) -> None:
    """C9: 16-bit parameters have statistics of 32 bits, stay finite, and make progress.

    Unless `narrow`, they make progress only in `master_weights`, and unless `ours` have
    such statistics only there.
    """
    what = f"C9: {jnp.dtype(dtype)}"
    steps = STEPS if descends else 2  # What does not descend may grow without bounds.
    start = parameters(dtype)
    for t, is_master in [(transform, False), (master_weights(transform), True)]:
        if is_master and narrow and ours:
            break
        fresh = t.init(start)
        end, state = eqx.filter_jit(fit)(t, start, steps)
        for path, x in jtu.tree_leaves_with_path((end, state)):
            finite = np.isfinite(np.asarray(x, np.float32)).all()
            assert finite, (
                f"{what}: (parameters, state){jtu.keystr(path)} is not finite"
            )
        if ours or is_master:
            _assert_wide(f"{what}: the fresh state", fresh, start)
            _assert_wide(f"{what}: the state", state, start)
        if descends and (narrow or is_master):
            assert_progress(what, start, eval_params(t, state, end))


def _assert_wide(what: str, state: Any, params: Any) -> None:
    """Only copies of the first parameters may be as narrow as they are."""
    copies = [(x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(params)]
    for path, x in jtu.tree_leaves_with_path(state):
        is_narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
        assert not is_narrow or (x.shape, np.asarray(x).tobytes()) in copies, (
            f"{what} at {jtu.keystr(path)} is {type_of(x)}, and no copy of the first "
            "parameters"
        )


# C10


def check_composition(transform: Any) -> None:
    """C10: nothing changes in chains, masks and wrappers that have nothing to do."""
    params = parameters()
    unit = scale(1.0)
    expected = _what_it_does(transform, params)
    with promise("C10: chains and wrappers should take it"):
        nested = masked(split_real_and_imaginary(master_weights(transform)), True)
        found = _what_it_does(chain(unit, nested, unit), params)
    assert_equal("C10: in chain(masked(split(master_weights)))", expected, found)
    with promise("C10: optax.chain should take it"):
        outer = optax.chain(to_optax(transform), optax.scale(1.0))
        found = _what_it_does(outer, params)
    assert_equal("C10: in optax.chain", expected["updates"], found["updates"])


def check_wrappers(transform: Any) -> None:
    """C10: every wrapper of the zoo takes it, and forwards what it reports.

    Traced only: the generated part of the zoo runs them.
    """
    params = parameters()
    expected = jax.eval_shape(lambda p: _what_it_does(transform, p), params)
    for name, wrap in WRAPPERS.items():
        with promise(f"C10: {name} should take it"):
            wrapped = wrap(transform)
            found = jax.eval_shape(lambda p: _what_it_does(wrapped, p), params)
        lost = expected["metrics"].keys() - found["metrics"].keys()
        assert not lost, f"C10: {name} does not forward the metrics {lost}"


def _what_it_does(transform: Any, params: Any) -> dict[str, Any]:
    """All that one can see of two steps."""
    params, state, updates = train(transform, params, transform.init(params), 2)
    metrics = transform.metrics(state) if hasattr(transform, "metrics") else {}
    point = eval_params(transform, state, params)
    return {"updates": updates, "params": params, "point": point, "metrics": metrics}
