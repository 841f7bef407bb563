"""The public contract: names, order and defaults of arguments, and fields of states."""

import dataclasses
import inspect

import jax.numpy as jnp
import pytest

import contrib_algos
import contrib_wrappers


REQUIRED = inspect.Parameter.empty

SIGNATURES = {
    contrib_algos.cocob: {
        "learning_rate": 1.0,
        "alpha": 100,
        "eps": 1e-8,
        "weight_decay": 0,
        "mask": None,
    },
    contrib_algos.dadapt_adamw: {
        "learning_rate": 1.0,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "estim_lr0": 1e-6,
        "weight_decay": 0.0,
    },
    contrib_algos.differentially_private_aggregate: {
        "l2_norm_clip": REQUIRED,
        "noise_multiplier": REQUIRED,
        "seed": REQUIRED,
    },
    contrib_algos.dog: {
        "learning_rate": 1.0,
        "reps_rel": 1e-6,
        "eps": 1e-8,
        "init_learning_rate": None,
        "weight_decay": None,
        "mask": None,
    },
    contrib_algos.dowg: {
        "learning_rate": 1.0,
        "init_estim_sq_dist": None,
        "eps": 1e-4,
        "weight_decay": None,
        "mask": None,
    },
    contrib_algos.dpsgd: {
        "learning_rate": REQUIRED,
        "l2_norm_clip": REQUIRED,
        "noise_multiplier": REQUIRED,
        "seed": REQUIRED,
        "momentum": None,
        "nesterov": False,
    },
    contrib_algos.momo: {
        "learning_rate": 1.0,
        "beta": 0.9,
        "lower_bound": 0.0,
        "weight_decay": 0.0,
        "adapt_lower_bound": False,
    },
    contrib_algos.momo_adam: {
        "learning_rate": 0.01,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "lower_bound": 0.0,
        "weight_decay": 0.0,
        "adapt_lower_bound": False,
    },
    contrib_algos.prodigy: {
        "learning_rate": 1.0,
        "betas": (0.9, 0.999),
        "beta3": None,
        "eps": 1e-8,
        "estim_lr0": 1e-6,
        "estim_lr_coef": 1.0,
        "weight_decay": 0.0,
    },
    contrib_wrappers.mechanize: {
        "base_optimizer": REQUIRED,
        "weight_decay": 0.01,
        "eps": 1e-8,
        "s_init": 1e-6,
        "num_betas": 6,
    },
    contrib_wrappers.sam: {
        "optimizer": REQUIRED,
        "adv_optimizer": REQUIRED,
        "sync_period": 2,
        "reset_state": True,
        "opaque_mode": False,
        "batch_axis_name": None,
    },
    contrib_wrappers.schedule_free: {
        "base_optimizer": REQUIRED,
        "learning_rate": REQUIRED,
        "b1": 0.9,
        "weight_lr_power": 2.0,
        "state_dtype": jnp.float32,
    },
    contrib_wrappers.schedule_free_eval_params: {"state": REQUIRED, "params": REQUIRED},
    contrib_wrappers.split_real_and_imaginary: {"inner": REQUIRED},
}

FIELDS = {
    contrib_algos.COCOBState: (
        "init_particles cumulative_gradients scale subgradients reward"
    ),
    contrib_algos.DAdaptAdamWState: (
        "exp_avg exp_avg_sq grad_sum estim_lr numerator_weighted count"
    ),
    contrib_algos.DifferentiallyPrivateAggregateState: "rng_key",
    contrib_algos.DoGState: "first_step init_params estim_dist sum_sq_norm_grads",
    contrib_algos.DoWGState: "init_params weighted_sq_norm_grads estim_sq_dist",
    contrib_algos.MomoState: "exp_avg barf gamma lb count",
    contrib_algos.MomoAdamState: "exp_avg exp_avg_sq barf gamma lb count",
    contrib_algos.ProdigyState: (
        "exp_avg exp_avg_sq grad_sum params0 estim_lr numerator_weighted count"
    ),
    contrib_wrappers.MechanicState: "base_optimizer_state count r m v s x0",
    contrib_wrappers.SAMState: "steps_since_sync opt_state adv_state cache",
    contrib_wrappers.ScheduleFreeState: (
        "b1 weight_sum step_count max_lr base_optimizer_state z"
    ),
    contrib_wrappers.SplitRealAndImaginaryState: "inner_state",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__name__)
def test_signature(function):
    """Further arguments are keyword-only."""
    parameters = inspect.signature(function).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is not p.KEYWORD_ONLY}
    assert list(positional.items()) == list(SIGNATURES[function].items())


@pytest.mark.parametrize("state", FIELDS, ids=lambda c: c.__name__)
def test_state_fields(state):
    names = [field.name for field in dataclasses.fields(state)]
    assert set(FIELDS[state].split()) <= set(names)
