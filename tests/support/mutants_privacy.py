"""Broken mechanisms: the attack must refute the claim for each of them.

Where a defect is too rare or too small for 400,000 runs to show it, or does no harm to
privacy, one of the exact checks must find it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jaxtyping import Array

from contrib_algos import GaussianNoise
from contrib_algos.privacy import _clip, _clipped_grad, _noise
from contrib_algos.privacy._precise import as_pair
from contrib_core import tree
from support.audit import coordinates
from support.privacy_checks import (
    check_absence,
    check_far_noise,
    check_norms,
    check_sensitivity,
)


@dataclass(frozen=True)
class Mutant:
    """`apply` breaks the code, and `check` must find that.

    Without a `check`, an audit of `mechanism` in `scenario` must find it: the claim is
    refuted or, if there is `excess` noise, not nearly reached.
    """

    apply: Callable[[pytest.MonkeyPatch], None]
    scenario: str = "long"
    mechanism: str = "aggregate"
    excess: bool = False
    check: Callable[[], None] | None = None


MUTANTS: dict[str, Mutant] = {}


def mutant(**how: Any) -> Callable[..., Any]:
    """Registers the decorated function as a mutant that must be found."""

    def register(apply: Callable[[pytest.MonkeyPatch], None]) -> Callable[..., None]:
        MUTANTS[apply.__name__] = Mutant(apply, **how)
        return apply

    return register


def _step_sees(
    patch: pytest.MonkeyPatch, field: str, change: Callable[..., Any]
) -> None:
    """Replaces `field` of the rule, the clipped sum or the state in
    `GaussianNoise.step` with `change(rule, clipped, state)`."""
    step = GaussianNoise.step

    def broken(self: Any, grads: Any, state: Any, params: Any, extra: Any) -> Any:
        value = change(self, grads, state)
        rule, clipped, state = (
            _with(x, field, value) if hasattr(x, field) else x
            for x in (self, grads, state)
        )
        return step(rule, clipped, state, params, extra)

    patch.setattr(GaussianNoise, "step", broken)


def _with(x: Any, field: str, value: Any) -> Any:
    return eqx.tree_at(
        lambda x: getattr(x, field), x, value, is_leaf=lambda x: x is None
    )


# Noise


@mutant()
def noise_is_a_tenth_less(patch: pytest.MonkeyPatch):
    """Its standard deviation is 0.9 times the claimed one."""
    _step_sees(
        patch,
        "noise_multiplier",
        lambda rule, clipped, state: 0.9 * rule.noise_multiplier,
    )


@mutant()
def noise_forgets_the_bound(patch: pytest.MonkeyPatch):
    """Its standard deviation is sigma, and not sigma times the bound."""
    _step_sees(
        patch,
        "l2_norm_clip",
        lambda rule, clipped, state: jnp.ones_like(clipped.l2_norm_clip),
    )


@mutant()
def noise_is_divided_twice(patch: pytest.MonkeyPatch):
    """The noise of the mean is added to the sum, which is then divided."""
    _step_sees(
        patch,
        "noise_multiplier",
        lambda rule, clipped, state: rule.noise_multiplier / len(clipped.norms),
    )


@mutant(excess=True)
def noise_is_added_to_the_mean(patch: pytest.MonkeyPatch):
    """The noise of the sum is added to the mean: private, and of no use."""
    _step_sees(
        patch,
        "noise_multiplier",
        lambda rule, clipped, state: rule.noise_multiplier * len(clipped.norms),
    )


@mutant()
def noise_ignores_the_key(patch: pytest.MonkeyPatch):
    """Every run uses a key that everybody knows."""
    _step_sees(
        patch, "rng_key", lambda rule, clipped, state: jnp.zeros_like(state.rng_key)
    )


@mutant(scenario="steps")
def steps_share_noise(patch: pytest.MonkeyPatch):
    """The key does not depend on the step, so that differences have no noise."""
    _step_sees(patch, "count", lambda rule, clipped, state: jnp.zeros_like(state.count))


@mutant()
def leaves_share_noise(patch: pytest.MonkeyPatch):
    """The key does not depend on the leaf, so that differences have no noise."""
    normal_like = _noise.normal_like
    patch.setattr(
        _noise,
        "normal_like",
        lambda x, key: jax.tree.map(lambda leaf: normal_like(leaf, key), x),
    )


@mutant()
def scalars_get_no_noise(patch: pytest.MonkeyPatch):
    """Scalars are left out, as biases are from weight decay."""
    normal_like = _noise.normal_like

    def broken(x: Any, key: Any) -> Any:
        z = normal_like(x, key)
        return jax.tree.map(lambda z: z if z.ndim else jnp.zeros_like(z), z)

    patch.setattr(_noise, "normal_like", broken)


@mutant(scenario="complex")
def complex_noise_has_half_the_variance(patch: pytest.MonkeyPatch):
    """Complex numbers of `jax.random.normal` have variance 1 in total."""
    normal_like = _noise.normal_like
    patch.setattr(
        _noise, "normal_like", lambda x, key: tree.scale(0.5**0.5, normal_like(x, key))
    )


@mutant()
def noise_is_bfloat16(patch: pytest.MonkeyPatch):
    """Noise has few values, and a sum with a canary has others."""
    _draw_with(
        patch,
        lambda key, x: jax.random.normal(key, x.shape, jnp.bfloat16).astype(x.dtype),
    )


@mutant(check=check_far_noise)
def noise_ends(patch: pytest.MonkeyPatch):
    """A single normal number of float32 ends at 5.4 sigma: once in 1e7 draws."""
    _draw_with(patch, lambda key, x: jax.random.normal(key, x.shape, x.dtype))


def _draw_with(patch: pytest.MonkeyPatch, draw: Callable[..., Array]) -> None:
    def normal_like(x: Any, key: Any) -> Any:
        leaves, structure = jax.tree.flatten(x)
        keys = jax.random.split(key, len(leaves))
        return structure.unflatten(map(draw, keys, leaves))

    patch.setattr(_noise, "normal_like", normal_like)


# Dependence on the presence of an example


@mutant(mechanism="clipped_grad")
def mean_is_of_those_kept(patch: pytest.MonkeyPatch):
    """The divisor is a number that is not public."""
    _step_sees(
        patch,
        "normalize_by",
        lambda rule, clipped, state: jnp.count_nonzero(clipped.norms),
    )


@mutant(check=check_absence)
def key_depends_on_the_mask(patch: pytest.MonkeyPatch):
    """The key counts kept examples. Nobody without the key can see that."""
    _step_sees(
        patch,
        "count",
        lambda rule, clipped, state: state.count + jnp.count_nonzero(clipped.norms),
    )


# Clipping


@mutant(mechanism="clipped_grad")
def nothing_is_clipped(patch: pytest.MonkeyPatch):
    """One example may add any number."""
    clip = _clip.clip
    patch.setattr(_clip, "clip", lambda g, bound, keep=True: clip(g, 1e30, keep))


@mutant(mechanism="clipped_grad")
def leaves_are_clipped_apart(patch: pytest.MonkeyPatch):
    """An example reaches the bound times the root of the number of leaves."""
    clip = _clip.clip

    def broken(g: Any, bound: Any, keep: Any = True) -> Any:
        clipped = jax.tree.map(lambda leaf: clip(leaf, bound, keep)[0], g)
        return clipped, clip(g, bound, keep)[1]

    patch.setattr(_clip, "clip", broken)


@mutant(mechanism="clipped_grad")
def the_sum_is_clipped(patch: pytest.MonkeyPatch):
    """The sum is clipped instead of each example, so that one may turn it around."""
    right = _clip.clipped_rows

    def broken(grads: Any, bound: Any, mask: Any = None) -> Any:
        mask = jnp.ones(len(jax.tree.leaves(grads)[0]), bool) if mask is None else mask
        kept, norms = right(grads, 1e30, mask)
        clipped, _ = _clip.clip(jax.tree.map(lambda rows: rows.sum(0), kept), bound)
        rows = jax.tree.map(
            lambda x, rows: jnp.zeros_like(rows).at[0].set(x), clipped, kept
        )
        return rows, norms

    for module in (_clip, _clipped_grad):
        patch.setattr(module, "clipped_rows", broken)


@mutant(mechanism="clipped_grad", scenario="nan")
def nan_is_not_clipped(patch: pytest.MonkeyPatch):
    """Every comparison with a norm of NaN is false, and users replace NaN with 0."""

    def factor(g: Any, bound: Any) -> Any:
        norm = tree.norm(g)
        return jnp.where(norm > bound, bound / norm, 1)

    _clip_with(patch, factor)


@mutant(scenario="small")
def norm_is_float16(patch: pytest.MonkeyPatch):
    """The norm of short examples is 0, so that they are not clipped."""

    def factor(g: Any, bound: Any) -> Any:
        # Many devices flush subnormal numbers to 0.
        squares = lax.reduce_precision(coordinates(g) ** 2, 5, 10)
        return jnp.minimum(1, bound / jnp.sqrt(squares.sum()))

    _clip_with(patch, factor)


@mutant(check=check_norms)
def clip_has_no_margin(patch: pytest.MonkeyPatch):
    """Rounding makes the norm of an example more than the bound, by 1e-7."""
    _clip_with(patch, lambda g, bound: jnp.minimum(1, bound / tree.norm(g)))


def _clip_with(patch: pytest.MonkeyPatch, factor: Callable[..., Any]) -> None:
    def clip(g: Any, bound: Any, keep: Any = True) -> Any:
        g = tree.widen(g)
        clipped = tree.where(jnp.asarray(keep), tree.scale(factor(g, bound), g), 0)
        return clipped, jnp.where(keep, tree.norm(g), 0)

    patch.setattr(_clip, "clip", clip)


# Sums


@mutant(scenario="many")
def the_sum_is_bfloat16(patch: pytest.MonkeyPatch):
    """One example may change how the sum is rounded."""
    _round_with(patch, lambda x: lax.reduce_precision(x, 8, 7))


@mutant(check=check_sensitivity)
def the_sum_has_no_rest(patch: pytest.MonkeyPatch):
    """The sum is rounded in float32, by 1e-4 of the bound."""
    _round_with(patch, lambda x: x)


def _round_with(patch: pytest.MonkeyPatch, fn: Callable[..., Array]) -> None:
    def sum_rows(rows: Any) -> Any:
        return as_pair(jax.tree.map(lambda x: fn(x.sum(0)), rows))

    def add_pairs(x: Any, y: Any) -> Any:
        return as_pair(jax.tree.map(lambda a, b: fn(a + b), x[0], y[0]))

    for module in (_clip, _clipped_grad):
        patch.setattr(module, "sum_rows", sum_rows)
        patch.setattr(module, "add_pairs", add_pairs)
