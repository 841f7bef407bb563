"""`python -m benchmarks <command>`."""

import importlib
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """A line of the list of commands; `module` has a function `main`."""

    module: str
    summary: str


COMMANDS = {
    "demo": Command(
        "demo.command",
        "train on handwritten digits, learning-rate-free beside a sweep of adam",
    ),
    "speed": Command(
        "step.speed", "time of a step, ours and optax's in alternating turns"
    ),
    "memory": Command(
        "step.memory", "bytes moved, temporary buffers and state of the compiled step"
    ),
    "compile": Command(
        "step.compile",
        "size of the compiled step and its growth with the number of leaves",
    ),
    "trace": Command(
        "step.trace", "Python calls of an eager update, and the time to trace it"
    ),
    "train": Command(
        "step.train",
        "time of a whole training step, ours bucketed or not, and optax's",
    ),
    "privacy": Command(
        "privacy.command",
        "how far one example can change a private sum, its noise, and its cost",
    ),
    "atlas": Command(
        "atlas", "which of our transforms and those of optax.contrib obey which law"
    ),
}

# Installed by `pip install -e ".[demo]"`.
PACKAGES = {"equinox", "jax", "jaxtyping", "matplotlib", "optax", "rich", "sklearn"}


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit code, which is 2 for an unknown command."""
    name, *rest = argv or [""]
    if name not in COMMANDS:
        unknown = name and name not in ("-h", "--help")
        print(f"Unknown command {name!r}.\n" if unknown else "", end="")
        print("Usage: python -m benchmarks <command> [--help]\n")
        for command, (_, summary) in COMMANDS.items():
            print(f"  {command:8} {summary}")
        return 0 if name in ("-h", "--help") else 2
    try:
        module = importlib.import_module(f"benchmarks.{COMMANDS[name].module}")
        return module.main(rest)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        print(f'{name} needs {package}: pip install -e ".[demo]"', file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
