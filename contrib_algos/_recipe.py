"""What several recipes put beside their rule."""

from contrib_core import AbstractTransform, chain, RealOrSchedule, scale


def factor(recipe: str, learning_rate: RealOrSchedule) -> AbstractTransform:
    """Multiplies by a learning rate of which 1 is the method of the paper: nothing at
    all for a Python 1, so that the state of the recipe is that of its rule.

    **Raises:** `ValueError` for a negative number or NaN, in the name of the `recipe`.
    """
    if isinstance(learning_rate, int | float):
        if not learning_rate >= 0:  # NaN neither.
            raise ValueError(
                f"{recipe}: `learning_rate` must be at least 0; got {learning_rate}."
            )
        if learning_rate == 1:
            return chain()
    return scale(learning_rate)
