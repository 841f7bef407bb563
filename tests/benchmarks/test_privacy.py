"""The figures of private training, and the gates of `--check`."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.__main__ import main
from benchmarks.privacy import command, contenders, cost, inputs, network, sensitivity
from benchmarks.privacy.figure import Figure
from benchmarks.trees import number_of_entries
from contrib_algos import value_and_clipped_grad
from contrib_algos.privacy import _clip, _noise, _precise
from contrib_core import tree


SHAPES = network.shapes


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def few_cases(monkeypatch, unchecked):
    """A few shapes, because most of the time goes into compiling for each."""
    layouts = [
        {"x": ((100,), "float32")},
        {"x": ((10,), "float16"), "y": ((), "bfloat16"), "z": ((2, 3), "complex64")},
    ]
    monkeypatch.setattr(inputs, "CYCLE", layouts)
    monkeypatch.setattr(sensitivity, "DTYPES", ("bfloat16",))
    monkeypatch.setattr(sensitivity, "BATCHES", (4096,))
    monkeypatch.setattr(cost, "BATCHES", (4, 12))
    monkeypatch.setattr(contenders, "MICROBATCHES", (1,))
    layer = {"weight0": (784, 10), "bias0": (10,)}
    monkeypatch.setattr(network, "shapes", lambda size: layer)


SMALL = {
    "clip": ["--inputs", "640"],
    "nonfinite": [],
    "sensitivity": ["--entries", "100"],
    "noise": ["--draws", "100000"],
    "cost": ["--rounds", "1"],
}


def run(
    tmp_path: Path, *figures: str, check: bool = True
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the figures of the JSON that was written."""
    path = tmp_path / "out.json"
    argv = ["--figures", ",".join(figures), "--out", str(path)]
    argv += [word for name in figures for word in SMALL[name]]
    code = main(["privacy", *argv, *(["--check"] if check else [])])
    report = json.loads(path.read_text())
    assert report["command"] == "privacy"
    assert report["versions"]["optax"] == optax.__version__
    return code, report["figures"]


# Figures


def test_norms_are_of_all_coordinates():
    y = np.array([[0], [12]], np.float16)
    rows = {"x": np.full((2, 1, 1), 3 + 4j, np.complex64), "y": y}
    np.testing.assert_array_equal(inputs.norms(rows), [5, 13])


def test_network():
    assert number_of_entries(SHAPES(1024)) == 1_333_770
    assert SHAPES(4)["weight1"] == (4, 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_inputs_are_hard(seed):
    ratios, dtypes = [], set()
    for rows, bound in inputs.groups(1600, seed):
        assert bound == np.float32(bound)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
        ratios.append(inputs.norms(rows) / bound)
        dtypes.add(jax.tree.leaves(rows)[0].dtype)
    ratio = np.concatenate(ratios)
    assert len(ratio) == 1600
    assert dtypes == {np.dtype("float32"), np.dtype("float16")}
    is_near = np.abs(ratio - 1) < 2**-19
    assert 0.3 < np.mean(is_near) < 0.7
    assert np.mean(ratio > 1.1) > 0.15 and np.mean(ratio < 0.9) > 0.15
    assert ratio.max() > 1e10 and ratio.min() < 1e-10


def test_all_figures(tmp_path, capsys):
    code, figures = run(tmp_path, *SMALL)
    assert code == 0
    out, err = capsys.readouterr()
    assert "Check: passed" in out and str(tmp_path / "out.json") in out
    assert f"optax {optax.__version__}" in out
    for name in SMALL:
        assert any(row.startswith(f"{name}: ") for row in figures)
        assert f"measuring {name} ..." in err
    # The same instruments measure the peer.
    assert figures["clip: norm above C"]["peer"] > 20
    assert figures["clip: dropped, though finite and not 0"]["peer"] > 0
    assert figures["nonfinite: ... of the 99, NaN"]["peer"] == pytest.approx(
        math.sqrt(99) * 1e6
    )
    assert figures["sensitivity: bfloat16, B = 4096, n = 100"]["peer"] > 20
    assert figures["noise: bfloat16, distinct values"]["peer"] == 128
    assert figures["cost: parameters"]["ours"] == 7850
    assert figures["cost: temp bytes an example, microbatch 1"]["by_hand"] > 31_400
    assert figures["cost: ms, B = 4, microbatch 1 and noise"]["peer"] > 0
    assert figures["cost: ms, B = 12, microbatch 1 and noise"]["peer"] is None


def test_folder(tmp_path):
    argv = ["privacy", "--figures", "nonfinite", "--out", str(tmp_path / "folder")]
    assert main(argv) == 0
    assert (tmp_path / "folder" / "privacy.json").exists()


def test_unknown_figures_list_the_valid_ones(capsys):
    with pytest.raises(SystemExit):
        main(["privacy", "--figures", "clip,noises"])
    message = capsys.readouterr().err
    assert all(word in message for word in ("'noises'", *command.SECTIONS))


# Gates


def unmindful(gradient: Any, l2_norm_clip: Any, keep: Any = True) -> Any:
    """The formula of textbooks, with a mask."""
    g = tree.widen(gradient)
    root = tree.norm(g)
    clipped = tree.scale(jnp.minimum(1, tree.divide(l2_norm_clip, root)), g)
    return tree.where(jnp.asarray(keep), clipped, 0), root


def dropping(gradient: Any, l2_norm_clip: Any, keep: Any = True) -> Any:
    """Drops finite examples that are too long."""
    clipped, root = CLIP(gradient, l2_norm_clip, keep)
    return tree.where(root <= l2_norm_clip, clipped, 0), root


def plain_sum_rows(rows: Any) -> _precise.Pair:
    return _precise.as_pair(jax.tree.map(lambda x: jnp.sum(x, axis=0), rows))


def careless(x: Any, key: Any) -> Any:
    """One percent too little noise, from one key for all leaves and both parts."""

    def leaf(x: Any) -> Any:
        z = tree.scale(0.99, NORMAL_LIKE(x, key))
        return jax.lax.complex(z.real, z.real) if jnp.iscomplexobj(z) else z

    return jax.tree.map(leaf, x)


def known(x: Any, key: Any) -> Any:
    return NORMAL_LIKE(x, jax.random.key(0))


def all_at_once() -> Any:
    """Holds all gradients in memory."""
    size = max(cost.BATCHES)
    grad = value_and_clipped_grad(network.loss, 1.0, microbatch_size=size)
    return {"microbatch 1": grad}


LINK = "|correlation| sqrt(n)"
TOO_LITTLE = [f"|std - 1|, {kind}" for kind in ("float32", "bfloat16", "real part")]
SAME = [f"{LINK}, leaves", f"{LINK}, real and imaginary parts"]
CLIP, NORMAL_LIKE = _clip.clip, _noise.normal_like

# Module, name in it, a broken replacement, section, and the figures that fail.
BROKEN = [
    (_clip, "clip", unmindful, "clip", ["norm above C", "largest norm / C"]),
    (_clip, "clip", dropping, "clip", ["dropped, though finite and not 0"]),
    (_clip, "clip", unmindful, "nonfinite", ["... of the 99, NaN", "norm / C of one"]),
    (_clip, "sum_rows", plain_sum_rows, "sensitivity", ["bfloat16, B = 4096"]),
    (_noise, "normal_like", careless, "noise", [*TOO_LITTLE, *SAME]),
    (_noise, "normal_like", known, "noise", [f"{LINK}, keys", f"{LINK}, steps"]),
    (cost, "contenders", all_at_once, "cost", ["temp bytes an example, micro"]),
]


@pytest.mark.parametrize("module,name,broken,section,figures", BROKEN)
def test_check_names_what_is_broken(
    module, name, broken, section, figures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, name, broken)
    assert run(tmp_path, section)[0] == 1
    err = capsys.readouterr().err
    for figure in figures:
        assert f"FAILED {section}: {figure}" in err
    assert "goal at most" in err


def test_without_check_it_only_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_clip, "clip", unmindful)
    assert run(tmp_path, "nonfinite", check=False)[0] == 0
    assert "FAILED" not in capsys.readouterr().err


@pytest.mark.parametrize("ours,is_good", [(1.0, True), (1.1, False), (math.nan, False)])
def test_nan_is_a_failure(ours, is_good):
    rows = {"good": Figure(9.0, about=1.0), "it": Figure(ours, most=1.0)}
    failures = command._failures(rows)
    assert len(failures) == (0 if is_good else 1)
    assert all(failure.startswith("it: ") for failure in failures)
