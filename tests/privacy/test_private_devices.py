"""Private training on several devices."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array
from support.private import (
    at,
    BATCH,
    by_blocks,
    CLIPPED_GRAD,
    close,
    GRADS,
    MODEL,
    PATHS,
    private_step,
    same,
    update,
)

from contrib_algos import DPAggregate, GaussianNoise, value_and_clipped_grad


MESHES = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)


@MESHES
@PATHS
def test_eight_devices_compute_what_one_computes(
    kind: AxisType, make: Callable[..., Any]
):
    """The batch is sharded over devices, and so is a part of the parameters."""
    expected, _ = private_step(make())(MODEL, make().init(MODEL), BATCH)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
        sharding = NamedSharding(mesh, PartitionSpec())
        model = jax.tree.map(
            lambda x: jax.device_put(x, sharding) if eqx.is_array(x) else x, MODEL
        )
        model = at(
            lambda m: m.bias,
            jax.device_put(model.bias, NamedSharding(mesh, PartitionSpec("model"))),
            model,
        )
        if make is by_blocks:
            step = private_step(make())
            model, _ = eqx.filter_jit(step)(model, make().init(model), batch)
            close(model, expected)
        else:
            opt, grads = make(), jax.device_put(GRADS, sharding)
            rows = NamedSharding(mesh, PartitionSpec("data"))
            grads = jax.tree.map(lambda g: jax.device_put(g, rows), grads)
            updates, _ = eqx.filter_jit(opt.update)(grads, opt.init(model), model)
            close(eqx.apply_updates(model, updates), expected)


def test_explicit_axes_and_arrays_in_loss_and_bound():
    """The parameters may be sharded over the same axis as the batch."""

    class Loss(eqx.Module):
        scale: Array

        def __call__(self, w: Array, x: Array) -> Array:
            return jnp.sum(self.scale * jnp.sin(w * x))

    def total(bound: Array, w: Array, x: Array) -> Any:
        clipped = value_and_clipped_grad(Loss(jnp.full(8, 2.0)), bound)(w, x)
        rows = jax.vmap(jax.grad(Loss(jnp.full(8, 2.0))), (None, 0))(w, x)
        opt = DPAggregate(bound, 0.0, 0, normalize_by=1)
        return clipped.sum, opt.update(rows, opt.init(w), w)[0]

    bound, w, x = jnp.asarray(0.7), jnp.ones(8), jnp.arange(128.0).reshape(16, 8)
    expected = total(bound, w, x)
    close(expected[0], expected[1])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        data = NamedSharding(mesh, PartitionSpec("data"))
        w, x = jax.device_put(w, data), jax.device_put(x, data)
        shared = jax.sharding.reshard(w, PartitionSpec())
        for run in (total, jax.jit(total)):
            close(run(bound, shared, x), expected)
        clipped = value_and_clipped_grad(Loss(jnp.full(8, 2.0)), bound)
        close(jax.jit(lambda w, x: clipped(w, x).sum)(w, x), expected[0])


def on_devices(fn: Callable[..., Any], *specs: Any, check_vma: bool = True) -> Any:
    """`fn(params, batch)` on a mesh of 4 by 2 devices; both are ones."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=2 * (AxisType.Auto,))
    mapped = jax.shard_map(
        fn, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma
    )
    return mapped(jnp.ones(8), jnp.ones((8, 8)))


DATA, EACH = PartitionSpec("data"), PartitionSpec()

LINEAR = value_and_clipped_grad(jnp.vdot, 1.0)


def by_index(w: Array, x: Array) -> Any:
    grad = value_and_clipped_grad(lambda w, i: jnp.vdot(w, x[i]), 1.0)
    return grad(w, jnp.arange(len(x))).psum("data").sum


def twice(w: Array, x: Array) -> Any:
    return LINEAR(w, x).psum("data").psum("data").sum


def elsewhere(w: Array, x: Array) -> Any:
    return LINEAR(w, x).psum("data").psum("model").sum


def noisy_inside(w: Array, x: Array) -> Any:
    opt = GaussianNoise(1.0, 0)
    return lax.pmean(opt.update(LINEAR(w, x), opt.init(w), w)[0], "data")


def aggregated_inside(w: Array, x: Array) -> Any:
    opt = DPAggregate(1.0, 1.0, 0)
    rows = jax.vmap(lambda x: x)(x)
    return lax.pmean(opt.update(rows, opt.init(w), w)[0], "data")


@pytest.mark.parametrize(
    "fn, specs, message",
    [
        (by_index, (EACH, DATA), "not in the batch. Put them into it"),
        (twice, (EACH, DATA), "axis 'data' have the same sum, which must not be count"),
        (elsewhere, (EACH, DATA), "axis 'model' have the same sum"),
        (lambda w, x: LINEAR(w, x[:, :2]), (DATA, EACH), "clipped in parts"),
        (noisy_inside, (EACH, DATA), "Add up first, `clipped.psum"),
        (aggregated_inside, (EACH, DATA), "each device would add noise"),
    ],
)
def test_mistakes_in_shard_map_are_refused(fn: Any, specs: Any, message: str):
    with pytest.raises(ValueError, match=message):
        on_devices(fn, *specs)


def test_a_second_sum_is_refused_without_jax_checking_axes():
    with pytest.raises(ValueError, match="must not be counted again"):
        on_devices(
            lambda w, x: LINEAR(w, x).psum("data").psum("data"),
            *(EACH, DATA),
            check_vma=False,
        )
    over_both = on_devices(
        lambda w, x: LINEAR(w, x).psum(("data", "model")).sum,
        *(EACH, PartitionSpec(("data", "model"))),
    )
    close(over_both, LINEAR(jnp.ones(8), jnp.ones((8, 8))).sum)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_computes_what_one_device_computes(check_vma: bool):
    """The recipe of `docs/privacy.md`: each device sums, and noise is added once."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arrays_, static = eqx.partition(MODEL, eqx.is_array)
    local = jax.shard_map(
        lambda a, batch: CLIPPED_GRAD(eqx.combine(a, static), batch).psum("data"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )
    clipped, expected = jax.jit(local)(arrays_, BATCH), CLIPPED_GRAD(MODEL, BATCH)
    close(clipped.sum, expected.sum)
    same((clipped.values, clipped.norms), (expected.values, expected.norms))
    close(update(by_blocks(), clipped, MODEL), update(by_blocks(), expected, MODEL))


@pytest.mark.parametrize("check_vma", [True, False])
def test_examples_are_clipped_before_devices_add_up(check_vma: bool):
    """Otherwise JAX would add up the gradients of shared parameters, and 8 examples
    would be clipped as one. The sum over devices is as exact as a sum on one."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    grad = value_and_clipped_grad(lambda w, x: jnp.sum(w * x), 0.50013)
    total = jax.jit(
        jax.shard_map(
            lambda w, x, mask: grad(w, x, mask).psum("data"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec("data")),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )
    )
    x, mask = jnp.ones((4096, 1)), jnp.ones(4096, bool)
    sums = []
    for keep in (mask, mask.at[-1].set(False)):
        clipped = total(jnp.zeros(1), x, keep)
        sums.append(float(clipped.sum[0]) + float(clipped.rest[0]))
    bound = float(np.float32(0.50013))
    assert sums[0] == pytest.approx(4096 * bound, rel=2e-6)
    assert sums[0] - sums[1] == pytest.approx(bound, rel=2e-6)
