"""The atlas: its page, its cells and its command."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import optax
import pytest
from matplotlib.image import imread
from rich.console import Console

import benchmarks.__main__ as commands
import contrib_algos
import contrib_wrappers
from benchmarks.atlas import page
from benchmarks.atlas.figure import draw
from benchmarks.atlas.measure import Atlas, fill, Row, Status
from benchmarks.atlas.report import remarks, table, write_json
from benchmarks.atlas.subjects import Entry, OURS, PEER, SUBJECTS
from contrib_laws import Fault, Law, LAWS, Subject


PAGE = (page.DOCS / "laws.md").read_text()
# Functions that make no transform, or one of single examples, whose gradients have an
# axis more than the laws know; the zoo has the latter with such gradients.
NO_TRANSFORMS = {
    "calibrate_noise",
    "differentially_private_aggregate",
    "dpsgd",
    "epsilon",
    "exponential",
    "polynomial_decay",
    "schedule_free_eval_params",
    "uniform",
    "value_and_clipped_grad",
}


def law(
    fault,
    name="fake",
    group: Literal["contract", "algebra"] = "algebra",
    excuse=lambda subject: None,
):
    """A law with a single case, 0."""
    return Law(
        name,
        group,
        sentence="A sentence.",
        formula="x = y",
        tolerance="none",
        fault=fault,
        first=lambda subject: [0],
        excuse=excuse,
    )


def holds(subject, case):
    return None


def fails(subject, case):
    return Fault("it is wrong", "assert False")


def filled(*laws, entry=SUBJECTS["sgd"], examples=1, seeds=1):
    """An atlas of one row."""
    atlas = Atlas(laws, examples, seeds, [Row("name", entry)])
    fill(atlas.rows[0], laws, examples, seeds)
    return atlas


def status(atlas, name="fake"):
    return atlas.rows[0].cells[name].status


def shown(atlas):
    """The printed table."""
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table(atlas))
    return captured.get()


def command(*argv):
    return commands.main(["atlas", *map(str, argv)])


# The page


def section(name):
    """The text below the heading of a law."""
    found = re.search(rf"(?ms)^### {name}\n(.*?)(?=^##|\Z)", PAGE)
    assert found, f"{name} has no section"
    return found[1]


@pytest.mark.parametrize("name", LAWS)
def test_every_law_has_its_section(name):
    text = section(name)
    assert f"\n{LAWS[name].sentence}\n" in text
    assert f"\n$$\n{LAWS[name].formula}\n$$\n" in text
    told = re.search(r"(?m)^\*Tolerance:\* (.*)$", text)
    assert told is not None
    tolerance, _, hooks = told[1].partition(" *Hooks:*")
    assert tolerance == f"{LAWS[name].tolerance}."
    assert tuple(re.findall(r"`(\w+)`", hooks)) == LAWS[name].hooks
    reason = text.partition("*Tolerance:*")[2].partition("\n")[2]
    assert len(re.findall(r"[.:]\s", reason)) >= 2, "why should a user care?"


def tables():
    """For each table of the page, its laws and its rows by group of transforms."""
    block = re.search(r"(?s)<!-- atlas -->(.*)<!-- /atlas -->", PAGE)
    assert block
    for lines in re.findall(r"(?m)(?:^\|.*\n)+", block[1]):
        header, _, *rows = lines.splitlines()
        groups, group = {}, ""
        for row in rows:
            first = row.split(" |")[0].removeprefix("| ")
            if first.startswith("**"):
                group = first.strip("*")
            groups.setdefault(group, []).append(first.strip("*`"))
        yield re.findall(r"\[(\w+)\]", header), groups


def test_the_page_has_every_law_and_every_transform():
    laws, rows = zip(*tables(), strict=True)
    assert [name for header in laws for name in header] == list(LAWS)
    for group in (OURS, PEER):
        entries = [e.expression for e in SUBJECTS.values() if e.group == group]
        wanted = [group, *entries]
        assert rows[0][group] == wanted
        assert all(set(r[group]) <= set(wanted) for r in rows)


def test_every_recipe_is_in_the_atlas():
    for package in (contrib_algos, contrib_wrappers):
        # A recipe that composes nothing is the class of its Module.
        recipes = [n for n, x in vars(package).items() if n.islower() and callable(x)]
        for name in {name for name in recipes if name[0] != "_"} - NO_TRANSFORMS:
            assert any(
                re.match(rf"{name}\b", entry.expression)
                for entry in SUBJECTS.values()
                if entry.group == OURS
            ), f"add a line for {name} to benchmarks/atlas/subjects.py"


@pytest.mark.parametrize("name", [k for k, e in SUBJECTS.items() if e.terms])
def test_terms_of_others_exist(name):
    subject = SUBJECTS[name].subject()
    assert not [n for n in SUBJECTS[name].terms if LAWS[n].excuse(subject)]


def test_first_guesses_of_others_exist():
    guessing = [entry for entry in SUBJECTS.values() if entry.guess]
    law = LAWS["initial_guess"]
    assert guessing and not [e for e in guessing if law.excuse(e.subject())]


def test_the_counterexample_of_the_page_is_real():
    found = LAWS["finiteness"].check(Subject(optax.contrib.prodigy)).counterexample
    assert f"```python\n{found}```" in PAGE


def test_every_link_has_a_place():
    headings = re.findall(r"(?m)^#+ (.*)$", PAGE)
    places = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) <= places
    for target in re.findall(r"\]\(([^#:)]+)\)", PAGE):
        assert (page.DOCS / target).exists(), target


def small_page(folder, names):
    sections = [f"### {n}\n\nOld.\n\n*Tolerance:* old.\n\nWhy.\n" for n in names]
    text = "\n".join(["# Laws\n", *sections, "<!-- atlas -->\nold\n<!-- /atlas -->\n"])
    (folder / "images").mkdir()
    (folder / "laws.md").write_text(text)


def test_the_page_is_written(tmp_path):
    laws = law(fails, "C0", "contract"), law(holds, "other")
    small_page(tmp_path, ["C0", "other"])
    atlas = filled(*laws, entry=Entry(PEER, (optax,), "sgd(0.1)"))
    for _ in range(2):  # Again, it is the same.
        text = page.write(atlas, tmp_path).read_text()
        assert text.count("A sentence.\n\n$$\nx = y\n$$\n\n*Tolerance:* none.\n") == 2
        assert text.count("Why.") == 2 and "old" not in text and "Old" not in text
        assert text.count("| `sgd(0.1)` | **✗** |") == 1
        assert text.count("| `sgd(0.1)` | ✓ |") == 1
        assert text.count("\n- C0: it is wrong\n") == 1
        assert text.count("transform = sgd(0.1)\n    assert False\n```\n") == 1
    assert imread(tmp_path / "images" / "atlas.png").shape[1] == 1600


@pytest.mark.parametrize("lost", ["### fake", "*Tolerance", "<!-- atlas"])
def test_a_page_without_a_place_is_left_alone(lost, tmp_path):
    small_page(tmp_path, ["fake"])
    path = tmp_path / "laws.md"
    path.write_text(path.read_text().replace(lost, ""))
    before = path.read_text()
    with pytest.raises(ValueError, match=r"laws\.md, .*0 places"):
        page.write(filled(law(holds)), tmp_path)
    assert path.read_text() == before


# Cells


@pytest.mark.parametrize(
    "fault,group,name,expected",
    [
        (holds, "contract", "C0", Status.HOLDS),
        (fails, "contract", "C0", Status.BREACH),
        (fails, "algebra", "C0", Status.FAILS),
        (fails, "algebra", "rotation", Status.BREACH),  # Declared by sgd.
        (fails, "algebra", "units", Status.FAILS),
    ],
)
def test_status(fault, group, name, expected):
    assert status(filled(law(fault, name, group)), name) is expected


def test_laws_that_do_not_apply_are_blank():
    atlas = filled(law(fails, "C0", "contract", excuse=lambda subject: "no reason"))
    assert status(atlas, "C0") is Status.NONE
    assert atlas.rows[0].cells["C0"].told.note == "no reason"


@pytest.mark.parametrize("group", ["contract", "algebra"])
def test_differences_between_seeds_are_unsteady(group, tmp_path):
    calls = itertools.count()

    def flaky(subject, case):
        return Fault("the second seed") if next(calls) == 1 else None

    atlas = filled(law(holds, "steady"), law(flaky, "fake", group), seeds=3)
    assert status(atlas) is Status.UNSTEADY
    assert status(atlas, "steady") is Status.HOLDS
    (remark,) = remarks(atlas)
    assert "name, fake: unsteady: holds, fails, holds. the second seed" == remark
    assert "3 seeds" in shown(atlas) and "~ differs between seeds" in shown(atlas)
    write_json(atlas, 0.0, tmp_path / "atlas.json")
    written = json.loads((tmp_path / "atlas.json").read_text())
    assert written["unsteady"] == [["name", "fake"]]
    assert written["seeds"] == [0, 1, 2]
    cell = written["subjects"]["name"]["laws"]["fake"]
    assert cell["verdicts"] == ["holds", "fails", "holds"]
    assert (cell["status"], cell["examples"]) == ("unsteady", 3)


def test_each_seed_draws_anew():
    seen = []
    recording = dataclasses.replace(
        law(lambda subject, case: seen.append(case)),
        first=lambda subject: ["start"],
        drawn=lambda subject: st.integers(0, 2**40),
    )
    atlas = filled(recording, examples=10, seeds=2)
    assert sum(outcome.examples for outcome in atlas.rows[0].cells["fake"].outcomes) > 9
    second = seen.index("start", 1)
    assert seen[:second] != seen[second:]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("expression", ["sgd(-1, 2, 3, 4)", "sgd.nothing", "object()"])
def test_a_row_tells_why_its_transform_cannot_be_made(expression, tmp_path):
    atlas = filled(law(holds), entry=Entry(OURS, (contrib_algos,), expression))
    assert atlas.rows[0].error and not atlas.rows[0].cells
    assert remarks(atlas) == [f"name: {atlas.rows[0].error}"]
    assert "!" in shown(atlas)
    draw(atlas, tmp_path / "atlas.png")
    write_json(atlas, 0.0, tmp_path / "atlas.json")
    small_page(tmp_path, ["fake"])
    assert f"- {remarks(atlas)[0][:9]}" in page.write(atlas, tmp_path).read_text()


# The command


def test_command(tmp_path, capsys):
    laws = ["translation", "gradient_scale", "monotone"]
    argv = ["--subjects", "dog_eps_0,optax.dog", "--laws", *laws, "--examples", 3]
    assert command(*argv, "--out", tmp_path) == 0
    written = json.loads((tmp_path / "atlas.json").read_text())
    assert (written["command"], written["examples"]) == ("atlas", 3)
    assert written["seeds"] == [0] and written["unsteady"] == []
    assert written["versions"]["optax"] == optax.__version__
    assert list(written["laws"]) == laws
    assert written["laws"]["monotone"]["formula"] == LAWS["monotone"].formula
    ours, peer = written["subjects"].values()
    assert [ours["group"], peer["group"]] == [OURS, PEER]
    assert ours["traces"] >= 1 and ours["seconds"] > 0
    statuses = [cell["status"] for cell in ours["laws"].values()]
    assert statuses == ["fails", "holds", "holds"]
    assert [cell["promised"] for cell in ours["laws"].values()] == [False, True, True]
    cell = peer["laws"]["translation"]
    assert cell["status"] == "fails" and cell["note"].startswith("update ")
    assert "transform = dog()" in cell["counterexample"]
    image = imread(tmp_path / "atlas.png")
    assert image.shape[1] == 1600 and 300 < image.shape[0] < 800
    out, err = capsys.readouterr()
    assert re.search(r"dog_eps_0 +· ● ● ", out) and str(tmp_path / "atlas.png") in out
    assert "[1/2] dog_eps_0 ... 2 hold" in err


def test_an_interrupt_leaves_a_table(tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.atlas.run.fill", interrupted)
    assert command("--subjects", "sgd", "--out", tmp_path) == 130
    assert "Interrupted with 0 of 1" in capsys.readouterr().out
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--subjects", "sgd,adm"], ["'adm'", *SUBJECTS]),
        (["--laws", "finiteness", "finitness"], ["'finitness'", *LAWS]),
        (["--seeds", "0"], ["at least 1"]),
        (["--laws", "finiteness", "--write-docs"], ["all transforms and all laws"]),
    ],
)
def test_mistakes_are_told(argv, words, capsys):
    with pytest.raises(SystemExit) as error:
        command(*argv)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)
