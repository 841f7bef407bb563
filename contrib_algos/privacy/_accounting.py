"""Privacy accounting: epsilon and delta of DP-SGD, computed by dp-accounting."""

import math
import operator
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, TypeAlias

from contrib_core import RealLike


# With this noise multiplier, the epsilon of a single step is already 50 or more.
_LEAST_NOISE = 0.1

Accountant: TypeAlias = Literal["pld", "rdp"]
"""How privacy losses are added up: as distributions, or as Rényi divergences."""


def epsilon(
    *,
    steps: SupportsIndex,
    sampling_prob: RealLike,
    noise_multiplier: RealLike,
    delta: RealLike,
    accountant: Accountant = "pld",
) -> float:
    """The epsilon at `delta` of `steps` steps of DP-SGD with Poisson sampling.

    Two data sets are neighbours if one of them has one more example. Every step takes
    each example with probability `sampling_prob`, independently, as the sampler of
    `docs/privacy.md` does. The result does not hold for shuffled batches of a fixed
    size.

    ```python
    >>> from contrib_algos import epsilon
    >>> round(epsilon(steps=1, sampling_prob=1.0, noise_multiplier=4.0, delta=1e-5), 4)
    0.9263

    ```

    **Arguments:**

    - `steps`: the number of steps, 0 or more.
    - `sampling_prob`: the probability of each example at each step, in [0, 1].
    - `noise_multiplier`: the standard deviation of the noise in the sum, divided by the
        clipping norm; dimensionless. 0 gives no privacy.
    - `delta`: the delta of the guarantee, in (0, 1).
    - `accountant`: `"pld"` or `"rdp"`. `"pld"` tracks the distribution of privacy
        losses. It is exact up to a discretisation error, which is added to the result.
        `"rdp"` is Rényi differential privacy, a looser bound. For noise below 0.1 it is
        always used.

    **Returns:** epsilon, at least 0. It is 0 for 0 steps or a `sampling_prob` of 0, and
    otherwise infinite for noise 0.

    **Raises:** `ImportError` without dp-accounting (it names the extra to install), and
    `ValueError` for arguments out of range.
    """
    steps, q, delta = _checked("epsilon", steps, sampling_prob, delta)
    noise_multiplier = float(noise_multiplier)
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(
            "epsilon: `noise_multiplier` must be at least 0, and finite; got "
            f"{noise_multiplier!r}."
        )
    # With less noise, the distributions of privacy losses would not fit into memory.
    is_little = noise_multiplier < _LEAST_NOISE
    make = _accountant("epsilon", "rdp" if is_little else accountant)
    if steps == 0 or q == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    return _epsilon(make, _run(steps, q, noise_multiplier), delta)


def calibrate_noise(
    *,
    steps: SupportsIndex,
    sampling_prob: RealLike,
    epsilon: RealLike,
    delta: RealLike,
    accountant: Accountant = "pld",
) -> float:
    """The least noise multiplier at which DP-SGD satisfies `epsilon` at `delta`.

    It is the inverse of [`contrib_algos.epsilon`][], accurate to a relative 1e-5 and
    rounded upwards: its epsilon never exceeds `epsilon`.

    ```python
    >>> from contrib_algos import calibrate_noise
    >>> noise = calibrate_noise(steps=1, sampling_prob=1.0, epsilon=1.0, delta=1e-5)
    >>> round(noise, 3)
    3.731

    ```

    **Arguments:** as for [`contrib_algos.epsilon`][]; `epsilon` is above 0.

    **Returns:** the noise multiplier, at least 0.1. It is 0 for 0 steps or a
    `sampling_prob` of 0.

    **Raises:** `ImportError` and `ValueError` as for [`contrib_algos.epsilon`][].
    """
    caller = "calibrate_noise"
    steps, q, delta = _checked(caller, steps, sampling_prob, delta)
    epsilon = float(epsilon)
    if not 0 < epsilon < math.inf:
        raise ValueError(
            f"{caller}: `epsilon` must be above 0, and finite; got {epsilon}."
        )
    make = _accountant(caller, accountant)
    if steps == 0 or q == 0:
        return 0.0

    import dp_accounting

    def noise_of(make: Callable[[], Any], lowest: float, guess: float) -> float:
        return dp_accounting.calibrate_dp_mechanism(
            make,
            lambda noise: _run(steps, q, noise),
            epsilon,
            delta,
            dp_accounting.LowerEndpointAndGuess(lowest, guess),
            tol=1e-5 * guess,
        )

    def is_kept(make: Callable[[], Any], noise: float) -> bool:
        return _epsilon(make, _run(steps, q, noise), delta) <= epsilon

    quick = make if accountant == "rdp" else _rdp_of_whole_orders
    if is_kept(quick, _LEAST_NOISE):
        return _LEAST_NOISE
    guess = noise_of(quick, _LEAST_NOISE, 1.0)
    if accountant == "rdp":
        return guess
    # Search downwards, because distributions take much memory if the noise is small.
    lowest = max(guess / 2, _LEAST_NOISE)
    while lowest > _LEAST_NOISE and is_kept(make, lowest):
        lowest = max(lowest / 2, _LEAST_NOISE)
    if lowest == _LEAST_NOISE and is_kept(make, lowest):
        return lowest
    return noise_of(make, lowest, guess)


def _rdp_of_whole_orders() -> Any:
    """An RDP accountant of whole orders: quick, and without the series of fractional
    orders, which do not always converge."""
    from dp_accounting.rdp import RdpAccountant

    return RdpAccountant(range(2, 257))


def _run(steps: int, sampling_prob: float, noise_multiplier: float) -> Any:
    """All accesses to the data, as an event of dp-accounting."""
    from dp_accounting import (
        GaussianDpEvent,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
    )

    step = GaussianDpEvent(noise_multiplier)
    if sampling_prob < 1:
        step = PoissonSampledDpEvent(sampling_prob, step)
    return SelfComposedDpEvent(step, steps)


def _epsilon(make: Callable[[], Any], run: Any, delta: float) -> float:
    return max(0.0, float(make().compose(run).get_epsilon(delta)))


def _accountant(caller: str, name: str) -> Callable[[], Any]:
    try:
        from dp_accounting import pld, rdp
    except ImportError as error:
        raise ImportError(
            f'{caller} needs dp-accounting: pip install "contrib-algebra[dp]".'
        ) from error
    accountants = {"pld": pld.PLDAccountant, "rdp": rdp.RdpAccountant}
    if name not in accountants:
        raise ValueError(
            f"{caller}: `accountant` must be 'pld' or 'rdp'; got {name!r}."
        )
    return accountants[name]


def _checked(
    caller: str, steps: Any, sampling_prob: Any, delta: Any
) -> tuple[int, float, float]:
    if not hasattr(steps, "__index__") or operator.index(steps) < 0:
        raise ValueError(
            f"{caller}: `steps` must be a whole number >= 0; got {steps!r}."
        )
    if not 0 <= sampling_prob <= 1:
        raise ValueError(
            f"{caller}: `sampling_prob` must be in [0, 1]; got {sampling_prob!r}."
        )
    if not 0 < delta < 1:
        raise ValueError(f"{caller}: `delta` must be in (0, 1); got {delta!r}.")
    return operator.index(steps), float(sampling_prob), float(delta)
