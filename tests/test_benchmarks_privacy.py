"""The figures of differential privacy: what they count, and what `--check` refuses."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import privacy, privacy_cost, privacy_figures, privacy_inputs
from benchmarks.__main__ import main
from benchmarks.privacy_figures import Figure
from benchmarks.trees import number_of_entries
from contrib_algos import _clip, value_and_clipped_grad
from contrib_core import tree


SHAPES = privacy_cost._shapes


@pytest.fixture(autouse=True)
def standard_promotion():
    """As optax needs it, and as the command finds it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def few_cases(monkeypatch, unchecked):
    """Each shape is compiled for, and that is what takes the time."""
    layouts = [
        {"x": ((100,), "float32")},
        {"x": ((10,), "float16"), "y": ((), "bfloat16"), "z": ((2, 3), "complex64")},
    ]
    monkeypatch.setattr(privacy_inputs, "CYCLE", layouts)
    monkeypatch.setattr(privacy_figures, "DTYPES", ("bfloat16",))
    monkeypatch.setattr(privacy_figures, "BATCHES", (4096,))
    monkeypatch.setattr(privacy_cost, "BATCHES", (4, 12))
    monkeypatch.setattr(privacy_cost, "MICROBATCHES", (1,))
    layer = {"weight0": (784, 10), "bias0": (10,)}
    monkeypatch.setattr(privacy_cost, "_shapes", lambda size: layer)


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


# What is measured.


def test_norms_are_of_all_coordinates():
    y = np.array([[0], [12]], np.float16)
    rows = {"x": np.full((2, 1, 1), 3 + 4j, np.complex64), "y": y}
    np.testing.assert_array_equal(privacy_inputs.norms(rows), [5, 13])


def test_network():
    assert number_of_entries(SHAPES(1024)) == 1_333_770
    assert SHAPES(4)["weight1"] == (4, 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_inputs_are_hard(seed):
    ratios, dtypes = [], set()
    for rows, bound in privacy_inputs.groups(1600, seed):
        assert bound == np.float32(bound)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
        ratios.append(privacy_inputs.norms(rows) / bound)
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
    # What the peer does is measured with the same instruments.
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
    assert all(word in message for word in ("'noises'", *privacy.SECTIONS))


# What is checked.


def unmindful(gradient: Any, l2_norm_clip: Any, keep: Any = True) -> Any:
    """The textbook's formula, and a mask."""
    g = tree.widen(gradient)
    root = tree.norm(g)
    clipped = tree.scale(jnp.minimum(1, tree.divide(l2_norm_clip, root)), g)
    return tree.where(jnp.asarray(keep), clipped, 0), root


def dropping(gradient: Any, l2_norm_clip: Any, keep: Any = True) -> Any:
    """Finite examples are dropped that are too long."""
    clipped, root = CLIP(gradient, l2_norm_clip, keep)
    return tree.where(root <= l2_norm_clip, clipped, 0), root


def plain_sum_rows(rows: Any) -> tree.Pair:
    return tree.twice(jax.tree.map(lambda x: jnp.sum(x, axis=0), rows))


def careless(x: Any, key: Any) -> Any:
    """One percent too little, of one key for all leaves, one number for both parts."""

    def leaf(x: Any) -> Any:
        z = tree.scale(0.99, NORMAL_LIKE(x, key))
        return jax.lax.complex(z.real, z.real) if jnp.iscomplexobj(z) else z

    return jax.tree.map(leaf, x)


def known(x: Any, key: Any) -> Any:
    return NORMAL_LIKE(x, jax.random.key(0))


def all_at_once() -> Any:
    """What takes the memory of all gradients."""
    loss, size = privacy_cost._loss, max(privacy_cost.BATCHES)
    return {"microbatch 1": value_and_clipped_grad(loss, 1.0, microbatch_size=size)}


LINK = "|correlation| sqrt(n)"
TOO_LITTLE = [f"|std - 1|, {kind}" for kind in ("float32", "bfloat16", "real part")]
SAME = [f"{LINK}, leaves", f"{LINK}, real and imaginary parts"]
CLIP, NORMAL_LIKE = _clip.clip, tree.normal_like

# Where it is, what it is called, what is there instead, and the figures that tell.
BROKEN = [
    (_clip, "clip", unmindful, "clip", ["norm above C", "largest norm / C"]),
    (_clip, "clip", dropping, "clip", ["dropped, though finite and not 0"]),
    (_clip, "clip", unmindful, "nonfinite", ["... of the 99, NaN", "norm / C of one"]),
    (tree, "sum_rows", plain_sum_rows, "sensitivity", ["bfloat16, B = 4096"]),
    (tree, "normal_like", careless, "noise", [*TOO_LITTLE, *SAME]),
    (tree, "normal_like", known, "noise", [f"{LINK}, keys", f"{LINK}, steps"]),
    (
        privacy_cost,
        "_contenders",
        all_at_once,
        "cost",
        ["temp bytes an example, micro"],
    ),
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
    failures = privacy._failures(rows)
    assert len(failures) == (0 if is_good else 1)
    assert all(failure.startswith("it: ") for failure in failures)
