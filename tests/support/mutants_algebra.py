"""Rules that nearly have a symmetry, and estimates that misbehave."""

from typing import Any

import jax
import jax.numpy as jnp

from contrib_algos import adam, lion, sgd
from contrib_core import tree
from contrib_core.ranges import Guess
from support.mutants_laws import (
    counting,
    descent,
    Distance,
    lawful,
    memoryless,
    mutant,
    normalized,
    rounded,
    Rule,
)


@lawful("translation", "rotation", "permutation", "partition", "complex")
def momentum():
    return sgd(0.1, momentum=0.9)


@lawful("gradient_scale", "rotation", "complex", "monotone", "bounded_growth")
def distance():
    return Distance()


@lawful("units")
def relative_distance():
    return Distance(guess=lambda first, x0: first * tree.norm(x0))


@lawful("initial_guess")
def small_distance(guess: Guess = 1e-6):
    return Distance(guess)


def with_guess(guess: Any) -> Distance:
    return Distance(guess=guess)


def with_growth(grow: Any, first: Any = 0.25) -> Distance:
    return Distance(first, grow=grow)


def leafwise(fn: Any) -> Any:
    return memoryless(lambda g, x: jax.tree.map(fn, g))


# Translation


@mutant("translation")
def measures_from_the_origin():
    return Distance(measure=lambda x, x0: tree.norm(x))


@mutant("translation")
def decays_by_a_millionth():
    return memoryless(lambda g, x: tree.axpy(-1e-6, x, descent(g)))


@mutant("translation")
def decays_at_step_4_only():
    return counting(
        lambda g, x, t: tree.axpy(jnp.where(t == 4, -1e-3, 0.0), x, descent(g))
    )


@mutant("translation")
def guesses_a_billionth_by_the_norm():
    return with_guess(lambda first, x0: first + 1e-9 * tree.norm(x0))


@mutant("translation")
def rounds_the_parameters():
    def then(g: Any, x0: Any, x: Any) -> Any:
        pull = tree.sub(rounded(x), rounded(x0))
        return tree.axpy(-0.1, pull, descent(g)), x0

    return Rule(lambda x: x, then)


# Scale of the gradients


@mutant("gradient_scale", "units")
def steps_along_the_gradient():
    return memoryless(lambda g, x: descent(g))


@mutant("gradient_scale")
def adds_a_trillionth_to_the_norm():
    return memoryless(lambda g, x: tree.scale(-0.1 / (tree.norm(g) + 1e-12), g))


@mutant("gradient_scale")
def starts_its_sum_at_1e_20():
    return Distance(sum_sq=1e-20)


@mutant("gradient_scale")
def ignores_gradients_below_1e_8():
    def updates(g: Any, x: Any) -> Any:
        return tree.where(tree.sq_norm(g) > 2.2e-16, normalized(g), 0.0)

    return memoryless(updates)


@mutant("gradient_scale")
def clips_at_a_million():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.maximum(before, travelled) / jnp.maximum(tree.norm(g) / 1e6, 1)

    return with_growth(grow)


# Units


@mutant("units")
def steps_by_a_tenth():
    return memoryless(lambda g, x: normalized(g))


@mutant("units")
def guesses_one_more():
    return with_guess(lambda first, x0: first * (1 + tree.norm(x0)))


@mutant("units")
def guesses_a_billionth_more():
    return with_guess(lambda first, x0: first * tree.norm(x0) + 1e-9)


@mutant("units")
def starts_its_sum_at_1e_12():
    return Distance(guess=lambda first, x0: first * tree.norm(x0), sum_sq=1e-12)


# Rotation


@mutant("rotation")
def normalizes_by_the_sum_of_moduli():
    return memoryless(lambda g, x: tree.scale(tree.divide(-0.1, tree.l1_norm(g)), g))


@mutant("complex")
def divides_by_second_moments():
    return adam(0.1)


@mutant("rotation")
def adds_a_billionth_of_the_cube():
    return leafwise(lambda g: -0.1 * (g + 1e-9 * g**3))


@mutant("rotation")
def rounds_the_gradients():
    return memoryless(lambda g, x: descent(rounded(g)))


# Permutation


@mutant("rotation", "permutation", "partition")
def normalizes_each_leaf():
    return leafwise(lambda g: tree.scale(tree.divide(-0.1, tree.norm(g)), g))


@mutant("permutation")
def adds_up_along_a_leaf():
    return leafwise(lambda g: -0.1 * jnp.cumsum(g).reshape(g.shape))


@mutant("permutation")
def weighs_by_1e_9_of_the_index():
    def weigh(g: Any) -> Any:
        index = jnp.arange(g.size, dtype=g.real.dtype).reshape(g.shape)
        return -0.1 * (1 + 1e-9 * index) * g

    return leafwise(weigh)


@mutant("permutation")
def decays_matrices_only():
    return memoryless(
        lambda g, x: jax.tree.map(
            lambda g, x: -0.1 * g - (1e-6 * x if g.ndim > 1 else 0 * x), g, x
        )
    )


# Partition


@mutant("partition")
def decays_what_has_two_axes():
    return decays_matrices_only()


@mutant("partition")
def normalizes_each_row():
    def row(g: Any) -> Any:
        norm = jnp.sqrt(jnp.sum(tree.abs_sq(g), axis=-1, keepdims=True))
        return -0.1 * g / jnp.where(norm == 0, 1, norm)

    return leafwise(row)


@mutant("partition")
def divides_by_the_number_of_leaves():
    return memoryless(lambda g, x: tree.scale(1 / len(jax.tree.leaves(g)), descent(g)))


@mutant("partition")
def favours_small_leaves_by_1e_9():
    return leafwise(lambda g: -0.1 * (1 + 1e-9 / g.size) * g)


# Complex


@mutant("complex")
def takes_the_sign():
    return lion(0.1)


@mutant("complex")
def forgets_a_conjugate():
    return leafwise(lambda g: -0.1 * jnp.conj(g))


@mutant("complex")
def multiplies_without_a_conjugate():
    def updates(g: Any, x: Any) -> Any:
        squares = sum(jnp.sum(a * a).real for a in jax.tree.leaves(g))
        return tree.scale(tree.divide(-0.1, jnp.sqrt(jnp.abs(squares))), g)

    return memoryless(updates)


@mutant("complex")
def shares_a_moment_by_1e_9():
    return memoryless(
        lambda g, x: tree.map(lambda g: -0.1 * g * (1 + 1e-9 * jnp.abs(g)), g)
    )


@mutant("complex")
def rounds_complex_numbers():
    def updates(g: Any, x: Any) -> Any:
        return descent(rounded(g) if jnp.iscomplexobj(jax.tree.leaves(g)[0]) else g)

    return memoryless(updates)


# Estimates


@mutant("monotone")
def forgets_the_largest():
    return with_growth(lambda before, travelled, t, g: jnp.maximum(travelled, 1e-6))


@mutant("monotone")
def shrinks_by_a_trillionth():
    return with_growth(
        lambda before, travelled, t, g: jnp.maximum((1 - 1e-12) * before, travelled)
    )


@mutant("monotone")
def resets_at_a_zero_gradient():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        largest = jnp.maximum(before, travelled)
        return jnp.where(tree.max_abs(g) == 0, travelled, largest)

    return with_growth(grow)


@mutant("monotone")
def restarts_at_step_5():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.where(t == 5, 0.125, jnp.maximum(before, travelled))

    return with_growth(grow)


@mutant("monotone")
def falls_at_the_first_step():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.maximum(jnp.where(t == 0, 0.1, 1) * before, travelled)

    return with_growth(grow)


@mutant("bounded_growth")
def leaps_at_the_first_step():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.maximum(jnp.where(t == 0, 1000, 1) * before, travelled)

    return with_growth(grow)


@mutant("bounded_growth")
def grows_by_more_than_twofold_by_a_billionth():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.where(t == 3, 2 * (1 + 2e-10), 1) * before

    return with_growth(grow)


@mutant("bounded_growth")
def grows_by_2_001_once():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.where(t == 3, 2.001, 1) * before

    return with_growth(grow)


@mutant("bounded_growth")
def triples_the_distance():
    return with_growth(
        lambda before, travelled, t, g: jnp.maximum(before, 3 * travelled)
    )


@mutant("bounded_growth")
def jumps_to_the_norm_of_a_gradient():
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.maximum(jnp.maximum(before, travelled), 0.3 * tree.norm(g))

    return with_growth(grow)


# The first guess


@mutant("initial_guess")
def keeps_its_guess(guess: Guess = 1e-6):
    return with_growth(lambda before, travelled, t, g: before, guess)


@mutant("initial_guess")
def grows_by_3_percent(guess: Guess = 1e-6):
    return with_growth(
        lambda before, travelled, t, g: jnp.clip(travelled, before, 1.03 * before),
        guess,
    )


@mutant("initial_guess")
def steps_by_its_guess(guess: Guess = 1e-6):
    return memoryless(lambda g, x: tree.scale(-tree.scalar(guess, like=x), g))


@mutant("initial_guess")
def has_a_power_of_its_guess(guess: Guess = 1e-6):
    def grow(before: Any, travelled: Any, t: Any, g: Any) -> Any:
        return jnp.maximum(before, travelled) * (before**50 / before**50)

    return with_growth(grow, guess)
