"""`python -m benchmarks atlas`: which transform of ours and optax obeys which law."""

import argparse
from collections.abc import Iterable
from pathlib import Path


def main(argv: list[str]) -> int:
    """Checks every law for every transform and reports; returns the exit code."""
    # Imported late, because it needs an extra.
    from contrib_laws import LAWS, provide_devices

    from .run import run
    from .subjects import SUBJECTS

    provide_devices()
    parser = _parser(SUBJECTS, LAWS)
    args = parser.parse_args(argv)
    subjects = _chosen(parser, args.subjects, SUBJECTS)
    laws = _chosen(parser, args.laws, LAWS)
    if args.write_docs and (len(subjects), len(laws)) != (len(SUBJECTS), len(LAWS)):
        parser.error("--write-docs is for all transforms and all laws")
    return run(subjects, laws, args.examples, args.seeds, args.out, args.write_docs)


def _parser(subjects: Iterable[str], laws: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks atlas",
        description="Check every rule and wrapper, ours and those of optax.contrib, "
        "against every law, for a table, a picture, and counterexamples. The whole "
        "atlas takes about half an hour on two cores.",
    )
    for option, names in {"--subjects": subjects, "--laws": laws}.items():
        parser.add_argument(
            option,
            nargs="+",
            default=["all"],
            metavar="NAME",
            help=f"some of {', '.join(names)}; default all",
        )
    parser.add_argument(
        "--examples",
        type=_positive,
        default=20,
        help="how many cases to draw for each law; default %(default)s",
    )
    parser.add_argument(
        "--seeds",
        type=_positive,
        default=1,
        help="how many times to draw all cases anew; differences are listed; "
        "default %(default)s",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        help="folder for atlas.png and atlas.json; default %(default)s",
    )
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="also write the table and the picture into docs/laws.md",
    )
    return parser


def _chosen(
    parser: argparse.ArgumentParser, given: list[str], known: Iterable[str]
) -> list[str]:
    """Names separated by spaces or commas, each once; exits if one is unknown."""
    known = list(known)
    names = list(dict.fromkeys(",".join(given).split(",")))
    for name in names:
        if name not in {"all", *known}:
            parser.error(f"unknown name {name!r}; choose from: {', '.join(known)}")
    return known if "all" in names else names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number
