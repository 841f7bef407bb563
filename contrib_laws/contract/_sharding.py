"""Training on parameters that are sharded over devices."""

import os
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._law import Fault, Law
from .._subject import Subject
from .._write import extras_code
from ._compare import named_leaves, promise, require, require_close
from ._training import precision_of, train, waves


DEVICES = 8

_SHAPES = {"w": (16, 4), "b": (8,), "t": ()}
_SPECS = {"w": ("devices", None), "b": ("devices",), "t": ()}


def provide_devices() -> None:
    """Makes the CPU stand for the eight devices that the law `sharding` needs.

    Call it before JAX first computes something, because JAX reads the number of devices
    then. An existing setting in `XLA_FLAGS` is kept.
    """
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS")
    if flag not in (flags or ""):
        os.environ["XLA_FLAGS"] = f"{flags or ''} {flag}={DEVICES}".strip()


def _sharding(subject: Subject, axis_type: AxisType) -> Fault | None:
    rule = subject.rule
    local = {name: waves(shape, "float64") for name, shape in _SHAPES.items()}
    code = _code(subject, axis_type)
    with precision_of(subject, local) as local:
        mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(axis_type,))

        def one_step(params: Any, state: Any) -> Any:
            return train(subject, params, state, 1, rule=rule)[:2]

        step = subject.compiled("sharding", one_step)
        expected = step(*step(local, rule.init(local)))
        with jax.set_mesh(mesh), promise("sharded parameters should work", code):
            shardings = {
                k: NamedSharding(mesh, PartitionSpec(*s)) for k, s in _SPECS.items()
            }
            params = jax.device_put(local, shardings)
            wanted = {_SHAPES[k]: s for k, s in shardings.items() if _SHAPES[k]}
            state = rule.init(params)
            _require_sharded("the state of init", state, wanted, code)
            _require_sharded(
                "the state of init under jit", jax.jit(rule.init)(params), wanted, code
            )
            for _ in range(2):
                params, state = step(params, state)
                _require_sharded("the parameters after a step", params, wanted, code)
                _require_sharded("the state after a step", state, wanted, code)
        require_close("sharded and not", expected, (params, state), code)


def _require_sharded(
    what: str, x: Any, wanted: dict[Any, NamedSharding], code: str
) -> None:
    for where, leaf in named_leaves(what, x):
        sharding = wanted.get(leaf.shape)
        if sharding is not None:
            # The rest of a sharding on this mesh is always the same, and long.
            found = getattr(leaf.sharding, "spec", leaf.sharding)
            require(
                leaf.sharding.is_equivalent_to(sharding, leaf.ndim),
                f"{where}: {found}, not {sharding.spec}",
                code,
            )


def _code(subject: Subject, axis_type: AxisType) -> str:
    return f"""\
from jax.sharding import AxisType, NamedSharding, PartitionSpec
axis_types = (AxisType.{axis_type.name},)
mesh = jax.make_mesh(({DEVICES},), ("devices",), axis_types=axis_types)
specs = {{"w": ("devices", None), "b": ("devices",), "t": ()}}
w, b, t = jnp.arange(64.0).reshape(16, 4), jnp.arange(8.0), jnp.ones(())
local = {{"w": w, "b": b, "t": t}}

def step(params, state):
    return transform.update(params, state, params{extras_code(subject)})

expected = jax.jit(step)(local, transform.init(local))
with jax.set_mesh(mesh):
    shardings = {{k: NamedSharding(mesh, PartitionSpec(*s)) for k, s in specs.items()}}
    params = jax.device_put(local, shardings)
    states = [transform.init(params), jax.jit(transform.init)(params)]
    found = jax.jit(step)(params, states[0])
    for x in jax.tree.leaves((states, found)):
        for p in params.values():
            if p.shape == x.shape != ():
                assert x.sharding.is_equivalent_to(p.sharding, x.ndim), x.sharding
for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5)"""


def _too_few_devices(subject: Subject) -> str | None:
    if len(jax.devices()) < DEVICES:
        return (
            f"it needs {DEVICES} devices: call `contrib_laws.provide_devices()` before "
            "JAX computes"
        )
    return None


sharding = Law(
    "sharding",
    "contract",
    "Sharded parameters give the results of one device, and the state is sharded like "
    "the parameters.",
    r"\text{sharding}(s_t) = \text{sharding}(x_t)",
    "1e-7 of the largest entry of a leaf, in double precision, as for "
    "`transformations`",
    _sharding,
    first=lambda subject: [AxisType.Explicit, AxisType.Auto],
    excuse=_too_few_devices,
)
