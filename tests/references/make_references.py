"""Records the trajectories of the official PyTorch implementations.

The committed `references.json` was made on CPU with Python 3.11 and

    torch==2.13.0 numpy==2.4.6
    dadaptation==3.2 dog-optimizer==1.0.3 dowg==0.2.0 momo-opt==0.1.0
    parameterfree==0.0.1 prodigyopt==1.1.2 schedulefree==1.4.1

by running, from the root of the repository,

    PYTHONPATH=tests python tests/references/make_references.py

Of these packages, the tests need only NumPy. Every run takes 160 steps in float64. The
file keeps the first 8 steps, which show initialisation, count offsets and warm-up, and
every 16th step, which shows accumulated differences. Another processor, on which NumPy
computes other exponentials and matrix products, changes the last bits: by 1e-12 of the
distance travelled, and by 1e-11 where D-Adaptation amplifies them.

Mechanic is missing. Its authors ran the experiments of their paper in JAX, with the
code that is now in optax. Their PyTorch code (mechanic-pytorch 0.0.1) is another rule,
and none of its options turns it into the rule of optax. In the notation of
`contrib_wrappers.Mechanize`, the PyTorch code

- does not clip h, while optax clips it to the largest |h| before: the first h that is
  not 0 becomes 1e-8;
- forgets losses, r = max(r, 0), while optax lets r become negative;
- starts with m = 1e-6 and adds no eps to it, while optax starts with m = 0;
- takes x and ||x|| of its decay after the step of the base optimiser, not before it.
"""

import contextlib
import io
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dadaptation import DAdaptAdam
from dog import DoG, LDoG, PolynomialDecayAverager
from dowg import ScalarDoWG
from momo import Momo, MomoAdam
from parameterfree import COCOB
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from support.problems import NUM_STEPS, Problem, PROBLEMS, ravel, SHAPES, table, unravel


PACKAGES = (
    "torch",
    "numpy",
    "dadaptation",
    "dog-optimizer",
    "dowg",
    "momo-opt",
    "parameterfree",
    "prodigyopt",
    "schedulefree",
)
STEPS = [*range(1, 9), *range(16, NUM_STEPS + 1, 16)]

# rule -> name of the configuration -> arguments of our function; a learning rate given
# as a dict is a schedule, see `problems.table`.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "dog": {
        "default": {},
        "nondefault": {"learning_rate": 0.7, "reps_rel": 1e-4, "eps": 1e-2},
        # The learning rate is 1 here, because the official code multiplies by it only
        # from the second step on, and uses `init_eta` unscaled in the first.
        "init_learning_rate": {"init_learning_rate": 1e-3},
        "learning_rate": {"learning_rate": 1.5},
        "weight_decay": {"weight_decay": 0.02},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}},
        "layer_wise": {"layer_wise": True},
        "layer_wise-nondefault": {
            "layer_wise": True,
            "learning_rate": 0.7,
            "reps_rel": 1e-4,
            "eps": 1e-2,
            "weight_decay": 0.02,
        },
        "layer_wise-init_learning_rate": {
            "layer_wise": True,
            "init_learning_rate": 1e-3,
        },
    },
    "averaged_dog": {
        "default": {},
        "nondefault": {"gamma": 2.0, "learning_rate": 0.7},
    },
    "prodigy": {
        "default": {},
        "nondefault": {
            "betas": [0.8, 0.99],
            "beta3": 0.98,
            "eps": 1e-3,
            "estim_lr0": 1e-4,
            "estim_lr_coef": 0.5,
        },
        "weight_decay": {"weight_decay": 0.1},
        # betas[0] = 0 is missing, because the official code then takes another path: it
        # multiplies the gradient by the new d, while its moments use the old one.
        "learning_rate": {"learning_rate": 0.5},
        "warmup": {"learning_rate": {"warmup": 20}},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}, "weight_decay": 0.1},
        "safeguard_warmup": {"learning_rate": {"warmup": 20}, "safeguard_warmup": True},
        "no_bias_correction": {"use_bias_correction": False},
        "growth_rate": {"growth_rate": 1.3},
    },
    "dadapt_adamw": {
        "default": {},
        "nondefault": {"betas": [0.8, 0.99], "eps": 1e-3, "estim_lr0": 1e-4},
        "weight_decay": {"weight_decay": 0.05},
        "learning_rate": {"learning_rate": 0.5},
        "warmup": {"learning_rate": {"warmup": 20}},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}, "weight_decay": 0.1},
        "no_bias_correction": {"use_bias_correction": False},
        "no_bias_correction-warmup": {
            "use_bias_correction": False,
            "learning_rate": {"warmup": 20},
            "weight_decay": 0.1,
        },
    },
    "cocob": {
        "default": {},
        "nondefault": {"alpha": 5.0, "eps": 0.1},
        "weight_decay": {"weight_decay": 0.05},
        "learning_rate": {"learning_rate": 0.3, "eps": 0.1},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}},
    },
    # There is no learning rate here, because the official code has none.
    "dowg": {
        "default": {},
        "nondefault": {"init_estim_sq_dist": 1e-3, "eps": 1e-2},
        "weight_decay": {"weight_decay": 0.05},
    },
    # The losses start at 0.46 and 1.1 and can fall to 0.001 and 0.56. So a bound of 0.3
    # is reached in the first problem only, and one of 0.5 is above its start: there
    # nothing but decay moves the parameters, which shows that no step goes back. (On
    # convex losses the models are never below a bound that they were above.) A learned
    # bound starts at `lower_bound`, rises, and is halved where it was too high: by
    # MoMo's "adapt", once and 9 times.
    "momo": {
        "default": {},
        "nondefault": {"learning_rate": 0.3, "beta": 0.6, "lower_bound": 0.3},
        "learning_rate": {"learning_rate": 20.0},
        "weight_decay": {"learning_rate": 5.0, "weight_decay": 0.05},
        "bound_too_high": {"lower_bound": 0.5, "weight_decay": 0.05},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}, "weight_decay": 0.05},
        "adapt": {"adapt_lower_bound": True},
        "adapt-nondefault": {
            "adapt_lower_bound": True,
            "learning_rate": 5.0,
            "beta": 0.7,
            "lower_bound": 0.3,
            "weight_decay": 0.02,
        },
        # The Polyak step. Infinity would be NaN, because the official code multiplies
        # it by 0.
        "adapt-polyak": {"adapt_lower_bound": True, "learning_rate": 1e9},
    },
    "momo_adam": {
        "default": {},
        "nondefault": {
            "learning_rate": 0.1,
            "b1": 0.7,
            "b2": 0.98,
            "eps": 1e-3,
            "lower_bound": 0.3,
        },
        "learning_rate": {"learning_rate": 1.0},
        "weight_decay": {"learning_rate": 0.1, "weight_decay": 0.2},
        "bound_too_high": {"lower_bound": 0.5, "weight_decay": 0.2},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}, "weight_decay": 0.2},
        "adapt": {"adapt_lower_bound": True, "learning_rate": 0.1},
        "adapt-nondefault": {
            "adapt_lower_bound": True,
            "learning_rate": 0.1,
            "b1": 0.7,
            "b2": 0.98,
            "eps": 1e-3,
            "lower_bound": 0.3,
            "weight_decay": 0.1,
        },
        "adapt-polyak": {"adapt_lower_bound": True, "learning_rate": 1e9},
    },
    "schedule_free_sgd": {
        "default": {},
        "warmup": {"learning_rate": 0.8, "warmup_steps": 20},
        "weight_decay": {"learning_rate": 0.5, "weight_decay": 0.05},
        "nondefault": {
            "learning_rate": 0.5,
            "warmup_steps": 50,
            "b1": 0.6,
            "weight_decay": 0.02,
            "weight_lr_power": 1.0,
        },
    },
    "schedule_free_adamw": {
        "default": {},
        "warmup": {"learning_rate": 0.02, "warmup_steps": 20},
        "weight_decay": {"learning_rate": 0.02, "weight_decay": 0.2},
        "nondefault": {
            "learning_rate": 0.03,
            "warmup_steps": 50,
            "b1": 0.95,
            "b2": 0.98,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "weight_lr_power": 0.5,
        },
    },
}


def official(
    rule: str, tensors: list[torch.Tensor], kwargs: dict[str, Any]
) -> torch.optim.Optimizer:
    """The official optimiser for the arguments of our function of that name."""
    kwargs = dict(kwargs)
    if "learning_rate" in kwargs:
        kwargs["lr"] = kwargs.pop("learning_rate")
    match rule:
        case "dog":
            init_eta = kwargs.pop("init_learning_rate", None)
            layer_wise = kwargs.pop("layer_wise", False)
            return (LDoG if layer_wise else DoG)(tensors, init_eta=init_eta, **kwargs)
        case "averaged_dog":
            kwargs.pop("gamma", None)  # An option of the averager.
            return DoG(tensors, **kwargs)
        case "prodigy":
            d0, d_coef = kwargs.pop("estim_lr0", 1e-6), kwargs.pop("estim_lr_coef", 1.0)
            return Prodigy(
                tensors,
                d0=d0,
                d_coef=d_coef,
                decouple=True,
                **{"use_bias_correction": True, **kwargs},
            )
        case "dadapt_adamw":
            d0 = kwargs.pop("estim_lr0", 1e-6)
            kwargs = {"use_bias_correction": True, **kwargs}
            return DAdaptAdam(tensors, d0=d0, decouple=True, **kwargs)
        case "cocob":
            group = {"params": tensors, "lr": kwargs.pop("lr", 1.0)}
            return COCOB([group], **kwargs)
        case "dowg":
            # Release 0.2.0 is the authors' code (which has no package: rka97/dowg) and
            # clips gradients, but not at 1. The releases after it call 1 - eps eps,
            # clip otherwise, and raise an error without a closure.
            weight_decay = kwargs.pop("weight_decay", 0.0)
            group = {"params": tensors, "weight_decay": weight_decay}
            eps = kwargs.pop("eps", 1e-4)
            optimiser = ScalarDoWG([group], epsilon=eps, clip=1.0)
            init = kwargs.pop("init_estim_sq_dist", eps)
            optimiser.state["rt2"] = torch.tensor([init])
            return optimiser
        case "momo" | "momo_adam":
            kwargs["lb"] = kwargs.pop("lower_bound", 0.0)
            kwargs["use_fstar"] = kwargs.pop("adapt_lower_bound", False)
            if rule == "momo":
                return Momo(tensors, **kwargs)
            betas = kwargs.pop("b1", 0.9), kwargs.pop("b2", 0.999)
            return MomoAdam(tensors, betas=betas, **kwargs)
        case "schedule_free_sgd":
            momentum = kwargs.pop("b1", 0.9)
            return SGDScheduleFree(tensors, momentum=momentum, foreach=False, **kwargs)
        case "schedule_free_adamw":
            betas = kwargs.pop("b1", 0.9), kwargs.pop("b2", 0.999)
            return AdamWScheduleFree(tensors, betas=betas, foreach=False, **kwargs)
    raise ValueError(rule)


def completed(
    rule: str, group: dict[str, Any], grad: torch.Tensor, leaf: torch.Tensor
) -> torch.Tensor:
    """The gradient for the official code, with the parts that its caller must add."""
    match rule:
        case "cocob":
            return group["lr"] * grad
        case "dowg":
            return grad + group["weight_decay"] * leaf
    return grad


def trajectory(
    rule: str, kwargs: dict[str, Any], schedule: dict[str, int] | None, problem: Problem
) -> tuple[np.ndarray, np.ndarray | None]:
    """Training and, for rules that average, evaluation parameters, a row a step."""
    params = {name: leaf.copy() for name, leaf in problem.params.items()}
    # The tensors share the memory of `params`. DoWG cannot add to tensors without axes.
    tensors = {
        name: torch.atleast_1d(torch.from_numpy(leaf)) for name, leaf in params.items()
    }
    optimiser = official(rule, list(tensors.values()), kwargs)
    (group,) = optimiser.param_groups
    schedule_free = isinstance(optimiser, SGDScheduleFree | AdamWScheduleFree)
    averager = None
    if rule == "averaged_dog":
        model = torch.nn.ParameterDict(tensors)  # It shares the memory too.
        averager = PolynomialDecayAverager(model, kwargs.get("gamma", 8.0))
    if schedule_free:
        optimiser.train()
    train, evaluated = [], []
    for step in range(NUM_STEPS):
        if schedule is not None:
            group["lr"] = float(table(schedule)[step])
        loss, grads = problem.value_and_grad(params, step)
        for name, leaf in tensors.items():
            grad = torch.atleast_1d(torch.from_numpy(grads[name]))
            leaf.grad = completed(rule, group, grad, leaf)
        if isinstance(optimiser, Momo | MomoAdam):
            optimiser.step(loss=torch.tensor(loss))
        else:
            optimiser.step()
        train.append(ravel(params))
        if averager is not None:
            averager.step()
            average = averager.averaged_model.state_dict()
            evaluated.append(
                ravel({name: average[name].reshape(SHAPES[name]) for name in SHAPES})
            )
        if schedule_free:
            optimiser.eval()
            evaluated.append(ravel(params))
            optimiser.train()
            # Switching to evaluation and back rounds; a run without it does not.
            for name, leaf in unravel(train[-1]).items():
                params[name][...] = leaf
    return np.array(train), np.array(evaluated) if evaluated else None


def record(rule: str, config: str, problem: Problem) -> dict[str, Any]:
    kwargs = dict(CONFIGS[rule][config])
    schedule = None
    if isinstance(kwargs.get("learning_rate"), dict):
        schedule = kwargs.pop("learning_rate")
    train, evaluated = trajectory(rule, kwargs, schedule, problem)
    kept = np.array(STEPS) - 1
    return {
        "rule": rule,
        "config": config,
        "problem": problem.name,
        "kwargs": kwargs,
        "schedule": schedule,
        "params": train[kept].tolist(),
        "eval_params": None if evaluated is None else evaluated[kept].tolist(),
    }


def dump(value: Any) -> str:
    """JSON with one line for each point of a trajectory, for readable diffs."""
    if isinstance(value, dict) and nested(value.values()):
        items = (f"{json.dumps(name)}: {dump(child)}" for name, child in value.items())
        return "{\n" + ",\n".join(items) + "\n}"
    if isinstance(value, list) and nested(value):
        return "[\n" + ",\n".join(map(dump, value)) + "\n]"
    return json.dumps(value)


def nested(children: Iterable[Any]) -> bool:
    return any(isinstance(child, dict | list) for child in children)


def main() -> None:
    torch.set_num_threads(1)
    # DoWG and MoMo make their scalars in it, whatever the parameters are.
    torch.set_default_dtype(torch.float64)
    with contextlib.redirect_stdout(io.StringIO()):  # Some announce their decay.
        runs = [
            record(rule, config, problem)
            for rule, configs in CONFIGS.items()
            for config in configs
            for problem in PROBLEMS.values()
        ]
    data = {
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        "steps": STEPS,
        "runs": runs,
    }
    path = Path(__file__).with_name("references.json")
    path.write_text(dump(data) + "\n")


if __name__ == "__main__":
    main()
