"""Records the trajectories of the official PyTorch implementations.

The committed `references.json` was made on CPU with Python 3.11 and

    torch==2.13.0 numpy==2.4.6
    dog-optimizer==1.0.3 prodigyopt==1.1.2 schedulefree==1.4.1

by running, from the root of the repository,

    PYTHONPATH=tests python tests/references/make_references.py

The tests need none of them but NumPy. Every run takes 160 steps in float64;
kept are the first 8 steps, where initialisation, count offsets and warm-up show, and
every 16th, where accumulated differences do.
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
from dog import DoG
from problems import NUM_STEPS, Problem, PROBLEMS, ravel, table, unravel
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, SGDScheduleFree


STEPS = [*range(1, 9), *range(16, NUM_STEPS + 1, 16)]

# rule -> name of the configuration -> arguments of our function; a learning rate given
# as a dict is a schedule, see `problems.table`.
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "dog": {
        "default": {},
        "nondefault": {"learning_rate": 0.7, "reps_rel": 1e-4, "eps": 1e-2},
        # With a learning rate of 1 only: the official code uses `init_eta` as it is,
        # and multiplies by the learning rate from the second step on.
        "init_learning_rate": {"init_learning_rate": 1e-3},
        "learning_rate": {"learning_rate": 1.5},
        "weight_decay": {"weight_decay": 0.02},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}},
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
        # Not betas[0] = 0, where the official code takes another path: it multiplies
        # the gradient by the new d instead of the old one that its moments use.
        "learning_rate": {"learning_rate": 0.5},
        "warmup": {"learning_rate": {"warmup": 20}},
        "cosine": {"learning_rate": {"cosine": NUM_STEPS}, "weight_decay": 0.1},
        "safeguard_warmup": {"learning_rate": {"warmup": 20}, "safeguard_warmup": True},
        "no_bias_correction": {"use_bias_correction": False},
        "growth_rate": {"growth_rate": 1.3},
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
            return DoG(tensors, init_eta=init_eta, **kwargs)
        case "prodigy":
            d0, d_coef = kwargs.pop("estim_lr0", 1e-6), kwargs.pop("estim_lr_coef", 1.0)
            return Prodigy(
                tensors,
                d0=d0,
                d_coef=d_coef,
                decouple=True,
                **{"use_bias_correction": True, **kwargs},
            )
        case "schedule_free_sgd":
            momentum = kwargs.pop("b1", 0.9)
            return SGDScheduleFree(tensors, momentum=momentum, foreach=False, **kwargs)
        case "schedule_free_adamw":
            betas = kwargs.pop("b1", 0.9), kwargs.pop("b2", 0.999)
            return AdamWScheduleFree(tensors, betas=betas, foreach=False, **kwargs)
    raise ValueError(rule)


def trajectory(
    rule: str, kwargs: dict[str, Any], schedule: dict[str, int] | None, problem: Problem
) -> tuple[np.ndarray, np.ndarray | None]:
    """Training and, for schedule-free rules, evaluation parameters, a row a step."""
    tensors = {name: torch.tensor(leaf) for name, leaf in problem.params.items()}
    params = {name: leaf.numpy() for name, leaf in tensors.items()}  # share memory
    optimiser = official(rule, list(tensors.values()), kwargs)
    schedule_free = isinstance(optimiser, SGDScheduleFree | AdamWScheduleFree)
    if schedule_free:
        optimiser.train()
    train, evaluated = [], []
    for step in range(NUM_STEPS):
        if schedule is not None:
            for group in optimiser.param_groups:
                group["lr"] = float(table(schedule)[step])
        _, grads = problem.value_and_grad(params, step)
        for name, leaf in tensors.items():
            leaf.grad = torch.tensor(grads[name])
        optimiser.step()
        train.append(ravel(params))
        if schedule_free:
            optimiser.eval()
            evaluated.append(ravel(params))
            optimiser.train()
            # Going to and fro rounds; a run that never evaluates does not.
            for name, leaf in unravel(train[-1]).items():
                tensors[name].copy_(torch.tensor(leaf))
    return np.array(train), np.array(evaluated) if schedule_free else None


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
    packages = ("torch", "numpy", "dog-optimizer", "prodigyopt", "schedulefree")
    with contextlib.redirect_stdout(io.StringIO()):  # Prodigy announces its decay
        runs = [
            record(rule, config, problem)
            for rule, configs in CONFIGS.items()
            for config in configs
            for problem in PROBLEMS.values()
        ]
    data = {
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        "steps": STEPS,
        "runs": runs,
    }
    path = Path(__file__).with_name("references.json")
    path.write_text(dump(data) + "\n")


if __name__ == "__main__":
    main()
