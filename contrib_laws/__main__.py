"""`python -m contrib_laws MODULE:NAME`: checks a transform from the command line."""

import argparse
import contextlib
import dataclasses
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ._check import check_all, Progress, select
from ._law import Law, Outcome
from ._registry import LAWS
from ._report import Report
from ._spec import resolve
from .contract import provide_devices


_EPILOG = """\
examples:
  python -m contrib_laws contrib_algos:prodigy
  python -m contrib_laws "contrib_algos:adam(0.1)" --laws contract,rotation
  python -m contrib_laws "optax.contrib:sam(optax.sgd(0.1), normalize())"
  python -m contrib_laws optax.contrib:prodigy --guess estim_lr0 \\
      --term monotone.distance=estim_lr
  python -m contrib_laws "mypkg.rules:MyRule()" --declared translation,units

The exit status is 0 if the transform is lawful, 1 if it breaks the contract or a
declared law, and 2 if there is nothing to check."""


def main(argv: Sequence[str] | None = None) -> int:
    """Checks what the command line asks for, and returns the exit status."""
    args = _parser().parse_args(argv)
    if args.list:
        _print_laws()
        return 0
    provide_devices()
    try:
        laws = select(None if args.laws is None else _split(args.laws))
        declared = None
        if args.declared is not None:
            declared = [law.name for law in select(_split(args.declared))]
        subject = resolve(args.spec, guess=args.guess, terms=_terms(args.term))
    except ValueError as error:
        return _refuse(str(error))
    if not laws:
        return _refuse("--laws names no law; --list prints the laws.")
    if declared is None:
        declared = subject.rule.laws
    with _progress(len(laws)) as progress:
        report = check_all(subject, laws, declared, args.examples, args.seed, progress)
    report = dataclasses.replace(report, name=args.spec)
    _print_report(report, args.all)
    if args.json is not None:
        try:
            args.json.write_text(report.to_json(), encoding="utf-8")
        except OSError as error:
            return _refuse(f"cannot write {args.json}: {error.strerror}")
    return 0 if report.is_lawful else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m contrib_laws",
        description="Checks a transform, of this distribution, of optax or your own, "
        "against laws.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "spec",
        nargs="?",
        metavar="MODULE:NAME",
        help="a transform, a function that makes one, or an expression in the names of "
        "that module",
    )
    what.add_argument("--list", action="store_true", help="print all laws")
    parser.add_argument(
        "--laws",
        metavar="NAMES",
        help="laws or groups (contract, algebra, wrapper) to check, separated by "
        "commas; default: all",
    )
    parser.add_argument(
        "--declared",
        metavar="NAMES",
        help="laws or groups that it must obey besides the contract; default: those "
        "that it declares itself",
    )
    parser.add_argument(
        "--guess",
        metavar="NAME",
        help="the parameter that is its first guess of the distance to the solution; "
        "default: the parameter annotated as one",
    )
    parser.add_argument(
        "--term",
        action="append",
        default=[],
        metavar="LAW.TERM=FIELD",
        help="the field or parameter that stands for a term of a law; repeatable",
    )
    parser.add_argument(
        "--examples",
        type=_positive,
        default=20,
        metavar="N",
        help="how many cases to draw for each law (default: 20)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="the seed to draw cases with (default: 0)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also print counterexamples to laws that are not declared",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the report to a file"
    )
    return parser


def _terms(given: Sequence[str]) -> dict[str, dict[str, str]]:
    """The terms that options `LAW.TERM=FIELD` name.

    **Raises:** `ValueError` for another form, or for an unknown law.
    """
    terms: dict[str, dict[str, str]] = {}
    for text in given:
        match = re.fullmatch(r"(\w+)\.(\w+)=(\w+)", text)
        if match is None:
            raise ValueError(
                f"--term {text}: write LAW.TERM=FIELD, as in monotone.distance=d."
            )
        law, term, field = match.groups()
        for known in select(law):
            terms.setdefault(known.name, {})[term] = field
    return terms


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _refuse(why: str) -> int:
    print(f"python -m contrib_laws: {why}", file=sys.stderr)
    return 2


def _print_laws() -> None:
    width = max(map(len, LAWS))
    indent = " " * (width + 4)
    columns = min(shutil.get_terminal_size((88, 24)).columns, 100)
    for group in dict.fromkeys(law.group for law in LAWS.values()):
        print(group)
        for law in select(group):
            text = f"  {law.name:{width}}  {law.sentence}"
            print(textwrap.fill(text, columns, subsequent_indent=indent))


def _terminal(stderr: bool = False) -> Any:
    """A `rich.console.Console`, if rich is installed and the stream is a terminal."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=stderr)
    return console if console.is_terminal else None


def _print_report(report: Report, every: bool) -> None:
    console = _terminal()
    if console is None:
        print(report.text(every))
        return
    console.print(report.rich_table())
    # Code is not wrapped, so that it can be copied.
    console.print(report.rich_details(every), soft_wrap=True)


@contextlib.contextmanager
def _progress(number: int) -> Iterator[Progress]:
    """Tells the progress on stderr: a bar on a terminal, else lines."""
    console = _terminal(stderr=True)
    if console is None:
        yield _Lines(number)
        return
    from rich import progress

    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description:14}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=number)

        def advance(law: Law, outcome: Outcome | None) -> None:
            done = 0 if outcome is None else 1
            bar.update(task, description=law.name, advance=done)

        yield advance


class _Lines:
    """Prints a line for each law after its check."""

    def __init__(self, number: int):
        self.number, self.done = number, 0

    def __call__(self, law: Law, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        self.done += 1
        count = f"[{self.done:{len(str(self.number))}}/{self.number}]"
        line = f"{count} {law.name:14}  {outcome.verdict.value:14}  "
        print(f"{line}{outcome.seconds:5.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # The status that shells give an interrupt; no traceback.
