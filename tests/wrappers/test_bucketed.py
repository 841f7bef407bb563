"""Small leaves in buffers: the same steps, in smaller programs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.hlo import instructions
from benchmarks.step.program import compiled
from benchmarks.step.rules import RULES
from benchmarks.trees import abstract, shapes
from contrib_algos import adam, adamw, dog, lion, momo, prodigy, sgd
from contrib_core import (
    AbstractTransform,
    add_decayed_weights,
    apply_updates,
    chain,
    Extra,
    masked,
    scale,
    Tree,
    tree,
)
from contrib_core.claims import Laws, Needs
from contrib_wrappers import (
    Bucketed,
    bucketed,
    layerwise,
    master_weights,
    schedule_free_adamw,
)


def many(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Forty leaves of different shapes, a large one, and subtrees without leaves."""
    leaves = {}
    for i in range(40):
        shape = ((), (3,), (2, 4), (0, 2), (1, 1, 5))[i % 5]
        size = int(np.prod(shape))
        x = np.sin(i + np.arange(size)).reshape(shape) * (1 + i % 3)
        leaves[f"x{i:02}"] = jnp.asarray(x, dtype)
    large = jnp.asarray(np.cos(np.arange(50.0)).reshape(5, 10), dtype)
    return leaves | {"large": large, "none": None}


def mixed() -> dict[str, Any]:
    """Leaves of all kinds in turn, so that neighbours are never joined."""
    dtypes = [jnp.bfloat16, jnp.float32, jnp.complex64, jnp.float16]
    leaves = [jnp.full(1 + k % 3, 1.0 + k, dtypes[k % 4]) for k in range(20)]
    return {"leaves": leaves, "scalar": jnp.asarray(2.0), "none": None}


def descend(opt: Any, params: Any, num_steps: int = 60) -> Any:
    """Parameters, state and evaluation point, of steps towards different targets."""

    def step(carry, i):
        params, state = carry
        turn = jnp.sin(i.astype(jnp.float32))
        grads = jax.tree.map(lambda x: 0.5 * x - 1 + turn.astype(x.dtype), params)
        updates, state = opt.update(grads, state, params)
        return (apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        start = params, opt.init(params)
        (end, state), _ = lax.scan(step, start, jnp.arange(num_steps))
        return end, state, opt.eval_params(state, end)

    return run(params)


# Leaves that are joined


def buckets(params: Any, *args: int) -> list[tuple[int, ...]]:
    """The positions of the leaves in each buffer."""
    numbers = jax.tree.map(
        lambda i, x: jnp.full(x.shape, i, x.dtype),
        jax.tree.unflatten(
            jax.tree.structure(params), range(len(jax.tree.leaves(params)))
        ),
        params,
    )
    change = bucketed(sgd(0.1), *args).settled(params)
    found = [np.unique(np.real(x)).astype(int) for x in change.encode(numbers)]
    return [tuple(int(i) for i in x) for x in found]


@pytest.mark.parametrize(
    "count, leaves, sizes",
    [
        (1, 32, [1]),
        (3, 32, [3]),
        (32, 32, [32]),
        (33, 32, [16, 17]),
        (64, 32, [32, 32]),
        (37, 32, [18, 19]),  # A prime.
        (1000, 32, 40 * [25]),  # Alike, rather than few.
        (5, 1, [1, 1, 1, 1, 1]),
        (5, 2, [1, 2, 2]),
    ],
)
def test_equal_leaves_fill_buffers_alike(count, leaves, sizes):
    found = buckets([jnp.ones(2)] * count, leaves)
    assert [len(b) for b in found] == sizes
    assert [i for b in found for i in b] == list(range(count))


def test_layers_are_cut_only_where_necessary():
    """Each loop that takes a leaf out of a buffer is compiled once for all buffers."""
    layers = [{"bias": jnp.ones(3), "weight": jnp.ones((3, 3))}] * 500
    found = buckets(layers)
    assert {len(b) for b in found} == {20} and {b[0] % 2 for b in found} == {0}


def test_leaves_are_joined_with_those_of_their_dtype_in_order():
    params = mixed()
    leaves = jax.tree.leaves(params)
    found = buckets(params, 4)
    for bucket in found:
        assert len({leaves[i].dtype for i in bucket}) == 1
        assert list(bucket) == sorted(bucket) and 1 <= len(bucket) <= 4
    coordinates = bucketed(sgd(0.1), 4).settled(params).encode(params)
    assert len(coordinates) < len(leaves) / 2
    assert sum(x.size for x in coordinates) == tree.size(params)


def test_large_leaves_are_left_alone():
    params = [jnp.ones(8), jnp.ones(9), jnp.ones((2, 4)), jnp.ones(())]
    assert buckets(params, 32, 8) == [(0, 2, 3), (1,)]
    assert buckets(params, 32, 0) == [(0,), (1,), (2,), (3,)]
    state = bucketed(adam(0.1), max_size=8).init(params)
    assert [x.shape for x in state.inner_state[0].exp_avg] == [(17,), (9,)]


@pytest.mark.parametrize(
    "make", [many, mixed, dict, lambda: [None], lambda: jnp.ones(3)]
)
def test_encoding_and_decoding_changes_nothing(make):
    params = make()
    change = bucketed(sgd(0.1), 3, 9).settled(params)
    back = change.decode(change.encode(params), like=params)
    assert eqx.tree_equal(back, params)


# The same steps

RULES_: dict[str, AbstractTransform] = {
    "prodigy": prodigy(estim_lr0=1e-3, weight_decay=0.1),
    "dog": dog(reps_rel=1e-3, weight_decay=0.1),
    "adam": adam(0.1),
    "lion": lion(0.03),
    "schedule_free_adamw": schedule_free_adamw(0.1, warmup_steps=5),
}


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "leaves, max_size",
    [
        pytest.param(32, 2**16, marks=pytest.mark.thorough),
        pytest.param(3, 2**16, marks=pytest.mark.thorough),
        (7, 4),
    ],
)
@pytest.mark.parametrize("name", RULES_)
def test_trajectory(name, leaves, max_size):
    params = many(jnp.float64)
    opt = bucketed(RULES_[name], leaves, max_size)
    end, state, point = descend(opt, params)
    expected, plain, plain_point = descend(RULES_[name], params)
    assert not eqx.tree_equal(expected, params, rtol=0.1)
    assert eqx.tree_equal(end, expected, rtol=1e-9, atol=1e-11)
    assert eqx.tree_equal(point, plain_point, rtol=1e-9, atol=1e-11)
    metrics, plain_metrics = opt.metrics(state), RULES_[name].metrics(plain)
    assert eqx.tree_equal(metrics, plain_metrics, rtol=1e-9)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", RULES_)
def test_trajectory_of_all_dtypes_at_once(name):
    end, _, point = descend(bucketed(RULES_[name], 4), mixed(), 8)
    expected, _, plain_point = descend(RULES_[name], mixed(), 8)
    for found, wanted in ((end, expected), (point, plain_point)):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert x.dtype == y.dtype
            eps = float(jnp.finfo(x.dtype).eps)
            x, y = np.asarray(x, np.complex128), np.asarray(y, np.complex128)
            np.testing.assert_allclose(x, y, rtol=max(2 * eps, 1e-4))


def test_gradients_may_have_other_dtypes_than_parameters():
    params = {f"x{i}": jnp.full(2, 1.0 + i) for i in range(6)}
    dtypes = [jnp.float32, jnp.bfloat16, jnp.float16] * 2
    grads = {k: x.astype(d) for (k, x), d in zip(params.items(), dtypes, strict=True)}
    opt, plain = bucketed(adam(0.1), 4), adam(0.1)
    state = opt.init(params)
    assert [x.dtype for x in state.inner_state[0].exp_avg] == 2 * ["float32"]
    updates, _ = opt.update(grads, state, params)
    expected, _ = plain.update(grads, plain.init(params), params)
    assert eqx.tree_equal(updates, expected, rtol=1e-6)


class Look(AbstractTransform[None]):
    """Follows the gradient a step ahead, times the value."""

    @property
    def needs(self) -> Needs:
        return frozenset({"params", "value", "grad_fn"})

    @property
    def laws(self) -> Laws:
        return frozenset({"partition"})

    def start(self, params: Tree) -> None:
        return None

    def step(
        self, grads: Tree, state: None, params: Tree, extra: Extra
    ) -> tuple[Tree, None]:
        ahead = extra.grad_fn(tree.axpy(-0.1, grads, params), 7)
        return tree.scale(extra.value, ahead), None


def test_extras():
    params = many()

    def grad_fn(params: Any, i: int) -> Any:
        assert i == 7
        return jax.tree.map(lambda x: x**2, params)

    def update(opt: Any) -> Any:
        grads = grad_fn(params, 7)
        extra = {"value": jnp.asarray(2.0), "grad_fn": grad_fn}
        return opt.update(grads, opt.init(params), params, **extra)[0]

    opt = bucketed(Look(), 8, 20)
    assert opt.needs == {"params", "value", "grad_fn"}
    assert eqx.tree_equal(update(opt), update(Look()), rtol=1e-6)
    assert eqx.tree_equal(update(bucketed(momo(1.0))), update(momo(1.0)), rtol=1e-5)


# Transforms that it takes

REFUSED = {
    "leaf by leaf": layerwise(dog()),
    "recipe": layerwise(dog(0.5)),
    "mask": adamw(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "optax": optax.adam(0.1),
    "inside": chain(scale(1.0), master_weights(layerwise(adam(0.1)))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_only_transforms_that_claim_the_law_are_taken(name):
    with pytest.raises(ValueError, match="`partition`.*`masked\\(bucketed\\(inner"):
        bucketed(REFUSED[name])
    assert "partition" not in getattr(REFUSED[name], "laws", ())


def test_users_can_vouch_for_the_law():
    params = many()
    opt = bucketed(optax.adam(0.1), assume_partition=True)
    end, _, _ = descend(opt, params)
    expected, _, _ = descend(adam(0.1), params)
    assert eqx.tree_equal(end, expected, rtol=1e-4, atol=1e-5)
    assert "partition" not in opt.laws


def test_the_advice_of_the_refusal_works():
    params = many()
    mask = {k: x is not None and x.ndim > 1 for k, x in params.items()}
    advised = chain(bucketed(adam(1.0)), add_decayed_weights(0.1, mask), scale(0.1))
    plain = chain(adam(1.0), add_decayed_weights(0.1, mask), scale(0.1))
    found, expected = descend(advised, params)[0], descend(plain, params)[0]
    assert eqx.tree_equal(found, expected, rtol=1e-4, atol=1e-5)
    outside = descend(masked(bucketed(adam(0.1)), mask), params)[0]
    expected = descend(masked(adam(0.1), mask), params)[0]
    assert eqx.tree_equal(outside, expected, rtol=1e-4, atol=1e-5)


# Sharding


@pytest.mark.one_in(3)
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("name", ["prodigy", "schedule_free_adamw"])
def test_sharded_over_8_devices(name, axis_type):
    local = {f"x{i}": jnp.arange(8.0 + 8 * (i % 2)) / 8 - i for i in range(9)}
    specs = {k: PartitionSpec("d" if i % 3 == 0 else None) for i, k in enumerate(local)}
    opt = bucketed(RULES_[name], 4)
    expected, _, expected_point = descend(RULES_[name], local)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        shardings = {k: NamedSharding(mesh, s) for k, s in specs.items()}
        params = jax.device_put(local, shardings)
        fresh = opt.init(params)
        end, state, point = descend(opt, params)
    for found, wanted in ((end, expected), (point, expected_point)):
        for k, x in found.items():
            np.testing.assert_allclose(x, wanted[k], rtol=1e-4, atol=1e-5)
            if axis_type is AxisType.Explicit:
                assert x.sharding.is_equivalent_to(shardings[k], 1)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, state)
    inner = state.inner_state
    z = inner.exp_avg if name == "prodigy" else inner.z
    if axis_type is AxisType.Explicit:
        # x0, x3 and x6 are sharded, and so is their state; the rest is joined.
        sharded = [x for x in z if not x.sharding.is_fully_replicated]
        assert [x.shape for x in sharded] == [(8,), (16,), (8,)] and len(z) == 5
        assert all(x.sharding.spec == PartitionSpec("d") for x in sharded)
    else:
        assert len(z) == 3


# As a transform


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_parameters(dtype):
    params = many(dtype)
    state = bucketed(dog()).init(params)
    narrow = [x for x in jax.tree.leaves(state) if x.dtype == dtype]
    assert sum(x.size for x in narrow) == tree.size(params)  # The start, no more.
    end, state, _ = descend(bucketed(master_weights(dog(reps_rel=1e-3))), params)
    expected, _, _ = descend(master_weights(dog(reps_rel=1e-3)), params)
    for x, y in zip(jax.tree.leaves(end), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=2 * float(jnp.finfo(dtype).eps))
    assert all(x.dtype == jnp.float32 for x in state.inner_state.master)


def test_raw_model():
    model = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))
    opt = bucketed(adam(0.1))
    state = opt.init(model)
    assert len(state.inner_state[0].exp_avg) == 1
    grads = jax.tree.map(jnp.cos, eqx.filter(model, eqx.is_inexact_array))
    updates, state = opt.update(grads, state, model)
    expected, _ = adam(0.1).update(grads, adam(0.1).init(model), model)
    assert eqx.tree_equal(updates, expected, rtol=1e-6)
    assert opt.eval_params(state, model).activation is model.activation


def test_sweep():
    params = many()

    def end(rate: Any) -> Any:
        return descend(bucketed(adam(rate), 4), params)[0]

    rates = jnp.array([0.01, 0.1])
    swept = eqx.filter_vmap(end)(rates)
    for i, rate in enumerate(rates):
        one = jax.tree.map(lambda x, i=i: x[i], swept)
        assert eqx.tree_equal(one, end(rate), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, most", [("adam", 0.4), ("dog", 0.5), ("prodigy", 0.25)])
def test_the_compiled_step_is_smaller(name, most):
    params = abstract(shapes("leaves:200", 0), "float32")
    joined = instructions(compiled(bucketed(RULES[name].ours), params))
    assert joined < most * instructions(compiled(RULES[name].ours, params))


def test_settled_twice_is_settled():
    params = many()
    opt = bucketed(adam(0.1), 3)
    assert opt.settled(params).settled(params) == opt.settled(params)
    assert isinstance(opt, Bucketed)


def test_parameters_are_needed_because_their_dtypes_decide_what_is_joined():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "c": jnp.ones(3)}
    grads = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    opt = bucketed(adam(0.1))
    with pytest.raises(ValueError, match=r"Bucketed\(.*\).update needs `params`"):
        opt.update(grads, opt.init(params))
    found, _ = opt.update(grads, opt.init(params), params)
    expected, _ = adam(0.1).update(grads, adam(0.1).init(params), params)
    assert eqx.tree_equal(found, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sizes", [{"leaves": 2.5}, {"leaves": 0}, {"max_size": -1}])
def test_sizes_are_whole_numbers(sizes: Any):
    with pytest.raises(ValueError, match="Bucketed: `.*` must be a whole number"):
        Bucketed(adam(0.1), **sizes)
