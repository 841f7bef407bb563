"""`memory` and `compile`: the figures that are free of noise, and their gates."""

import jax
import optax
import pytest
from optax import contrib

from benchmarks.__main__ import main
from benchmarks.step.rules import Rule, RULES
from contrib_algos import adam, sgd


def test_memory(run, tmp_path, capsys):
    argv = ["--rules", "schedule_free_sgd,split,master_weights", "--size", "65536"]
    code, report = run("memory", *argv)
    assert code == 0
    assert (report["command"], report["tree"]) == ("memory", "one")
    assert report["parameters"] == 65536
    assert report["versions"]["optax"] == optax.__version__
    assert report["device"] == jax.devices()[0].device_kind
    rows = report["rules"]
    row = rows["schedule_free_sgd"]
    assert row["floor"] == 5
    assert row["ours"] == pytest.approx({"streams": 7, "temp": 0, "state": 1}, abs=0.01)
    assert row["peer"] == pytest.approx({"streams": 9, "temp": 1, "state": 1}, abs=0.01)
    assert rows["split"]["ours"]["state"] == pytest.approx(2, abs=0.01)
    # The parameters are bfloat16; four statistics and the copy have twice their bytes.
    assert rows["master_weights"]["ours"]["state"] == pytest.approx(10, abs=0.01)
    assert rows["master_weights"]["peer"] is None
    out = capsys.readouterr().out
    assert "schedule_free_sgd" in out and str(tmp_path / "out.json") in out
    assert "0.78" in out  # 7 streams over the peer's 9.


def test_compile(run):
    code, report = run("compile", "--rules", "sgd", "--tree", "leaves:20")
    row = report["rules"]["sgd"]
    # For each leaf: parameter, gradient and fusion, and in it two parameters, constant,
    # broadcast, multiply, add; and the tuple of all.
    assert (code, row["ours"]["instructions"]) == (0, 20 * 9 + 1)
    assert row["ours"]["growth"] == pytest.approx(181 / 19)
    assert row["peer"]["instructions"] == 181
    assert row["ours"]["seconds"] > 0


def test_compile_bucketed(run, capsys):
    argv = ["compile", "--rules", "adam", "--tree", "leaves:40"]
    _, plain = run(*argv)
    code, report = run(*argv, "--bucketed", "--check")
    assert code == 0 and report["bucketed"] and not plain["bucketed"]
    row, plain_row = report["rules"]["adam"], plain["rules"]["adam"]
    assert row["peer"]["instructions"] == plain_row["peer"]["instructions"]
    assert row["ours"]["instructions"] < 0.5 * plain_row["ours"]["instructions"]
    assert "leaves:40, ours bucketed" in capsys.readouterr().out


@pytest.mark.parametrize("tree", ["one", "leaves:15"])
def test_compile_needs_tens_of_leaves(tree, capsys):
    with pytest.raises(SystemExit):
        main(["compile", "--tree", tree])
    assert "multiple of 10" in capsys.readouterr().err


# Gates


def quadratic() -> optax.GradientTransformation:
    """A rule whose instructions grow with the square of the number of leaves."""

    def update(updates, state, params=None):
        new = {
            name: sum((1 + i * j) * g for j, g in enumerate(updates.values()))
            for i, name in enumerate(updates)
        }
        return new, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# Adam moves 10 trees here, 7 more than gradient descent.
ENOUGH = Rule(adam(0.1), optax.sgd(0.1), "g x > x", more=(7, 0))

MEMORY = ["memory", "--size", "65536"]
COMPILE = ["compile", "--tree", "leaves:20"]
PEER_SF = contrib.schedule_free_sgd(0.1)
BAD = {
    "streams": (MEMORY, Rule(adam(0.1), optax.sgd(0.1), "g x > x")),
    "streams beyond more": (
        MEMORY,
        Rule(adam(0.1), optax.sgd(0.1), "g x > x", more=(6.5, 0)),
    ),
    "temp": (MEMORY, Rule(PEER_SF, contrib.prodigy(), "g x z > x z")),
    "streams limit": (MEMORY, Rule(PEER_SF, PEER_SF, "g x z > x z", most=(7, 2))),
    "temp limit": (MEMORY, Rule(PEER_SF, None, "g x z > x z", most=(10, 0))),
    "instructions": (COMPILE, Rule(adam(0.1), optax.sgd(0.1), "g x > x")),
    "growth": (COMPILE, Rule(quadratic(), quadratic(), "g x > x")),
}


@pytest.mark.parametrize("fault", BAD)
def test_check_names_the_rule_and_the_fault(fault, run, monkeypatch, capsys):
    argv, rule = BAD[fault]
    monkeypatch.setitem(RULES, "bad", rule)
    argv = [*argv, "--rules", "sgd,bad"]
    assert run(*argv)[0] == 0, "without --check it only reports"
    assert run(*argv, "--check")[0] == 1
    failed = [s for s in capsys.readouterr().err.splitlines() if s.startswith("FAILED")]
    assert len(failed) == 1
    kind = fault.partition(" ")[0]
    assert failed[0].startswith("FAILED bad: ") and kind in failed[0]
    assert ("limit" in failed[0]) == ("limit" in fault)
    assert any(character.isdigit() for character in failed[0])


@pytest.mark.parametrize("argv", [MEMORY, COMPILE], ids=["memory", "compile"])
def test_check_passes(argv, run, monkeypatch, capsys):
    monkeypatch.setitem(RULES, "own", Rule(sgd(0.1), None, "g x > x"))
    rules = "normalize,schedule_free_sgd,own"
    if argv is MEMORY:
        monkeypatch.setitem(RULES, "more", ENOUGH)
        rules += ",more,dpsgd"
    assert run(*argv, "--rules", rules, "--check")[0] == 0
    assert "Check: passed" in capsys.readouterr().out
