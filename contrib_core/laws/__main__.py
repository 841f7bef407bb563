"""`python -m contrib_core.laws MODULE:NAME`: checks a transform from a command line."""

import argparse
import contextlib
import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ._check import check, Progress, select
from ._law import Law, Outcome
from ._registry import LAWS
from ._report import Report
from ._sharding_law import provide_devices
from ._spec import resolve


_EPILOG = """\
examples:
  python -m contrib_core.laws contrib_algos:prodigy
  python -m contrib_core.laws "contrib_algos:adam(0.1)" --laws contract,rotation
  python -m contrib_core.laws "optax.contrib:sam(optax.sgd(0.1), normalize())"
  python -m contrib_core.laws "mypkg.rules:MyRule()" --declared translation,units

The exit status is 0 if what is checked is lawful, 1 if the contract or a declared law
fails, and 2 if there is nothing to check."""


def main(argv: Sequence[str] | None = None) -> int:
    """Checks what the command line says; the exit status."""
    args = _parser().parse_args(argv)
    if args.list:
        _print_laws()
        return 0
    provide_devices()
    try:
        laws = None if args.laws is None else _split(args.laws)
        declared = None
        if args.declared is not None:
            declared = [law.name for law in select(_split(args.declared))]
        number, subject = len(select(laws)), resolve(args.spec)
    except ValueError as error:
        return _refuse(str(error))
    if not number:
        return _refuse("--laws names no law; --list says which there are.")
    with _progress(number) as progress:
        report = check(
            subject,
            laws=laws,
            declared=declared,
            examples=args.examples,
            seed=args.seed,
            progress=progress,
        )
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
        prog="python -m contrib_core.laws",
        description="Checks any transform, of ours or of optax, against laws.",
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
    what.add_argument("--list", action="store_true", help="what laws there are")
    parser.add_argument(
        "--laws",
        metavar="NAMES",
        help="which laws, or groups of them (contract, algebra, wrapper), with commas; "
        "default: all",
    )
    parser.add_argument(
        "--declared",
        metavar="NAMES",
        help="the laws that it must obey, besides the contract; default: those that it "
        "declares itself",
    )
    parser.add_argument(
        "--examples",
        type=_positive,
        default=20,
        metavar="N",
        help="how many cases are drawn for a law (default: 20)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of what is drawn (default: 0)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="print counterexamples also of laws that are not declared",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _refuse(why: str) -> int:
    print(f"python -m contrib_core.laws: {why}", file=sys.stderr)
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
    """A `rich.console.Console`, if there is rich and it is a terminal."""
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
    """Says on stderr what is being checked: a bar on a terminal, else lines."""
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
    """One line for each law, when it has been checked."""

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
        sys.exit(130)  # As shells have it; where it was then is of no interest.
