"""The demo: its command line, its table and its files."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
from matplotlib.image import imread

import benchmarks.__main__ as commands
from benchmarks.demo import figure, report, run as demo_run, train as training
from benchmarks.demo.methods import METHODS


def demo(*argv):
    """The exit code of the command line."""
    return commands.main(["demo", *map(str, argv)])


def result(name, accuracies, rates=(), loss=0.5, step_sizes=None):
    """A result with two seeds and 50 steps."""
    accuracy = np.repeat(np.array(accuracies)[:, None], 2, axis=1)
    losses = np.full((*accuracy.shape, 50), loss)
    return training.Result(
        name, rates, losses[..., -1], accuracy, losses, step_sizes, 1.0
    )


def test_command_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 30)  # Fewer compilations.
    out = tmp_path / "new" / "folder"
    argv = ("--methods", "adam,prodigy", "--steps", 30, "--seeds", 1, "--out", out)
    assert demo(*argv) == 0

    content = json.loads((out / "demo.json").read_text())
    assert (content["steps"], content["seeds"]) == (30, 1)
    assert list(content["methods"]) == ["adam", "prodigy"]
    adam, prodigy = content["methods"].values()
    assert adam["learning_rates"][-1] / adam["learning_rates"][0] == 1e4
    for method, rates in ((adam, 8), (prodigy, 1)):
        shapes = [
            np.shape(method[x]) for x in ("train_loss", "test_accuracy", "losses")
        ]
        assert shapes == [(rates, 1), (rates, 1), (rates, 1, 30)]
        assert np.isfinite(np.asarray(method["losses"], float)).all()
        assert np.min(method["train_loss"]) < np.min(method["losses"], axis=0)[0, 0]
        assert 0.2 < np.max(method["test_accuracy"]) < 1
        assert method["ms_per_step"] > 0
    assert adam["step_sizes"] is None
    sizes = np.asarray(prodigy["step_sizes"])
    assert sizes.shape == (1, 1, 30)
    assert np.all(np.diff(sizes) >= 0)
    assert sizes[0, 0, -1] > 100 * sizes[0, 0, 0]

    assert imread(out / "demo.png").shape == (560, 1600, 4)
    text, errors = capsys.readouterr()
    assert errors == ""
    (accuracy,) = prodigy["test_accuracy"]
    for expected in (
        f"30/30 loss {prodigy['losses'][0][0][-1]:.2g}",
        f"nothing {prodigy['train_loss'][0][0]:.1e} {100 * accuracy[0]:.1f} ± 0.0 %",
        "Nothing tuned: accuracy at most",
    ):
        assert expected in " ".join(text.split())
    assert text.splitlines()[-2:] == [str(out / "demo.png"), str(out / "demo.json")]


@pytest.mark.parametrize(
    "argv,complaint",
    [
        (["--methods", "adam", "adan"], f"'adan'; choose from: {', '.join(METHODS)}"),
        (["--methods", "adam,adan"], f"'adan'; choose from: {', '.join(METHODS)}"),
        (["--steps", "0"], "at least 1"),
        (["--seeds", "x"], "invalid"),
    ],
)
def test_wrong_arguments_exit_with_2(argv, complaint, capsys):
    with pytest.raises(SystemExit) as exit:
        demo(*argv)
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("package", ["matplotlib", "rich", "sklearn"])
def test_a_missing_package_names_the_command(package, monkeypatch, capsys, tmp_path):
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name.startswith("benchmarks.demo."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert demo("--no-progress", "--out", tmp_path) == 1
    message = capsys.readouterr().err
    assert package in message
    assert 'pip install -e ".[demo]"' in message


@pytest.mark.parametrize("done", [0, 1])
def test_an_interrupt_prints_the_table_so_far(done, monkeypatch, capsys, tmp_path):
    calls = itertools.count()

    def interrupted(name, *args):
        if next(calls) == done:
            raise KeyboardInterrupt
        return result(name, [0.9])

    monkeypatch.setattr(demo_run, "train", interrupted)
    argv = ("--methods", "prodigy", "dog", "--no-progress", "--out", tmp_path)
    assert demo(*argv) == 130
    text = capsys.readouterr().out
    assert f"{done} of 2" in text
    assert ("90.0 ± 0.0 %" in text) == ("prodigy" in text) == (done == 1)
    assert "dog" not in text
    assert list(tmp_path.iterdir()) == []


# Reports


@pytest.mark.parametrize(
    "accuracy,expected",
    [
        (0.943, "at most 0.7 points below the best of adam's 3 learning rates"),
        (0.96, "no lower than the best of adam's 3 learning rates"),
    ],
)
def test_verdict_is_on_the_worst_untuned_method(accuracy, expected):
    tuned = result("adam", [0.2, 0.95, 0.3], (0.1, 0.2, 0.3))
    untuned = [result("a", [0.99]), result("b", [accuracy]), result("c", [0.98])]
    assert tuned.best_rate == 0.2
    verdict = report.verdict([tuned, *untuned])
    assert verdict == f"Nothing tuned: accuracy {expected}"
    assert report.verdict(untuned) is None
    assert report.verdict([tuned]) is None


def test_divergence_is_reported(tmp_path):
    """NaN becomes null in the JSON, and the picture is drawn without a warning."""
    diverged = result("a", [0.1], loss=math.nan)
    results = [diverged, result("b", [0.9]), result("adam", [0.9, 0.1], (1e-3, 1e-2))]
    report.write_json(results, 1.0, tmp_path / "demo.json")
    content = json.loads(
        (tmp_path / "demo.json").read_text(), parse_constant=pytest.fail
    )
    assert content["methods"]["a"]["train_loss"] == [[None, None]]
    assert content["methods"]["b"]["train_loss"] == [[0.5, 0.5]]
    figure.draw(results, tmp_path / "demo.png")
    assert imread(tmp_path / "demo.png").shape == (560, 1600, 4)


@pytest.mark.parametrize(
    "results",
    [
        [result("adam", [0.5, 0.9], (1e-4, 1e-3))],
        [result("schedule_free_sgd", [1.0])],
        [result(f"method_{i}", [0.1 * i]) for i in range(8)],
    ],
)
def test_any_choice_of_methods_can_be_drawn(results, tmp_path):
    figure.draw(results, tmp_path / "demo.png")
    assert imread(tmp_path / "demo.png").shape == (560, 1600, 4)


@pytest.mark.parametrize(
    "wanted", [[], [0.3], [0.1, 0.5, 0.9], [0.5, 0.5, 0.51], [0.0, 0.97, 0.98, 1.0]]
)
def test_labels_do_not_overlap(wanted):
    spread = figure._spread(np.array(wanted))
    assert spread.shape == np.shape(wanted)
    assert np.all(np.diff(spread) >= figure.LINE_HEIGHT - 1e-9)
    assert np.all((spread >= 0) & (spread <= 1))
    if wanted in ([0.3], [0.1, 0.5, 0.9]):
        np.testing.assert_allclose(spread, wanted)
