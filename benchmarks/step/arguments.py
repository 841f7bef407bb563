"""The command line and the JSON file of the measurements of a step."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrib_core import Transform
from contrib_wrappers import bucketed

from .. import report, trees
from .rules import RULES


def parser(command: str, summary: str, rules: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments of every measurement; `rules` are the default ones."""
    parser = argparse.ArgumentParser(f"python -m benchmarks {command}", None, summary)
    parser.add_argument(
        "--rules",
        type=_rules,
        default=list(rules),
        help=f"separated by commas, from: {', '.join(RULES)}; "
        f"default {'all' if len(rules) == len(RULES) else ','.join(rules)}",
    )
    report.add_out(parser)
    return parser


def add_tree(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the arguments that `shapes` reads."""
    parser.add_argument(
        "--tree",
        default=default,
        help="one, gpt2 (148 leaves) or leaves:N (N of 64x16); default %(default)s",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=2**24,
        help="entries of the leaf of the tree `one`; default %(default)s",
    )


def add_bucketed(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that `ours` reads."""
    parser.add_argument(
        "--bucketed",
        action="store_true",
        help="put our rules in contrib_wrappers.bucketed; optax's stay as they are",
    )


def ours(name: str, args: argparse.Namespace) -> Transform:
    """Our rule of this name, bucketed if the command line asks for it."""
    rule = RULES[name].ours
    return bucketed(rule) if args.bucketed else rule


def shapes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> trees.Shapes:
    """The tree of the command line; an unknown one ends the program."""
    try:
        return trees.shapes(args.tree, args.size)
    except ValueError as error:
        parser.error(str(error))


def described(args: argparse.Namespace) -> str:
    """The tree of the command line for a title, and whether our rules are bucketed."""
    return args.tree + (", ours bucketed" if args.bucketed else "")


def write_json(
    command: str, args: argparse.Namespace, rows: dict[str, Any], shapes: trees.Shapes
) -> Path:
    """Writes the figures and what they were measured on; prints the path and returns
    it.

    **Arguments:**

    - `args`: the command line. `args.tree` is the name of the tree.
    - `rows`: the figures of each rule.
    - `shapes`: the shapes of the parameters.
    """
    is_bucketed = getattr(args, "bucketed", False)
    name = f"{command}-{args.tree.replace(':', '-')}"
    content = {
        "command": command,
        "tree": args.tree,
        "parameters": trees.number_of_entries(shapes),
        "bucketed": is_bucketed,
        **report.machine(),
        "rules": rows,
    }
    suffix = "-bucketed" if is_bucketed else ""
    return report.write_json(args.out, f"{name}{suffix}.json", content)


def _rules(names: str) -> list[str]:
    chosen = names.split(",")
    for name in chosen:
        if name not in RULES:
            raise argparse.ArgumentTypeError(
                f"unknown rule {name!r}; choose from: {', '.join(RULES)}"
            )
    return chosen
