"""The cells of the atlas, one for every law and transform, and how to fill them."""

import enum
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from contrib_laws import Law, Outcome, Subject, Verdict

from .subjects import Entry


class Status(enum.Enum):
    """The verdict of a cell over all seeds."""

    HOLDS = "holds"
    BREACH = "fails: a defect"
    FAILS = "fails, but is not declared: no defect"
    NONE = "does not apply"
    UNSTEADY = "differs between seeds"


@dataclass(frozen=True)
class Cell:
    """The outcomes of checking a law for a transform.

    **Arguments:**

    - `law`: the law.
    - `promised`: whether it belongs to the contract or the transform declares it.
    - `outcomes`: the outcome for each seed.
    """

    law: Law
    promised: bool
    outcomes: tuple[Outcome, ...]

    @property
    def status(self) -> Status:
        """The status over all seeds: a law holds if it holds for all."""
        verdicts = {outcome.verdict for outcome in self.outcomes}
        if len(verdicts) > 1:
            return Status.UNSTEADY
        if verdicts == {Verdict.FAILS}:
            return Status.BREACH if self.promised else Status.FAILS
        return Status.HOLDS if verdicts == {Verdict.HOLDS} else Status.NONE

    @property
    def told(self) -> Outcome:
        """The most telling outcome: the first failure if there is one."""
        failures = [x for x in self.outcomes if x.verdict is Verdict.FAILS]
        return [*failures, *self.outcomes][0]


@dataclass
class Row:
    """A transform and its cells by law. `error` tells why it could not be checked."""

    name: str
    entry: Entry
    cells: dict[str, Cell] = field(default_factory=dict)
    error: str = ""
    traces: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Atlas:
    """All rows, and the settings that they were made with."""

    laws: tuple[Law, ...]
    examples: int
    seeds: int
    rows: list[Row] = field(default_factory=list)

    @property
    def title(self) -> str:
        """A title in one line."""
        return (
            f"{_count(len(self.rows), 'transform')}, {_count(len(self.laws), 'law')}, "
            f"{_count(self.examples, 'case')} drawn for each, "
            f"{_count(self.seeds, 'seed')}"
        )

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """The rows of each group of transforms."""
        for group in dict.fromkeys(row.entry.group for row in self.rows):
            yield group, [row for row in self.rows if row.entry.group == group]

    def law_groups(self) -> Iterator[tuple[str, list[Law]]]:
        """The laws of each group of laws."""
        for group in dict.fromkeys(law.group for law in self.laws):
            yield group, [law for law in self.laws if law.group == group]

    def unsteady(self) -> list[tuple[Row, Cell]]:
        """The cells that differ between seeds."""
        cells = [(row, cell) for row in self.rows for cell in row.cells.values()]
        return [x for x in cells if x[1].status is Status.UNSTEADY]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def fill(row: Row, laws: Iterable[Law], examples: int, seeds: int) -> None:
    """Checks all laws for the transform of a row, with seeds from 0."""
    began = time.perf_counter()
    try:
        subject = row.entry.subject()
        declared = subject.rule.laws
        for law in laws:
            promised = law.group == "contract" or law.name in declared
            outcomes = tuple(_check(law, subject, examples, k) for k in range(seeds))
            row.cells[law.name] = Cell(law, promised, outcomes)
        row.traces = subject.traces
    except Exception as error:
        row.cells.clear()
        row.error = " ".join([f"{type(error).__name__}:", *str(error).split()])
    row.seconds = time.perf_counter() - began


def _check(law: Law, subject: Subject, examples: int, seed: int) -> Outcome:
    # Optax casts complex numbers to real ones, and NumPy warns at every step.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return law.check(subject, examples=examples, seed=seed)
