"""No attack refutes the claims of private gradients; attacks find broken mechanisms."""

from collections.abc import Callable
from typing import Any

import pytest
from support.audit import audit, MECHANISMS, SCENARIOS
from support.mutants_privacy import MUTANTS
from support.privacy_checks import CHECKS


def _sample(names: Any, *sample: str) -> list[Any]:
    """Parameters for all names; those outside of the sample are thorough."""
    return [
        pytest.param(name, marks=() if name in sample else pytest.mark.thorough)
        for name in names
    ]


# In the scenario "nan" the canary adds nothing, so that there is nothing to find; see
# `check_absence`.
SEEN = [name for name in SCENARIOS if name != "nan"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("scenario", _sample(SEEN, "long"))
def test_no_attack_refutes_the_claim(scenario: str, mechanism: str):
    result = audit(MECHANISMS[mechanism], SCENARIOS[scenario])
    assert not result.refuted, result
    assert result.tight, result


@pytest.mark.parametrize("check", CHECKS)
def test_exact_checks_hold(check: Callable[[], None]):
    check()


@pytest.mark.parametrize(
    "name",
    _sample(
        MUTANTS,
        *("noise_is_a_tenth_less", "nan_is_not_clipped"),
        *(name for name, case in MUTANTS.items() if case.check),
    ),
)
def test_mutant_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    case = MUTANTS[name]
    case.apply(monkeypatch)
    if case.check:
        with pytest.raises(AssertionError):
            case.check()
        return
    result = audit(MECHANISMS[case.mechanism], SCENARIOS[case.scenario])
    assert result.refuted != case.excess, result
    assert result.tight != case.excess, result
