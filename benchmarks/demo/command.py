"""The command line of `python -m benchmarks demo`."""

import argparse
from pathlib import Path

from .methods import METHODS


def main(argv: list[str]) -> int:
    """Trains with every method and reports; returns the exit code."""
    args = _parse(argv)
    # Imported here, because it needs the extra `demo` and `--help` does not.
    from .run import run

    return run(args.methods, args.steps, args.seeds, args.out, args.progress)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks demo",
        description="Train a small convolutional network on handwritten digits: with "
        "adam at 8 learning rates, and with methods that need no tuning.",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["all"],
        metavar="METHOD",
        help=f"from: {', '.join(METHODS)}; default all",
    )
    parser.add_argument(
        "--steps",
        type=_positive,
        default=600,
        help="training steps, each on 128 images; default %(default)s",
    )
    parser.add_argument(
        "--seeds",
        type=_positive,
        default=3,
        help="networks for each method and learning rate; default %(default)s",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        help="folder to write demo.png and demo.json in; default %(default)s",
    )
    parser.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="no progress bars, just the table",
    )
    args = parser.parse_args(argv)
    args.methods = _chosen(parser, args.methods)
    return args


def _chosen(parser: argparse.ArgumentParser, given: list[str]) -> list[str]:
    """The names, separated by spaces or commas, each once; exits for an unknown one."""
    names = list(dict.fromkeys(",".join(given).split(",")))
    for name in names:
        if name not in {"all", *METHODS}:
            parser.error(f"unknown method {name!r}; choose from: {', '.join(METHODS)}")
    return list(METHODS) if "all" in names else names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number
