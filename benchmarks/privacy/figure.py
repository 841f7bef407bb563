"""A row of the table of private training."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A number of ours, beside the same number of optax and of code written by hand.

    **Arguments:**

    - `most`: the goal for ours, which `--check` enforces.
    - `about`: the number that theory predicts, which is not checked.
    """

    ours: float | None
    peer: float | None = None
    by_hand: float | None = None
    most: float | None = None
    about: float | None = None

    def cells(self) -> list[str]:
        """The three numbers and the goal."""
        goal = "-"
        if self.most is not None:
            goal = "0" if self.most == 0 else f"<= {self.most:.6g}"
        elif self.about is not None:
            goal = f"about {number(self.about)}"
        return [*map(number, (self.ours, self.peer, self.by_hand)), goal]

    def is_missed(self) -> bool:
        """Whether there is a goal and ours is above it, or NaN."""
        # Not `self.ours > self.most`, which is false for NaN.
        return self.most is not None and not (
            self.ours is not None and self.ours <= self.most
        )


def number(x: float | None) -> str:
    """`x` for the table; a dash stands for `None`."""
    if x is None:
        return "-"
    return f"{x:,}" if isinstance(x, int) else f"{x:.6g}"
