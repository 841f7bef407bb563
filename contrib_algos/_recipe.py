"""What several recipes put beside their rule."""

from contrib_core import AbstractTransform, chain, RealOrSchedule, scale


def factor(learning_rate: RealOrSchedule) -> AbstractTransform:
    """Multiplies by a learning rate of which 1 is the method of the paper: nothing at
    all for a Python 1, so that the state of the recipe is that of its rule."""
    is_one = isinstance(learning_rate, int | float) and learning_rate == 1
    return chain() if is_one else scale(learning_rate)
