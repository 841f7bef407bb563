"""The measurements: what they count, what they write, and what `--check` refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib

from benchmarks.__main__ import main
from benchmarks.rules import Rule, RULES
from benchmarks.step import bytes_accessed, compiled, instructions
from benchmarks.trees import abstract, number_of_entries, shapes
from contrib_algos import adam, prodigy, sgd


@pytest.fixture(autouse=True)
def standard_promotion():
    """As optax needs it, and as the commands find it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(tmp_path: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    """The exit code of a command and the JSON that it wrote."""
    path = tmp_path / "out.json"
    code = main([*argv, "--out", str(path)])
    return code, json.loads(path.read_text())


# What is counted.


def test_gpt2_small():
    tree = shapes("gpt2", 0)
    assert (len(tree), number_of_entries(tree)) == (148, 124_439_808)


def test_leaves():
    assert list(shapes("leaves:3", 0).values()) == 3 * [(64, 16)]
    assert shapes("one", 5) == {"x": (5,)}


@pytest.mark.parametrize(
    "rule,floor",
    [("sgd", 3), ("adam", 7), ("dog", 5), ("prodigy", 12), ("master_weights", 23)],
)
def test_floor(rule, floor):
    assert RULES[rule].floor == floor


def test_bytes_and_instructions_of_a_known_program():
    x = abstract({"x": (1000,)}, "float32")["x"]
    step = jax.jit(lambda x: jnp.sqrt(x) + 1.0).lower(x).compile()
    assert bytes_accessed(step) == 2 * 4000
    # Inside the fusion: parameter, sqrt, constant, broadcast, add; outside: parameter
    # and fusion.
    assert instructions(step) == 7


def test_step_is_in_place():
    params = abstract({"x": (1000,), "y": (10, 10)}, "float32")
    analysis: Any = compiled(adam(0.1), params).memory_analysis()
    # Parameters and two moments, and the count.
    assert analysis.alias_size_in_bytes == 3 * 4400 + 4


# What is run.


def test_memory(tmp_path, capsys):
    argv = ["--rules", "schedule_free_sgd,split,master_weights", "--size", "65536"]
    code, report = run(tmp_path, "memory", *argv)
    assert code == 0
    assert (report["command"], report["tree"]) == ("memory", "one")
    assert report["parameters"] == 65536
    assert report["versions"]["optax"] == optax.__version__
    rows = report["rules"]
    row = rows["schedule_free_sgd"]
    assert row["floor"] == 5
    assert row["ours"] == pytest.approx({"streams": 7, "temp": 0, "state": 1}, abs=0.01)
    assert row["peer"] == pytest.approx({"streams": 9, "temp": 1, "state": 1}, abs=0.01)
    assert rows["split"]["ours"]["state"] == pytest.approx(2, abs=0.01)
    # Of bfloat16: four statistics and the copy, each of twice the bytes.
    assert rows["master_weights"]["ours"]["state"] == pytest.approx(10, abs=0.01)
    assert rows["master_weights"]["peer"] is None
    out = capsys.readouterr().out
    assert "schedule_free_sgd" in out and str(tmp_path / "out.json") in out
    assert "0.78" in out  # 7 streams over the peer's 9.


def test_compile(tmp_path):
    code, report = run(tmp_path, "compile", "--rules", "sgd", "--tree", "leaves:20")
    row = report["rules"]["sgd"]
    # For each leaf: parameter, gradient and fusion, and in it two parameters, constant,
    # broadcast, multiply, add; and the tuple of all.
    assert (code, row["ours"]["instructions"]) == (0, 20 * 9 + 1)
    assert row["ours"]["growth"] == pytest.approx(181 / 19)
    assert row["peer"]["instructions"] == 181
    assert row["ours"]["seconds"] > 0


def test_speed(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "slow", Rule(prodigy(), optax.sgd(0.1), "g x > x"))
    argv = ["--rules", "slow,split", "--size", "500000", "--rounds", "3"]
    code, report = run(tmp_path, "speed", *argv)
    assert code == 0
    row = report["rules"]["slow"]
    assert row["seconds"] > row["peer_seconds"] > 0
    ratio = row["ratio"]
    assert 1 < ratio["median"] and ratio["low"] <= ratio["median"] <= ratio["high"]
    assert row["to_adam"]["median"] > 1 > row["peer_to_adam"]["median"]
    floor_bytes = 3 * 4 * 500_000
    assert row["bytes_per_second"] == pytest.approx(floor_bytes / row["seconds"])


def test_plain_table_and_folder_without_rich(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    argv = ["--rules", "sgd", "--tree", "leaves:2", "--out", str(tmp_path / "folder")]
    assert main(["memory", *argv]) == 0
    assert (tmp_path / "folder" / "memory-leaves-2.json").exists()
    _, header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["rule", "floor", "streams"]
    assert row.split()[:5] == ["sgd", "3", "3.00", "3.00", "1.00"]
    assert len(header) == len(row)


# What is checked.


def quadratic() -> optax.GradientTransformation:
    """Reads every gradient for every update."""

    def update(updates, state, params=None):
        new = {
            name: sum((1 + i * j) * g for j, g in enumerate(updates.values()))
            for i, name in enumerate(updates)
        }
        return new, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# Adam moves 10 trees here, and gradient descent 3.
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
def test_check_names_the_rule_and_the_fault(fault, tmp_path, monkeypatch, capsys):
    argv, rule = BAD[fault]
    monkeypatch.setitem(RULES, "bad", rule)
    argv = [*argv, "--rules", "sgd,bad"]
    assert run(tmp_path, *argv)[0] == 0  # Without --check it only reports.
    assert run(tmp_path, *argv, "--check")[0] == 1
    failed = [s for s in capsys.readouterr().err.splitlines() if s.startswith("FAILED")]
    assert len(failed) == 1
    kind = fault.partition(" ")[0]
    assert failed[0].startswith("FAILED bad: ") and kind in failed[0]
    assert ("limit" in failed[0]) == ("limit" in fault)
    assert any(character.isdigit() for character in failed[0])


@pytest.mark.parametrize("argv", [MEMORY, COMPILE], ids=["memory", "compile"])
def test_check_passes(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RULES, "own", Rule(sgd(0.1), None, "g x > x"))
    rules = "normalize,schedule_free_sgd,own"
    if argv is MEMORY:
        monkeypatch.setitem(RULES, "more", ENOUGH)
        rules += ",more,dpsgd"
    assert run(tmp_path, *argv, "--rules", rules, "--check")[0] == 0
    assert "Check: passed" in capsys.readouterr().out


# What is said when something is wrong.


@pytest.mark.parametrize("argv,code", [([], 2), (["sped"], 2), (["--help"], 0)])
def test_commands_are_listed(argv, code, capsys):
    assert main(argv) == code
    out = capsys.readouterr().out
    assert all(command in out for command in ("demo", "speed", "memory", "compile"))
    assert ("'sped'" in out) == (argv == ["sped"])


@pytest.mark.parametrize("command", ["speed", "memory", "compile"])
@pytest.mark.parametrize(
    "argv,words",
    [
        (["--rules", "sgd,adm"], ["'adm'", *RULES]),
        (["--tree", "two"], ["'two'", "one, gpt2, leaves:N"]),
        (["--tree", "leaves:x"], ["'leaves:x'", "one, gpt2, leaves:N"]),
    ],
)
def test_unknown_names_list_the_valid_ones(command, argv, words, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, *argv])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)


@pytest.mark.parametrize("tree", ["one", "leaves:15"])
def test_compile_needs_tens_of_leaves(tree, capsys):
    with pytest.raises(SystemExit):
        main(["compile", "--tree", tree])
    assert "multiple of 10" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["speed", "memory", "compile"])
def test_missing_package_names_the_install_command(command, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith("benchmarks."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optax", None)
    assert main([command]) == 1
    assert f'{command} needs optax: pip install -e ".[demo]"' in capsys.readouterr().err
