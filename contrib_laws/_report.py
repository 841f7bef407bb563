"""The outcomes of checking many laws, for people and for programs."""

import difflib
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from ._law import Outcome, Verdict
from ._registry import LAWS


_WIDTH = 100
_CODE_WIDTH = 88
_VERDICT = max(len(verdict.value) for verdict in Verdict)
# Rows of a table are short; the full reason stands beside the counterexample.
_LINES = 3

_SECTIONS = {
    "contract": "contract (for every transform)",
    "declared": "declared (by this transform)",
    "undeclared": "not declared (failing is no defect)",
    "unsuited": "do not apply",
}


class _Row(NamedTuple):
    law: str
    verdict: str
    text: str
    style: str  # The style of the verdict, for rich.


@dataclass(frozen=True, repr=False)
class Report:
    """The outcomes of checking a transform.

    `print` it, also in a notebook; `rich.print` it for colours.

    **Arguments:**

    - `name`: the name of the transform.
    - `outcomes`: the outcome of each law that was checked.
    - `declared`: the names of the laws that it must obey besides the contract.
    - `compilations`: how many programs were compiled.
    - `seconds`: how long the check took.
    - `seed`, `examples`: the arguments of `check`.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    declared: frozenset[str]
    compilations: int
    seconds: float
    seed: int
    examples: int

    def __getitem__(self, law: str) -> Outcome:
        """The outcome of a law, by its name."""
        return {outcome.law.name: outcome for outcome in self.outcomes}[law]

    @property
    def failures(self) -> dict[str, str]:
        """By name of the law, the reasons why the transform is unlawful.

        It breaks the contract or a declared law, or it declares a law that does not
        apply, so nobody can check it, or a law that does not exist.
        """
        found = {}
        for outcome in filter(self._is_promised, self.outcomes):
            if outcome.verdict is Verdict.FAILS:
                found[outcome.law.name] = outcome.note
            elif outcome.verdict is Verdict.DOES_NOT_APPLY and self._declares(outcome):
                found[outcome.law.name] = (
                    f"declared, but not applicable: {outcome.note}"
                )
        for name in sorted(self.declared - LAWS.keys()):
            found[name] = f"there is no such law{did_you_mean(name, LAWS)}"
        return found

    @property
    def undeclared(self) -> tuple[str, ...]:
        """The laws that hold although they are not declared."""
        return tuple(
            outcome.law.name
            for outcome in self.outcomes
            if outcome.verdict is Verdict.HOLDS and not self._is_promised(outcome)
        )

    @property
    def is_lawful(self) -> bool:
        """Whether every promise is kept."""
        return not self.failures

    @property
    def summary(self) -> str:
        """One line: whether it is lawful, and how long the check took."""
        cost = f"({_count(self.compilations, 'compilation')}, {self.seconds:.0f} s)"
        if self.failures:
            return f"NOT lawful: {', '.join(self.failures)} {cost}"
        held = [x for x in self.outcomes if x.verdict is Verdict.HOLDS]
        declared = sum(map(self._declares, held))
        contract = sum(map(self._is_promised, held)) - declared
        kinds = {"contract law": contract, "declared law": declared}
        counts = [_count(n, noun) for noun, n in kinds.items() if n]
        if not counts:
            return f"lawful: none of the checked laws is promised {cost}"
        verb = "holds" if contract + declared == 1 else "hold"
        return f"lawful: {' and '.join(counts)} {verb} {cost}"

    def _declares(self, outcome: Outcome) -> bool:
        return outcome.law.name in self.declared

    def _is_promised(self, outcome: Outcome) -> bool:
        return outcome.law.group == "contract" or self._declares(outcome)

    def counterexamples(self, every: bool = False) -> dict[str, str]:
        """By name of the law, a failing test as Python code, below comments with the
        reason.

        **Arguments:**

        - `every`: also tests of laws that are not promised.
        """
        defects = {
            name: _commented(f"{name}: {why}")
            for name, why in self.failures.items()
            if name not in LAWS
        }
        failing = [x for x in self.outcomes if x.verdict is Verdict.FAILS]
        promised = [x for x in self.outcomes if x.law.name in self.failures]
        others = [x for x in failing if not self._is_promised(x)] if every else []
        return {
            x.law.name: _commented(
                f"{x.law.name}: {x.law.sentence}",
                self.failures.get(x.law.name, x.note),
            )
            + x.counterexample
            for x in (*promised, *others)
        } | defects

    # As text

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def text(self, every: bool = False) -> str:
        """The table, the counterexamples, and the summary, at most 100 columns wide.

        **Arguments:**

        - `every`: also the counterexamples of laws that are not promised.
        """
        codes = [code.rstrip() for code in self.counterexamples(every).values()]
        return "\n\n\n".join(["\n".join(self._table()), *codes, self._ending(every)])

    def _table(self) -> Iterator[str]:
        yield self.name
        for title, rows in self._sections().items():
            yield f"\n{title}"
            for row in rows:
                first = f"  {row.law:{self._width}}  {row.verdict:{_VERDICT}}  "
                yield from _hanging(first, row.text)

    @property
    def _width(self) -> int:
        """The length of the longest name."""
        names = [*self.declared, *(outcome.law.name for outcome in self.outcomes)]
        return max(map(len, names), default=0)

    def _sections(self) -> dict[str, list[_Row]]:
        rows: dict[str, list[_Row]] = {title: [] for title in _SECTIONS.values()}
        for outcome in self.outcomes:
            rows[_SECTIONS[self._section(outcome)]].append(self._row(outcome))
        for name in sorted(self.declared - LAWS.keys()):
            row = _Row(name, "UNKNOWN", self.failures[name], "bold red")
            rows[_SECTIONS["declared"]].append(row)
        return {title: found for title, found in rows.items() if found}

    def _section(self, outcome: Outcome) -> str:
        if outcome.law.group == "contract":
            return "contract"
        if self._declares(outcome):
            return "declared"
        is_unsuited = outcome.verdict is Verdict.DOES_NOT_APPLY
        return "unsuited" if is_unsuited else "undeclared"

    def _row(self, outcome: Outcome) -> _Row:
        name, verdict = outcome.law.name, outcome.verdict.value
        if name in self.failures:
            return _Row(name, verdict.upper(), outcome.note, "bold red")
        # A law that holds says what it promises, unless there is a qualification.
        text = outcome.note or outcome.law.sentence
        if outcome.verdict is not Verdict.HOLDS:
            return _Row(name, verdict, text, "dim")
        return _Row(name, verdict, text, "green")

    def _ending(self, every: bool) -> str:
        lines = []
        if self.undeclared:
            lines.append(f"Not declared, but hold: {', '.join(self.undeclared)}.")
        failing = [x.law.name for x in self.outcomes if x.verdict is Verdict.FAILS]
        others = ", ".join(name for name in failing if name not in self.failures)
        if others and not every:
            how = "counterexamples: --all, or report.text(every=True)"
            lines.append(f"Not declared, and fail: {others} ({how}).")
        lines.append(self.summary)
        return "\n".join(line for text in lines for line in _hanging("", text))

    # In colour

    def rich_table(self) -> Any:
        """The table as a `rich.table.Table`."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid()
        table.add_row(Text(self.name, "bold"))
        for title, rows in self._sections().items():
            section = Table.grid(padding=(0, 2, 0, 0))
            section.add_column(width=self._width + 2, no_wrap=True)
            section.add_column(width=_VERDICT, no_wrap=True)
            section.add_column(overflow="fold")
            for row in rows:
                text = textwrap.shorten(row.text, _LINES * _WIDTH, placeholder=" …")
                dim = "dim" if row.style == "dim" else ""
                cells = (f"  {row.law}", dim), (row.verdict, row.style), (text, dim)
                section.add_row(*(Text(*cell) for cell in cells))
            table.add_row()
            table.add_row(Text(title, "bold"))
            table.add_row(section)
        return table

    def rich_details(self, every: bool = False) -> Any:
        """The text below the table as a `rich.text.Text`.

        **Arguments:**

        - `every`: also the counterexamples of laws that are not promised.
        """
        from rich.syntax import Syntax
        from rich.text import Text

        python = Syntax("", "python", theme="ansi_dark", background_color="default")
        codes = [python.highlight(c) for c in self.counterexamples(every).values()]
        style = "bold green" if self.is_lawful else "bold red"
        ending = Text(self._ending(every))
        ending.highlight_regex(r"(?m)^(NOT )?lawful.*", style)
        ending.highlight_regex(r"^Not declared[^.]*", "yellow")
        return Text("\n\n").join([Text(), *codes, ending])

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(self.rich_table(), self.rich_details())

    # For programs

    def to_json(self) -> str:
        """The report as JSON, with the versions of the packages."""
        laws = [
            {
                "law": outcome.law.name,
                "group": outcome.law.group,
                "hooks": outcome.law.hooks,
                "verdict": outcome.verdict.value,
                "declared": self._declares(outcome),
                "note": outcome.note,
                "counterexample": outcome.counterexample,
                "examples": outcome.examples,
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in self.outcomes
        ]
        report = {
            "name": self.name,
            "lawful": self.is_lawful,
            "failures": self.failures,
            "undeclared": self.undeclared,
            "declared": sorted(self.declared),
            "laws": laws,
            "examples": self.examples,
            "seed": self.seed,
            "compilations": self.compilations,
            "seconds": round(self.seconds, 3),
            "versions": {n: version(n) for n in ("jax", "equinox", "hypothesis")},
        }
        return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name; empty if no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _hanging(first: str, text: str) -> list[str]:
    """`text` wrapped to the right of `first`."""
    lines = textwrap.wrap(text, _WIDTH - len(first), max_lines=_LINES, placeholder=" …")
    indent = " " * len(first)
    return [
        f"{indent if i else first}{line}".rstrip()
        for i, line in enumerate(lines or [""])
    ]


def _commented(*paragraphs: str) -> str:
    lines = [
        line for text in paragraphs for line in textwrap.wrap(text, _CODE_WIDTH - 2)
    ]
    return "".join(f"# {line}\n" for line in lines)
