"""Private gradients in use: what is refused, chains, loops, devices, accounting."""

import io
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array
from zoo import REGROUPING, WRAPPERS

from contrib_algos import (
    adam,
    calibrate_noise,
    ClippedGrad,
    differentially_private_aggregate,
    DPAggregate,
    dpsgd,
    epsilon,
    GaussianNoise,
    momo,
    normalize,
    sgd,
    value_and_clipped_grad,
)
from contrib_core import AbstractTransform, chain, scale, to_optax
from contrib_core.laws import check
from contrib_wrappers import sam


class Model(eqx.Module):
    """An equinox model with a function and an integer in it."""

    weight: Array
    bias: Array
    activation: Callable[[Any], Any] = jnp.tanh
    steps: int | Array = 3

    def __call__(self, x: Array) -> Array:
        return jnp.sum(self.activation(x @ self.weight) + self.bias)


MODEL = Model(jax.random.normal(jax.random.key(0), (3, 4)), jnp.ones(4))
BATCH = {
    "x": jax.random.normal(jax.random.key(1), (16, 3)),
    "y": 4 + jnp.linspace(-2, 2, 16),
}


def loss(model: Model, example: dict[str, Array]) -> Array:
    return (model(example["x"]) - example["y"]) ** 2


def per_example(model: Any, batch: Any) -> Any:
    return eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))(model, batch)


GRADS = per_example(MODEL, BATCH)
CLIPPED_GRAD = value_and_clipped_grad(loss, 1.0)


def by_rows() -> AbstractTransform:
    return dpsgd(0.1, 1.0, 0.5, 42, momentum=0.9)


def by_blocks() -> AbstractTransform:
    return chain(GaussianNoise(0.5, 42), sgd(0.1, 0.9))


def arrays(x: Any) -> list[Any]:
    return [np.asarray(a) for a in jax.tree.leaves(x) if eqx.is_array(a)]


def close(a: Any, b: Any) -> None:
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def same(a: Any, b: Any) -> None:
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


# What is refused


def aggregate(**changes: Any) -> DPAggregate:
    arguments = {"l2_norm_clip": 1.0, "noise_multiplier": 1.0, "key": 0} | changes
    return DPAggregate(**arguments)


def update(opt: AbstractTransform, grads: Any, *params: Any) -> Any:
    return opt.update(grads, opt.init(MODEL), *params)


def at(where: Callable[[Any], Any], new: Any, like: Any = GRADS) -> Any:
    return eqx.tree_at(where, like, new)


def changed(**batch: Any) -> dict[str, Any]:
    return BATCH | batch


PART = to_optax(aggregate())


def by_optax(opt: optax.GradientTransformation) -> Any:
    params = {"w": MODEL.weight, "b": MODEL.bias}
    with jax.numpy_dtype_promotion("standard"):
        rows = {"w": GRADS.weight, "b": GRADS.bias}
        return opt.update(rows, opt.init(params), params)


MEAN = jax.tree.map(lambda g: g.mean(axis=0), GRADS)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # Bounds
    **{
        f"bound {bound}": (
            lambda bound=bound: aggregate(l2_norm_clip=bound),
            r"DPAggregate: `l2_norm_clip` must be between 1e-30 and 1e\+30; got",
        )
        for bound in (0, -1.0, 1e-31, 1e31, math.inf, math.nan)
    },
    "bound of blocks": (
        lambda: value_and_clipped_grad(loss, 0.0),
        "ClippedGrad: `l2_norm_clip` must be between",
    ),
    "bound None": (lambda: aggregate(l2_norm_clip=None), "one number; got None"),
    "bound schedule": (lambda: aggregate(l2_norm_clip=abs), "not a schedule"),
    "bounds": (lambda: aggregate(l2_norm_clip=jnp.ones(3)), r"one number.*\(3,\)"),
    # Noise
    "noise None": (lambda: aggregate(noise_multiplier=None), "one number; got None"),
    "noise of each": (lambda: aggregate(noise_multiplier=jnp.ones(3)), "one number"),
    "noise -1": (lambda: aggregate(noise_multiplier=-1.0), "`noise_mul.* at least 0"),
    "noise nan": (lambda: aggregate(noise_multiplier=math.nan), "noise_mul.*least 0"),
    "noise inf": (lambda: aggregate(noise_multiplier=math.inf), "noise_mul.*finite"),
    "divided by 0": (lambda: aggregate(normalize_by=0), "`normalize_by` must be above"),
    "divided by inf": (
        lambda: aggregate(normalize_by=math.inf),
        "normalize_by.*finite",
    ),
    # Keys
    "no key": (lambda: aggregate(key=None), "a key is one key.*secret bits"),
    "float": (lambda: aggregate(key=1.5), "got float"),
    "bool": (lambda: aggregate(key=True), "got bool"),
    "negative": (lambda: aggregate(key=-1), "from 0 to 2"),
    "large": (lambda: aggregate(key=2**32), "from 0 to 2"),
    "large of NumPy": (lambda: aggregate(key=np.int64(2**32)), "from 0 to 2"),
    "negative of NumPy": (lambda: aggregate(key=np.int64(-1)), "from 0 to 2"),
    "keys": (lambda: aggregate(key=jax.random.split(jax.random.key(0))), "filter_vmap"),
    "numbers": (lambda: aggregate(key=jnp.zeros(2)), r"shape \(2,\), float32"),
    # Gradients
    "no params": (lambda: update(aggregate(), GRADS), "needs `params`"),
    "averaged": (
        lambda: update(aggregate(), MEAN, MODEL),
        r"`.weight`.*\(3, 4\) and not \(B, 3, 4\).*jax.vmap",
    ),
    "averaged in a chain": (
        lambda: update(by_rows(), MEAN, MODEL),
        r"^Chain\(DPAggregate.*averaged.*cannot be clipped",
    ),
    "one averaged leaf": (
        lambda: update(aggregate(), at(lambda g: g.bias, MEAN.bias), MODEL),
        r"`.bias`.*\(4,\) and not \(B, 4\)",
    ),
    "unequal batches": (
        lambda: update(aggregate(), at(lambda g: g.bias, GRADS.bias[:5]), MODEL),
        r"16 examples at `.weight`, but 5 at `.bias`",
    ),
    "other shapes": (
        lambda: update(aggregate(), at(lambda g: g.bias, GRADS.bias[:, :3]), MODEL),
        r"`.bias`.*\(16, 3\), the parameter \(4,\), for 16 examples",
    ),
    "no gradient": (
        lambda: update(aggregate(), at(lambda g: g.bias, None), MODEL),
        "`.bias`.*has no gradient",
    ),
    "complex": (
        lambda: update(
            aggregate(), at(lambda g: g.bias, GRADS.bias.astype("complex64")), MODEL
        ),
        "`.bias`.*complex",
    ),
    "a sum as examples": (
        lambda: update(aggregate(), CLIPPED_GRAD(MODEL, BATCH), MODEL),
        "`ClippedSum` has been clipped already.*GaussianNoise",
    ),
    "gradients as a sum": (
        lambda: update(by_blocks(), MEAN, MODEL),
        r"^Chain\(GaussianNoise.*`ClippedSum`.*value_and_clipped_grad",
    ),
    "no noise": (
        lambda: update(adam(0.1), CLIPPED_GRAD(MODEL, BATCH), MODEL),
        r"^Chain\(Adam, Scale\).update: a `ClippedSum` is not private yet",
    ),
    "no noise nor params": (
        lambda: update(sgd(0.1), CLIPPED_GRAD(MODEL, BATCH)),
        "a `ClippedSum` is not private yet",
    ),
    "a sum without its bound": (
        lambda: update(by_blocks(), CLIPPED_GRAD(MODEL, BATCH).sum, MODEL),
        "`ClippedSum`",
    ),
    "a rest of another shape": (
        lambda: update(
            by_blocks(),
            at(lambda c: c.rest.bias, jnp.zeros(5), CLIPPED_GRAD(MODEL, BATCH)),
            MODEL,
        ),
        "`.rest`.*`.bias`",
    ),
    "sums of many models": (
        lambda: GaussianNoise(1.0, 0).update(
            jax.vmap(lambda w: value_and_clipped_grad(jnp.vdot, 1.0)(w, jnp.eye(3)))(
                jnp.eye(3)
            ),
            GaussianNoise(1.0, 0).init(jnp.eye(3)),
            jnp.eye(3),
        ),
        "several `ClippedSum`s, as of `jax.vmap`",
    ),
    "averaged scalars": (
        lambda: aggregate().update(
            jnp.ones(()), aggregate().init(jnp.ones(())), jnp.ones(())
        ),
        r"shape \(\) and not \(B,\)",
    ),
    "masked by optax": (
        lambda: by_optax(optax.masked(PART, {"w": True, "b": False})),
        "masked.*would not be clipped",
    ),
    "parts of optax": (
        lambda: by_optax(optax.partition({"x": PART, "y": PART}, {"w": "x", "b": "y"})),
        "masked.*or by itself",
    ),
    "a sum of another model": (
        lambda: update(by_blocks(), CLIPPED_GRAD(MODEL, BATCH), {"w": jnp.ones(3)}),
        "`.sum`.*differ in structure",
    ),
    # Batches
    "unequal batch": (
        lambda: CLIPPED_GRAD(MODEL, changed(y=BATCH["y"][:3])),
        r"16 examples at `\['x'\]`, but 3 at `\['y'\]`",
    ),
    "no axis": (lambda: CLIPPED_GRAD(MODEL, changed(y=jnp.ones(()))), "no axis of ex"),
    "a number": (lambda: CLIPPED_GRAD(MODEL, changed(y=1.0)), r"`\['y'\]` has no axis"),
    "no batch": (lambda: CLIPPED_GRAD(MODEL, {}), "no array"),
    "short mask": (
        lambda: CLIPPED_GRAD(MODEL, BATCH, jnp.ones(15, bool)),
        r"one bool for each of the 16 examples.*got shape \(15,\)",
    ),
    "column mask": (
        lambda: CLIPPED_GRAD(MODEL, BATCH, jnp.ones((16, 1), bool)),
        r"got shape \(16, 1\)",
    ),
    "mask of weights": (
        lambda: CLIPPED_GRAD(MODEL, BATCH, jnp.ones(16)),
        "one bool .* float32",
    ),
    "loss of a batch": (
        lambda: value_and_clipped_grad(lambda m, ex: m.bias * ex["y"], 1.0)(
            MODEL, BATCH
        ),
        r"one real number, of one example.*shape \(4,\)",
    ),
    "loss and more": (
        lambda: value_and_clipped_grad(lambda m, ex: (ex["y"], 1), 1.0)(MODEL, BATCH),
        "one real number.*got tuple",
    ),
    "no loss": (
        lambda: value_and_clipped_grad(lambda m, ex: None, 1.0)(MODEL, BATCH),
        "one real number.*got NoneType",
    ),
    "complex loss": (
        lambda: value_and_clipped_grad(lambda m, ex: ex["y"].astype("complex64"), 1.0)(
            MODEL, BATCH
        ),
        "one real number.*complex64",
    ),
    "blocks of 0": (
        lambda: value_and_clipped_grad(loss, 1.0, microbatch_size=0),
        "`microbatch_size` must be a whole number",
    ),
    # Places
    "after another": (lambda: chain(sgd(0.1), aggregate()), r"DPAggregate.*the first"),
    "after itself": (lambda: chain(aggregate(), aggregate()), "must be the first"),
    "noise after": (lambda: chain(scale(2.0), GaussianNoise(1.0, 0)), "be the first"),
    "losses behind": (
        lambda: chain(GaussianNoise(1.0, 0), momo()),
        r"Momo.* needs `value`, which shows what GaussianNoise hides",
    ),
    "gradients behind": (
        lambda: chain(by_rows(), sam(sgd(0.1), sgd(0.1), opaque_mode=True)),
        r"needs `grad_fn`, which shows what DPAggregate",
    ),
    "chain after": (lambda: chain(normalize(), by_rows()), "must be the first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name: str, unchecked: None):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


@pytest.mark.parametrize("make", [aggregate, by_rows, by_blocks])
@pytest.mark.parametrize("name", [*WRAPPERS, *REGROUPING])
def test_nothing_is_put_around_it(name: str, make: Callable[[], AbstractTransform]):
    """Or it would see gradients of examples, or change them before they are clipped."""
    if name == "chain":
        return  # Which has it first.
    with pytest.raises(ValueError, match="must be the first of a chain"):
        (WRAPPERS | REGROUPING)[name](make())


def test_traced_arguments_are_checked_when_they_are_known():
    @jax.jit
    def first(bound: Array) -> Array:
        opt = aggregate(l2_norm_clip=bound)
        return opt.update(jnp.ones((2, 3)), opt.init(jnp.ones(3)), jnp.ones(3))[0]

    assert jnp.isfinite(first(jnp.asarray(1.0))).all()
    with pytest.raises(Exception, match="between 1e-30"):
        jax.block_until_ready(first(jnp.asarray(-1.0)))


# What is computed


def test_dpsgd_is_gradient_descent_along_the_private_mean():
    """By rows, by blocks and by hand, in two steps with momentum."""
    rows = jax.tree.map(lambda g: np.asarray(g, float), GRADS)
    norms = np.sqrt(sum((g**2).reshape(16, -1).sum(1) for g in arrays(rows)))
    assert (norms > 1).any() and (norms < 1).any()
    factors = np.minimum(1, 1 / norms)
    mean = [np.tensordot(factors, g, 1) / 16 for g in arrays(rows)]
    for nesterov in (False, True):
        opt = dpsgd(0.1, 1.0, 0.0, 42, momentum=0.9, nesterov=nesterov)
        first, state = update(opt, GRADS, MODEL)
        second, _ = opt.update(GRADS, state, MODEL)
        by_hand = (1.9, 2.71) if nesterov else (1.0, 1.9)
        close([first, second], [-0.1 * f * g for f in by_hand for g in mean])


@pytest.mark.parametrize("bound", [0.7, 30.0])
def test_both_paths_are_one(bound: float):
    for normalize_by in (None, 10):
        by_example = DPAggregate(bound, 0.5, 42, normalize_by=normalize_by)
        noise = GaussianNoise(0.5, 42, normalize_by=normalize_by)
        clipped = value_and_clipped_grad(loss, bound)(MODEL, BATCH)
        assert float(clipped.l2_norm_clip) == np.float32(bound)
        close(update(by_example, GRADS, MODEL)[0], update(noise, clipped, MODEL)[0])


def test_mixed_precision(x64: None):
    """Both paths, with momentum behind: statistics are of the parameters' precision,
    and what comes from NumPy does not change that."""
    params: Any = {
        "w": jnp.ones((3, 4), jnp.float32),
        "b": jnp.ones(4, jnp.float64),
        "h": jnp.ones(4, jnp.bfloat16),
    }
    x = jax.random.normal(jax.random.key(0), (6, 3), jnp.float32)

    def linear(params: Any, x: Array) -> Array:
        y = jnp.tanh(x @ params["w"]).astype("float64") + params["b"]
        return jnp.sum(y * params["h"].astype("float64") ** 2)

    rows = jax.vmap(jax.grad(linear), (None, 0))(params, x)
    in_blocks = value_and_clipped_grad(linear, 1.0, microbatch_size=4)(params, x)
    results = []
    for opt, grads in (
        (by_rows(), rows),
        (by_rows(), jax.tree.map(lambda g: np.asarray(g).astype(float), rows)),
        (by_blocks(), in_blocks),
    ):
        updates, state = opt.update(grads, opt.init(params), params)
        updates, _ = opt.update(grads, state, params)
        assert jax.tree.map(lambda u: u.dtype, updates) == {
            k: p.dtype for k, p in params.items()
        }
        results.append(jax.tree.map(lambda u: np.asarray(u, float), updates))
    for other in results[1:]:
        close(results[0], other)
    narrow = {"w": params["w"]}
    opt = DPAggregate(1.0, 0.5, 0)
    wide = {"w": np.ones((6, 3, 4))}
    updates, _ = opt.update(wide, opt.init(narrow), narrow)
    same(
        updates,
        opt.update({"w": jnp.ones((6, 3, 4), "float32")}, opt.init(narrow), narrow)[0],
    )


def test_the_identity_may_come_first():
    same(
        update(chain(chain(), by_rows()), GRADS, MODEL), update(by_rows(), GRADS, MODEL)
    )


def test_a_seed_is_a_seed_under_jit():
    opt, params = GaussianNoise(1.0, 5), jnp.ones(3)
    state = jax.jit(lambda opt, params: opt.init(params))(opt, params)
    same(state.rng_key, opt.init(params).rng_key)


def test_both_names_are_one():
    named = differentially_private_aggregate(1.0, 0.5, 42)
    same(
        update(named, GRADS, MODEL)[0],
        update(aggregate(noise_multiplier=0.5, key=42), GRADS, MODEL)[0],
    )


def test_it_is_divided_by_the_rows_and_not_by_what_a_mask_keeps():
    mask = jnp.arange(16) < 4
    opt = GaussianNoise(0.0, 0)
    updates, _ = update(opt, CLIPPED_GRAD(MODEL, BATCH, mask), MODEL)
    few = jax.tree.map(lambda x: x[:4], BATCH)
    others, _ = update(opt, CLIPPED_GRAD(MODEL, few), MODEL)
    close(updates, jax.tree.map(lambda u: u / 4, others))


def test_raw_models_and_numpy_batches():
    """Also with integers that are arrays, which are no parameters."""
    model = Model(MODEL.weight, MODEL.bias, steps=jnp.arange(3))
    batch = jax.tree.map(np.asarray, BATCH)
    updates, _ = update(
        by_blocks(), CLIPPED_GRAD(model, batch, np.ones(16, bool)), model
    )
    assert updates.steps is None and updates.activation is None
    close(updates, update(by_blocks(), CLIPPED_GRAD(MODEL, BATCH), MODEL)[0])
    eqx.apply_updates(model, updates)


def test_losses_with_keys_and_models_without_parameters():
    def noisy(w: Array, example: Any) -> Array:
        x, key = example
        return w @ (x + jax.random.normal(key, x.shape))

    keys = jax.random.split(jax.random.key(0), 16)
    grad = value_and_clipped_grad(noisy, 1e3, microbatch_size=3)
    clipped = grad(jnp.ones(3), (BATCH["x"], keys))
    drawn = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    close(clipped.sum, (BATCH["x"] + drawn).sum(axis=0))
    constant = value_and_clipped_grad(lambda model, x: jnp.sum(x), 1.0)
    clipped = constant({"w": None}, BATCH["x"])
    close(clipped.values, BATCH["x"].sum(axis=1))
    assert not clipped.norms.any()


def test_what_is_behind_is_not_told_of_the_examples():
    """Whatever `update` is given besides the gradients, but for a random key."""
    told = SimpleNamespace(names=set())

    def spy(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        told.names = set(extra)
        return updates, state

    theirs = optax.GradientTransformationExtraArgs(lambda params: (), spy)
    for opt in (chain(GaussianNoise(1.0, 0), theirs), chain(chain(), theirs)):
        grads = CLIPPED_GRAD(MODEL, BATCH)
        clipped = grads if "GaussianNoise" in str(opt) else grads.sum
        extra = {"value": jnp.mean(grads.values), "key": 1, "batch": BATCH}
        opt.update(clipped, opt.init(MODEL), MODEL, **extra)
        is_private = clipped is grads
        assert told.names == ({"key"} if is_private else set(extra))


def test_with_other_optimisers_and_optax():
    grads = CLIPPED_GRAD(MODEL, BATCH)
    plain = GaussianNoise(0.5, 42)
    private, _ = update(plain, grads, MODEL)
    for rule in (adam(0.1), optax.adam(0.1)):
        opt = chain(plain, rule)
        with jax.numpy_dtype_promotion("standard"):
            close(update(opt, grads, MODEL)[0], update(adam(0.1), private, MODEL)[0])
    theirs = optax.chain(to_optax(aggregate(noise_multiplier=0.5)), optax.sgd(0.1))
    params = {"w": MODEL.weight}
    rows = {"w": GRADS.weight}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = theirs.update(rows, theirs.init(params), params)
    ours = dpsgd(0.1, 1.0, 0.5, 0)
    close(updates, ours.update(rows, ours.init(params), params)[0])


# How it is run


def private_step(opt: AbstractTransform) -> Callable[..., Any]:
    def step(model: Any, state: Any, batch: Any) -> Any:
        is_rows = "DPAggregate" in str(opt)
        grads = (per_example if is_rows else CLIPPED_GRAD)(model, batch)
        updates, state = opt.update(grads, state, model)
        return eqx.apply_updates(model, updates), state

    return step


PATHS = pytest.mark.parametrize("make", [by_rows, by_blocks])


@PATHS
def test_scan_is_the_loop_and_resumes_bit_by_bit(make: Callable[..., Any]):
    """Also through a file: the noise of a step depends on its number alone."""
    opt = make()
    step = eqx.filter_jit(private_step(opt))
    model, state, file = MODEL, opt.init(MODEL), io.BytesIO()
    for i in range(4):
        if i == 2:
            eqx.tree_serialise_leaves(file, (model, state))
            file.seek(0)
        model, state = step(model, state, BATCH)
    restored, restored_state = eqx.tree_deserialise_leaves(
        file, (MODEL, opt.init(MODEL))
    )
    for _ in range(2):
        restored, restored_state = step(restored, restored_state, BATCH)
    same((restored, restored_state), (model, state))

    dynamic, static = eqx.partition(MODEL, eqx.is_array)

    def body(carry: Any, _: None) -> Any:
        model, state = private_step(opt)(eqx.combine(carry[0], static), carry[1], BATCH)
        return (eqx.filter(model, eqx.is_array), state), None

    (scanned, _), _ = jax.jit(lambda carry: lax.scan(body, carry, length=4))(
        (dynamic, opt.init(MODEL))
    )
    close(scanned, model)


def test_sweeps_over_bounds_noise_and_keys():
    def one(bound: Array, multiplier: Array, key: Array) -> Any:
        opt = DPAggregate(bound, multiplier, key)
        return opt.update(GRADS, opt.init(MODEL), MODEL)[0]

    bounds, multipliers = jnp.array([0.1, 10.0]), jnp.array([0.0, 2.0])
    keys = jax.random.split(jax.random.key(0))
    swept = eqx.filter_vmap(one)(bounds, multipliers, keys)
    for i in range(2):
        alone = one(bounds[i], multipliers[i], keys[i])
        close(jax.tree.map(lambda x: x[i], swept), alone)


MESHES = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)


@MESHES
@PATHS
def test_eight_devices_are_one(kind: AxisType, make: Callable[..., Any]):
    """With a sharded batch, and in explicit axes where parameters are sharded too."""
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
    """And parameters that are sharded over the same axis as the batch."""

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
    """`fn` on a mesh of 4 by 2 devices, of parameters and of a batch of ones."""
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
        (by_index, (EACH, DATA), "not of the batch. Put them into it"),
        (twice, (EACH, DATA), "axis 'data' have the same sum, which must not be count"),
        (elsewhere, (EACH, DATA), "axis 'model' have the same sum"),
        (lambda w, x: LINEAR(w, x[:, :2]), (DATA, EACH), "clipped in parts"),
        (noisy_inside, (EACH, DATA), "Add up first, `clipped.psum"),
        (aggregated_inside, (EACH, DATA), "noise would be added by each"),
    ],
)
def test_what_is_wrong_in_shard_map(fn: Any, specs: Any, message: str):
    with pytest.raises(ValueError, match=message):
        on_devices(fn, *specs)


def test_a_second_sum_is_refused_also_where_jax_does_not_look():
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
def test_shard_map(check_vma: bool):
    """By the recipe of `docs/privacy.md`: a sum of each device, noise once."""
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
    """Gradients of what devices share are else added up by JAX, and 8 examples clipped
    as one; and a sum over devices is as exact as that of one."""
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


def test_laws_say_that_they_have_no_gradients_of_examples():
    """The zoo has it with some, and there it obeys the contract."""
    report = check(lambda: DPAggregate(1.0, 1.0, 0), laws=["C6"], examples=1)
    assert report.failures and "it needs {'examples'}" in str(report)


# What is promised


@pytest.mark.parametrize(
    "arguments, expected",
    [
        # Of the Gaussian mechanism itself, by the formula of Balle and Wang (2018).
        ((1, 1.0, 4.0, 1e-5), 0.926342),
        ((100, 1.0, 4.0, 1e-5), 13.20671),
        ((2250, 0.04, 1.5, 1e-5), 6.7688),
    ],
)
def test_epsilon(arguments: tuple[int, float, float, float], expected: float):
    steps, sampling_prob, noise, delta = arguments
    found = epsilon(
        steps=jnp.asarray(steps),
        sampling_prob=sampling_prob,
        noise_multiplier=jnp.asarray(noise),
        delta=delta,
    )
    assert found == pytest.approx(expected, rel=1e-5)


def gaussian_delta(eps: float, noise: float, steps: int) -> float:
    """Balle and Wang, arXiv 1805.06530, theorem 8, of `steps` steps."""
    mu = math.sqrt(steps) / noise

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return normal(mu / 2 - eps / mu) - math.exp(eps) * normal(-mu / 2 - eps / mu)


@pytest.mark.parametrize("steps, eps", [(1, 0.926342), (100, 13.20671)])
def test_references_are_those_of_the_formula(steps: int, eps: float):
    assert gaussian_delta(eps, 4.0, steps) == pytest.approx(1e-5, rel=1e-4)


def test_epsilon_by_renyi_divergences():
    found = epsilon(
        steps=2250,
        sampling_prob=0.04,
        noise_multiplier=1.5,
        delta=1e-5,
        accountant="rdp",
    )
    assert found == pytest.approx(7.3293, abs=5e-5)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibrated_noise_keeps_its_promise_and_no_less_does(accountant: Any):
    arguments: Any = {"steps": 512, "sampling_prob": 0.1, "delta": 1e-6}
    noise = calibrate_noise(epsilon=1.0, accountant=accountant, **arguments)
    if accountant == "pld":
        assert noise == pytest.approx(9.662, abs=5e-4)
    for factor, is_kept in ((1.0, True), (1 - 1e-4, False)):
        found = epsilon(
            noise_multiplier=factor * noise, accountant=accountant, **arguments
        )
        assert (found <= 1.0) is is_kept


@pytest.mark.parametrize(
    "target, delta",
    [
        (0.05, 1e-6),
        pytest.param(1.0, 0.5, marks=pytest.mark.thorough),
        pytest.param(8.0, 1e-5, marks=pytest.mark.thorough),
    ],
)
def test_calibration_of_much_and_little_noise(target: float, delta: float):
    arguments: Any = {"steps": 100, "sampling_prob": 0.1, "delta": delta}
    noise = calibrate_noise(epsilon=target, **arguments)
    assert 0.999 * target < epsilon(noise_multiplier=noise, **arguments) <= target


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": 1, "sampling_prob": 1e-3, "epsilon": 1.0, "delta": 0.01},
        {"steps": 1, "sampling_prob": 1.0, "epsilon": 1000.0, "delta": 1e-5},
        {
            "steps": 5,
            "sampling_prob": 0.1,
            "epsilon": 20000.0,
            "delta": 1e-5,
            "accountant": "rdp",
        },
    ],
)
def test_where_hardly_any_noise_would_do(arguments: Any):
    assert calibrate_noise(**arguments) == 0.1


def test_distributions_of_little_noise_are_not_computed():
    common: Any = {"steps": 100, "sampling_prob": 0.1, "delta": 1e-5}
    little = epsilon(noise_multiplier=0.05, **common)
    assert little == epsilon(noise_multiplier=0.05, accountant="rdp", **common)
    assert little > 1000


def test_nothing_done_costs_nothing_and_no_noise_everything():
    common: Any = {"sampling_prob": 0.1, "delta": 1e-5}
    assert epsilon(steps=0, noise_multiplier=1.0, **common) == 0
    assert epsilon(steps=0, noise_multiplier=0.0, **common) == 0
    assert epsilon(steps=5, noise_multiplier=0.0, **common) == math.inf
    assert epsilon(steps=5, noise_multiplier=1.0, sampling_prob=0.0, delta=1e-5) == 0
    assert calibrate_noise(steps=0, epsilon=1.0, **common) == 0


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", -1),
        ("steps", 1.5),
        ("sampling_prob", 1.1),
        ("sampling_prob", math.nan),
        ("delta", 0.0),
        ("delta", 1.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.nan),
        ("epsilon", 0.0),
        ("epsilon", math.inf),
        ("accountant", "moments"),
    ],
)
def test_accounting_refuses(name: str, value: Any, unchecked: None):
    arguments: Any = {"steps": 3, "sampling_prob": 0.1, "delta": 1e-5, name: value}
    if name != "epsilon":
        with pytest.raises(ValueError, match=f"epsilon: `{name}`"):
            epsilon(**{"noise_multiplier": 1.0} | arguments)
    if name != "noise_multiplier":
        with pytest.raises(ValueError, match=f"calibrate_noise: `{name}`"):
            calibrate_noise(**{"epsilon": 1.0} | arguments)


def test_accounting_names_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"contrib-algebra\[dp\]"):
        epsilon(steps=3, sampling_prob=0.1, noise_multiplier=1.0, delta=1e-5)


def test_hyperparameters_are_fields():
    assert isinstance(CLIPPED_GRAD, ClippedGrad)
    params, rows = {"b": MODEL.bias}, {"b": GRADS.bias}
    opt = by_rows()
    assert jax.jit(opt.update)(rows, opt.init(params), params)


def test_errors_of_a_loss_say_what_it_was_called_with():
    grad = value_and_clipped_grad(lambda model, x: x["z"], 1.0)
    with pytest.raises(KeyError) as caught:
        grad(MODEL, BATCH)
    note = caught.value.__notes__[0]
    assert "called `loss(model, example)` with one row" in note and "(3,)" in note
