"""`python -m benchmarks <command>`."""

import importlib
import sys


COMMANDS = {
    "demo": "train on handwritten digits, learning-rate-free beside a sweep of adam",
    "speed": "time of a step, ours and optax's interleaved",
    "memory": "bytes moved, temporary buffers and state, from the compiled step",
    "compile": "size of the compiled step and its growth with the number of leaves",
    "train": "time of a whole training step, ours bucketed or not, and optax's",
    "privacy": "what one example can change in a private sum, its noise, and its cost",
    "atlas": "which transform obeys which law, ours and those of optax.contrib",
}

# What `pip install -e ".[demo]"` brings.
PACKAGES = {"equinox", "jax", "jaxtyping", "matplotlib", "optax", "rich", "sklearn"}


def main(argv: list[str]) -> int:
    """Runs a command; its exit code, which is 2 where there is no such command."""
    name, *rest = argv or [""]
    if name not in COMMANDS:
        unknown = name and name not in ("-h", "--help")
        print(f"Unknown command {name!r}.\n" if unknown else "", end="")
        print("Usage: python -m benchmarks <command> [--help]\n")
        for command, summary in COMMANDS.items():
            print(f"  {command:8} {summary}")
        return 0 if name in ("-h", "--help") else 2
    try:
        return importlib.import_module(f"benchmarks.{name}").main(rest)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        print(f'{name} needs {package}: pip install -e ".[demo]"', file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
