"""Private training refuses whatever would not be private."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from support.private import (
    aggregate,
    at,
    BATCH,
    by_blocks,
    by_rows,
    CLIPPED_GRAD,
    GRADS,
    loss,
    MODEL,
    update,
)
from support.zoo import REGROUPING, WRAPPERS

from contrib_algos import (
    adam,
    dog,
    DPAggregate,
    GaussianNoise,
    momo,
    normalize,
    sgd,
    value_and_clipped_grad,
)
from contrib_core import AbstractTransform, chain, scale, to_optax
from contrib_laws import check
from contrib_wrappers import sam


def changed(**batch: Any) -> dict[str, Any]:
    return BATCH | batch


PART = to_optax(aggregate())

# Without its types, which refuse a mechanism that is not the first.
JOIN: Any = chain


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
    "bound None": (lambda: aggregate(l2_norm_clip=None), "must be .*; got None"),
    "bound schedule": (lambda: aggregate(l2_norm_clip=abs), "not a schedule"),
    "bounds": (lambda: aggregate(l2_norm_clip=jnp.ones(3)), r"one number.*\(3,\)"),
    # Noise
    "noise None": (lambda: aggregate(noise_multiplier=None), "must be .*; got None"),
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
    "no key": (lambda: aggregate(seed=None), "a key is one key.*secret bits"),
    "float": (lambda: aggregate(seed=1.5), "got float"),
    "bool": (lambda: aggregate(seed=True), "got bool"),
    "negative": (lambda: aggregate(seed=-1), "from 0 to 2"),
    "large": (lambda: aggregate(seed=2**32), "from 0 to 2"),
    "large of NumPy": (lambda: aggregate(seed=np.int64(2**32)), "from 0 to 2"),
    "negative of NumPy": (lambda: aggregate(seed=np.int64(-1)), "from 0 to 2"),
    "keys": (
        lambda: aggregate(seed=jax.random.split(jax.random.key(0))),
        "filter_vmap",
    ),
    "numbers": (lambda: aggregate(seed=jnp.zeros(2)), r"shape \(2,\), float32"),
    # Gradients
    "no params": (lambda: update(aggregate(), GRADS), "needs `params`: call `opt.upd"),
    "averaged": (
        lambda: update(aggregate(), MEAN, MODEL),
        r"`.weight`.*\(3, 4\) and not \(B, 3, 4\).*jax.vmap",
    ),
    "averaged in a chain": (
        lambda: update(by_rows(), MEAN, MODEL),
        r"^ChainedMechanism\(DPAggregate.*averaged.*cannot be clipped",
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
        r"one row: at `.bias` the gradient has shape \(3,\), the parameter \(4,\)",
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
        r"^ChainedMechanism\(GaussianNoise.*`ClippedSum`.*value_and_clipped_grad",
    ),
    "no noise": (
        lambda: update(adam(0.1), CLIPPED_GRAD(MODEL, BATCH), MODEL),
        r"^Chain\(Adam, Scale\).update: a `ClippedSum` is no gradient.*not private yet",
    ),
    "no noise nor params": (
        lambda: update(sgd(0.1), CLIPPED_GRAD(MODEL, BATCH)),
        "a `ClippedSum` is no gradient. It is not private yet",
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
        "several `ClippedSum`s, as `jax.vmap` returns",
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
    "after another": (lambda: JOIN(sgd(0.1), aggregate()), r"DPAggregate.*the first"),
    "after itself": (lambda: JOIN(aggregate(), aggregate()), "must be the first"),
    "noise after": (lambda: JOIN(scale(2.0), GaussianNoise(1.0, 0)), "be the first"),
    "losses behind": (
        lambda: chain(GaussianNoise(1.0, 0), momo()),
        r"Momo.* needs `value`, which shows what GaussianNoise hides",
    ),
    "gradients behind": (
        lambda: chain(by_rows(), sam(sgd(0.1), sgd(0.1), opaque_mode=True)),
        r"needs `grad_fn`, which shows what DPAggregate",
    ),
    "chain after": (lambda: JOIN(normalize(), by_rows()), "must be the first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused(name: str, unchecked: None):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


@pytest.mark.parametrize("make", [aggregate, by_rows, by_blocks])
@pytest.mark.parametrize("name", [*WRAPPERS, *REGROUPING])
def test_no_wrapper_may_be_put_around_it(
    name: str, make: Callable[[], AbstractTransform]
):
    """A wrapper would see single examples, or change them before they are clipped."""
    if name == "chain":
        return  # This wrapper puts it first.
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


def test_the_kit_refuses_a_mechanism():
    """With gradients of examples, it obeys the contract: see the zoo."""
    with pytest.raises(ValueError, match="must be the first of a chain"):
        check(lambda: DPAggregate(1.0, 1.0, 0), laws=["extras"], examples=1)


def test_a_required_extra_of_optax_is_refused_behind_a_mechanism():
    def update(updates: Any, state: Any, params: Any = None, *, scale: Any) -> Any:
        return updates, state

    untyped: Any = optax.GradientTransformationExtraArgs
    hungry = untyped(lambda params: (), update)
    with pytest.raises(ValueError, match="FromOptax needs `scale`, which shows"):
        chain(aggregate(), hungry)


def test_a_mechanism_needs_the_parameters():
    assert aggregate().needs == by_rows().needs == {"params"}


def test_metrics_behind_a_mechanism_have_their_index_in_the_chain():
    opt = chain(aggregate(), dog(), normalize(), dog())
    names = ["3/dog/distance", "3/dog/step_size", "dog/distance", "dog/step_size"]
    assert sorted(opt.metrics(opt.init(MODEL))) == names


def test_errors_of_a_loss_say_what_it_was_called_with():
    grad = value_and_clipped_grad(lambda model, x: x["z"], 1.0)
    with pytest.raises(KeyError) as caught:
        grad(MODEL, BATCH)
    note = caught.value.__notes__[0]
    assert "called `loss(model, example)` with one row" in note and "(3,)" in note
