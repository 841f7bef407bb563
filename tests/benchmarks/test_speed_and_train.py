"""`speed` and `train`: times of contenders that take turns."""

import json
import types

import optax
import pytest

from benchmarks import timing
from benchmarks.__main__ import main
from benchmarks.step.rules import Rule, RULES
from contrib_algos import adam, prodigy


def test_turns_go_forth_and_back():
    order = []

    def contender(name):
        return lambda: float(order.append(name) or len(order))

    times = timing.interleaved({name: contender(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abccbaabc"
    assert times == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_a_turn_is_long_enough_for_the_clock(monkeypatch):
    seconds, taken = [0.0], []

    def run(steps):
        taken.append(steps)
        seconds[0] += 0.001 * steps

    clock = types.SimpleNamespace(perf_counter=lambda: seconds[0])
    monkeypatch.setattr(timing, "time", clock)
    take = timing.turn(run)
    assert taken == [2, 2]
    assert take() == pytest.approx(0.001)
    assert taken == [2, 2, 50]


def test_spread_is_of_ratios_within_a_round():
    # The second round was disturbed, for both.
    ratios = timing.spread([1.0, 10.0, 3.0], [2.0, 20.0, 2.0])
    assert ratios == {"low": 0.5, "median": 0.5, "high": 1.5}
    assert timing.spread([3.0], [2.0]) == {"low": 1.5, "median": 1.5, "high": 1.5}


def test_speed(run, monkeypatch):
    monkeypatch.setitem(RULES, "slow", Rule(prodigy(), optax.sgd(0.1), "g x > x"))
    argv = ["--rules", "slow,split", "--size", "500000", "--rounds", "3"]
    code, report = run("speed", *argv)
    assert code == 0
    row = report["rules"]["slow"]
    assert row["seconds"] > row["peer_seconds"] > 0
    ratio = row["ratio"]
    assert 1 < ratio["median"] and ratio["low"] <= ratio["median"] <= ratio["high"]
    assert row["to_adam"]["median"] > 1 > row["peer_to_adam"]["median"]
    floor_bytes = 3 * 4 * 500_000
    assert row["bytes_per_second"] == pytest.approx(floor_bytes / row["seconds"])


@pytest.mark.usefixtures("standard_promotion")
def test_speed_bucketed(tmp_path):
    argv = ["speed", "--rules", "adam", "--tree", "leaves:10", "--rounds", "2"]
    assert main([*argv, "--bucketed", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "speed-leaves-10-bucketed.json").read_text())
    row = report["rules"]["adam"]
    assert report["bucketed"] and row["seconds"] > 0 and row["peer_seconds"] > 0


def test_train(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RULES, "own", Rule(adam(0.1), None, "g m v x > m v x"))
    size = ["--layers", "3", "--width", "4"]
    code, report = run("train", *size, "--rounds", "2", "--rules", "adam,momo,own")
    assert code == 0
    assert (report["command"], report["tree"]) == ("train", "mlp:3")
    assert report["parameters"] == 3 * (4 * 4 + 4)
    row = report["rules"]["adam"]
    contenders = {"bucketed", "ours", "peer"}
    assert set(row["seconds"]) == set(row["compile_seconds"]) == contenders
    assert all(x > 0 for x in [*row["seconds"].values(), row["compile_ratio"]])
    for name in ("ratio", "ratio_per_leaf"):
        assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]
    own = report["rules"]["own"]
    assert own["ratio"] is None and own["compile_ratio"] is None
    assert set(own["seconds"]) == {"bucketed", "ours"}
    out = capsys.readouterr().out
    assert "3 layers of 4" in out and str(tmp_path / "out.json") in out


def test_train_names_its_default_rules_and_refuses_other_dtypes(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "prodigy,dog,adam" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--rules", "split"])
    assert "split is for complex64" in capsys.readouterr().err
