"""`trace`: the calls of our own functions, and the time to trace an update."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks.__main__ import main
from benchmarks.step.rules import Rule, RULES
from benchmarks.step.trace import calls
from contrib_core import tree


HERE = [Path(__file__).parent]


def one():
    return 1


def test_calls_in_a_folder_are_counted():
    def five():
        return one() + sum(map(lambda x: x, [1, 2])) + jnp.add(1, 1)

    # Itself, `one` and two of the lambda.
    assert calls(five, HERE) == 4
    assert calls(five, []) == 0
    assert calls(five, [HERE[0] / "other"]) == 0


def test_every_resumption_of_a_generator_counts():
    # The lambda, and a generator that is resumed for two numbers and its end.
    assert calls(lambda: sum(x for x in (1, 2)), HERE) == 4


def test_a_profiler_is_restored():
    def profile(frame, event, arg):
        pass

    def fail():
        raise ValueError

    previous = sys.getprofile()
    try:
        sys.setprofile(profile)
        with pytest.raises(ValueError):
            calls(fail, HERE)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(previous)


def known(number: int, function=tree.size) -> optax.GradientTransformation:
    """A rule of a user: an update calls a function of ours `number` times."""

    def update(updates, state, params=None):
        for _ in range(number):
            function(updates)
        return updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_trace(run, tmp_path, monkeypatch, capsys):
    each = calls(lambda: tree.size(jnp.ones(3)), [Path(tree.__file__).parent])
    assert each > 0
    rules = {
        "none": Rule(known(0), None, "g > x"),
        "three": Rule(known(3), None, "g > x"),
        "first call": Rule(known(2, jax.jit(tree.zeros_like)), None, "g > x"),
        "slow": Rule(known(400, tree.zeros_like), known(0), "g > x"),
    }
    for name, rule in rules.items():
        monkeypatch.setitem(RULES, name, rule)
    names = [*rules, "adam", "momo"]
    argv = ["--leaves", "20", "--rounds", "2", "--rules", ",".join(names)]
    code, report = run("trace", *argv)
    assert code == 0
    assert (report["command"], report["tree"]) == ("trace", "leaves:20")
    rows = report["rules"]
    assert rows["none"]["calls"] == 0
    assert rows["three"]["calls"] == 3 * each
    # Only the warm-up traces it.
    assert rows["first call"]["calls"] == 0
    assert rows["none"]["peer_seconds"] is None
    assert rows["slow"]["seconds"] > rows["slow"]["peer_seconds"] > 0
    assert rows["adam"]["calls"] > 0 and rows["momo"]["peer_seconds"] > 0
    out = capsys.readouterr().out
    assert "least of 2 rounds" in out and str(tmp_path / "out.json") in out


def test_counts_do_not_change(run):
    argv = ["trace", "--rules", "prodigy,dpsgd", "--leaves", "1", "--rounds", "1"]
    first, second = (run(*argv)[1]["rules"] for _ in range(2))
    for name in ("prodigy", "dpsgd"):
        assert first[name]["calls"] == second[name]["calls"] > 0


@pytest.mark.parametrize("option", ["--leaves", "--rounds"])
def test_numbers_are_positive(option, capsys):
    with pytest.raises(SystemExit):
        main(["trace", option, "0"])
    assert f"{option} must be at least 1" in capsys.readouterr().err
