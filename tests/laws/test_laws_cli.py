"""`check`, `assert_lawful`, their reports, and `python -m contrib_laws`."""

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from contrib_algos import Momentum, Normalize, normalize
from contrib_core import add_decayed_weights, chain, scale
from contrib_laws import (
    _check,
    _report,
    Fault,
    Law,
    LAWS,
    Outcome,
    provide_devices,
    Subject,
    Verdict,
)
from contrib_laws.__main__ import main
from contrib_laws._check import assert_lawful, check, select
from contrib_laws._report import Report
from contrib_laws._spec import resolve, SpecError


ROOT = Path(__file__).parents[2]

FAKE_CODE = "assert False, transform"


def _fails(subject: Subject, case: Any) -> Fault:
    return Fault(f"{subject.name} is bad", FAKE_CODE)


def _law(name: str, group: Any, does: str) -> Law:
    """A law that costs nothing, with a known outcome."""

    def excuse(subject: Subject) -> str | None:
        if does == "raises":
            raise RuntimeError("it cannot start")
        return "it is not for this" if does == "unsuited" else None

    fault = _fails if does == "fails" else lambda subject, case: None
    about = f"The sentence of {name}.", "x = x", "none"
    return Law(name, group, *about, fault, first=lambda subject: [0], excuse=excuse)


FAKES = [
    ("good", "contract", "holds"),
    ("bad", "contract", "fails"),
    ("aside", "contract", "unsuited"),
    ("kept", "algebra", "holds"),
    ("broken", "algebra", "fails"),
    ("untold", "algebra", "unsuited"),
    ("modest", "algebra", "holds"),
    ("other", "algebra", "fails"),
    ("wrapped", "wrapper", "holds"),
    ("elsewhere", "wrapper", "unsuited"),
]
DECLARED: Any = ["kept", "broken", "untold", "brokn"]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> dict[str, Law]:
    """Laws that cost nothing, in place of all others. Types are not checked at run
    time, because they allow the names of real laws only."""
    laws = {name: _law(name, group, does) for name, group, does in FAKES}
    for module in (_check, _report):
        monkeypatch.setattr(module, "LAWS", laws)
    return laws


@pytest.fixture
def report(fakes: dict[str, Law]) -> Report:
    return check(normalize(), declared=DECLARED, name="mine")


# Lawful or not


def test_broken_promises_are_failures(report: Report):
    assert report.failures == {
        "bad": "mine is bad",
        "broken": "mine is bad",
        "untold": "declared, but not applicable: it is not for this",
        "brokn": "there is no such law; did you mean `broken`?",
    }
    assert not report.is_lawful
    assert report.summary.startswith("NOT lawful: bad, broken, untold, brokn (0 comp")


def test_undeclared_laws_that_hold_are_told(report: Report):
    assert report.undeclared == ("modest", "wrapped")
    assert "Not declared, but hold: modest, wrapped." in str(report)


def test_laws_that_are_not_promised_are_no_failures(fakes: dict[str, Law]):
    names: Any = ["good", "aside", "kept", "modest", "other", "elsewhere"]
    kept: Any = ["kept"]
    report = check(normalize(), laws=names, declared=kept)
    assert report.is_lawful
    assert report.summary.startswith("lawful: 1 contract law and 1 declared law hold (")


@pytest.mark.parametrize(
    "laws, declared, summary",
    [
        (["good"], [], "lawful: 1 contract law holds ("),
        (["kept", "modest"], ["kept", "modest"], "lawful: 2 declared laws hold ("),
        (["other"], [], "lawful: none of the checked laws is promised ("),
    ],
)
def test_summaries(fakes: dict[str, Law], laws: Any, declared: Any, summary: str):
    assert check(normalize(), laws=laws, declared=declared).summary.startswith(summary)


def test_a_name_is_one_name_and_not_its_letters(fakes: dict[str, Law]):
    kept: Any = "kept"
    assert check(normalize(), laws=kept, declared=kept).is_lawful


def test_groups_can_be_declared_in_code(fakes: dict[str, Law]):
    report = check(normalize(), declared="algebra")
    assert report.declared == {"kept", "broken", "untold", "modest", "other"}


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="examples=0: must be 1 or more"):
        check(normalize(), laws="translation", examples=0)


def test_devices_are_requested_unless_a_number_is_set(monkeypatch: pytest.MonkeyPatch):
    flag = "--xla_force_host_platform_device_count"
    for given, wanted in {"": f"{flag}=8", "-a": f"-a {flag}=8"}.items():
        monkeypatch.setenv("XLA_FLAGS", given)
        provide_devices()
        provide_devices()
        assert os.environ["XLA_FLAGS"] == wanted
    monkeypatch.setenv("XLA_FLAGS", f"{flag}=2")
    provide_devices()
    assert os.environ["XLA_FLAGS"] == f"{flag}=2"


def test_by_default_a_rule_declares_its_laws():
    report = check(normalize(), laws=[])
    assert report.declared == normalize().laws
    assert "translation" in report.declared


# Reports


def test_the_table_has_a_row_for_each_law(report: Report):
    lines = str(report).splitlines()
    for outcome in report.outcomes:
        is_defect = outcome.law.name in report.failures
        verdict = outcome.verdict.value
        shown = verdict.upper() if is_defect else verdict
        text = outcome.note or outcome.law.sentence
        assert lines.count(f"  {outcome.law.name:9}  {shown:14}  {text}") == 1
    table = str(report).partition("\n\n\n")[0]
    assert [line for line in table.splitlines()[1:] if line and line[0] != " "] == [
        "contract (for every transform)",
        "declared (by this transform)",
        "not declared (failing is no defect)",
        "do not apply",
    ]


def test_counterexamples_show_defects(report: Report):
    assert str(report).count(FAKE_CODE) == 2
    assert "def test_bad():" in str(report) and "def test_broken():" in str(report)
    assert "def test_other():" not in str(report)
    assert "def test_other():" in report.text(every=True)
    assert "# bad: The sentence of bad.\n# mine is bad\n" in str(report)


def test_long_notes_stay_within_a_hundred_columns(fakes: dict[str, Law]):
    long = Outcome(fakes["bad"], Verdict.FAILS, "word " * 200)
    report = Report("long", (long,), frozenset(), 0, 0.0, 0, 1)
    assert max(map(len, str(report).splitlines())) <= 100
    assert len("\n".join(report.counterexamples().values())) > 1000


def test_colours_tell_defects_from_other_failures(report: Report):
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, color_system="standard", width=100
    )
    console.print(report)
    lines = file.getvalue().splitlines()
    rows = {
        name: [line for line in lines if f"  {name}" in line][0] for name, *_ in FAKES
    }
    assert "\x1b[1;31mFAILS" in rows["bad"] and "\x1b[1;31mFAILS" in rows["broken"]
    assert "\x1b[1;31mDOES NOT APPLY" in rows["untold"]
    assert "\x1b[32mholds" in rows["kept"]
    assert "\x1b[2mfails" in rows["other"]
    assert "\x1b[2mdoes not apply" in rows["elsewhere"]


def test_json_contains_the_whole_report(report: Report):
    found = json.loads(report.to_json())
    assert found["failures"] == report.failures and not found["lawful"]
    assert [row["law"] for row in found["laws"]] == [name for name, *_ in FAKES]
    bad = found["laws"][1]
    assert bad["verdict"] == "fails" and bad["group"] == "contract"
    assert bad["counterexample"] == report["bad"].counterexample
    assert found["versions"].keys() == {"jax", "equinox", "hypothesis"}


# Checking


def test_laws_are_selected_by_name_and_group(fakes: dict[str, Law]):
    names = [law.name for law in select(["wrapper", "bad"])]
    assert names == ["bad", "wrapped", "elsewhere"]
    assert select("bad") == (fakes["bad"],)
    typo: Any = ["goood"]
    with pytest.raises(
        ValueError, match=r"`goood`; did you mean `good`\? Laws: good, b"
    ):
        check(normalize(), laws=typo)


def test_progress_is_told_before_and_after(fakes: dict[str, Law]):
    seen = []
    check(normalize(), laws="contract", progress=lambda *args: seen.append(args))
    assert [law.name for law, _ in seen] == ["good"] * 2 + ["bad"] * 2 + ["aside"] * 2
    assert [outcome is None for _, outcome in seen] == [True, False] * 3


def test_a_transform_that_cannot_start_fails(monkeypatch: pytest.MonkeyPatch):
    laws = {"C0": _law("C0", "contract", "raises")}
    monkeypatch.setattr(_check, "LAWS", laws)
    report = check(normalize(), declared=[])
    assert report.failures == {"C0": "RuntimeError: it cannot start"}


def test_compilations_are_those_of_this_check():
    subject = Subject(normalize())
    reports = [check(subject, laws="partition", examples=2) for _ in range(2)]
    assert [report.compilations for report in reports] == [2, 0]


def test_assert_lawful_accepts_a_true_declaration():
    assert_lawful(normalize(), laws="translation", examples=3)


def test_assert_lawful_shows_the_counterexample_to_a_declared_law():
    code = (
        "from contrib_core import add_decayed_weights\n"
        "transform = add_decayed_weights(0.1)"
    )
    with pytest.raises(AssertionError) as caught:
        assert_lawful(
            add_decayed_weights(0.1),
            {"translation"},
            laws="translation",
            examples=3,
            code=code,
            name="decay",
        )
    assert str(caught.value).startswith("decay is not lawful: translation\n")
    test = str(caught.value).partition("\n")[2]
    namespace: dict[str, Any] = {}
    exec(test, namespace)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        namespace["test_translation"]()


def test_assert_lawful_refuses_a_modest_declaration():
    with pytest.raises(AssertionError, match="too modest: it also obeys translation"):
        assert_lawful(normalize(), declared=(), laws="translation", examples=3)


def test_assert_lawful_tells_all_faults_at_once(fakes: dict[str, Law]):
    broken: Any = ["broken"]
    with pytest.raises(AssertionError) as caught:
        assert_lawful(normalize(), declared=broken)
    message = str(caught.value)
    assert (
        "is not lawful: bad, broken" in message and "also obeys kept, modest" in message
    )
    assert "def test_bad():" in message and "def test_other():" not in message


# The code of a transform


@pytest.mark.parametrize(
    "transform, code",
    [
        (Normalize, "from contrib_algos import Normalize\ntransform = Normalize()"),
        (
            Momentum(0.5),
            "from contrib_algos import Momentum\ntransform = Momentum(momentum=0.5)",
        ),
        (Momentum(), "from contrib_algos import Momentum\ntransform = Momentum()"),
        # Others take more than numbers, text and `None`, or cannot be imported.
        (chain(normalize(), normalize()), ""),
        (scale(float("inf")), ""),
        (lambda: normalize(), ""),
    ],
)
def test_code_of_transforms(transform: Any, code: str):
    assert Subject(transform).code == code


def test_a_transform_that_cannot_be_imported_is_to_be_filled_in():
    subject = Subject(chain(normalize(), normalize()), name="mine")
    test = subject.as_test("it", "assert transform")
    assert "    transform = ...  # mine, as it was checked\n    assert" in test


def test_other_names_do_not_hide_those_of_the_kit():
    """Both this package and optax have a `chain` and a `scale`."""
    subject = resolve("optax:chain(sgd(0.1), scale(2.0))")
    code = "one = contrib_core.scale(1.0), contrib_core.chain"
    names: dict[str, Any] = {}
    exec(subject.as_test("it", f"{code}\nreturn one, transform"), names)
    (one, combined), made = names["test_it"]()
    assert (type(one), combined) == (type(scale(1.0)), chain)
    assert type(made) is type(subject.given)


# Specifications

RULES = """
import functools
import optax
from contrib_algos import adam

plain = adam(0.1)
three = 3

def recipe(learning_rate, b1=0.9):
    return adam(learning_rate, b1)

def wrapper(inner: optax.GradientTransformation):
    return inner

def demanding(foo):
    return adam(foo)

def broken():
    raise RuntimeError("out of\\nluck")
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with modules."""
    (tmp_path / "my_rules.py").write_text(RULES)
    (tmp_path / "my_missing.py").write_text("import no_such_package")
    (tmp_path / "my_typo.py").write_text("x = 1\n\ny = undefined\n")
    (tmp_path / "my_syntax.py").write_text("x = 1\nf(\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    importlib.invalidate_caches()
    for path in tmp_path.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "spec, code",
    [
        ("my_rules:plain", "from my_rules import plain\ntransform = plain"),
        (
            "my_rules:recipe",
            "from my_rules import recipe\ntransform = recipe(learning_rate=0.1)",
        ),
        (
            "my_rules:wrapper",
            "from my_rules import wrapper\n"
            "transform = wrapper(inner=contrib_core.scale_by_learning_rate(0.1))",
        ),
        (
            "my_rules:lambda: recipe(0.2)",
            "from my_rules import recipe\ntransform = (lambda: recipe(0.2))()",
        ),
        (
            "my_rules : optax.adam(0.1)",
            "import optax\ntransform = optax.adam(0.1)",
        ),
        (
            "optax.contrib:sam(optax.sgd(0.1), normalize())",
            "import optax\nfrom optax.contrib import normalize, sam\n"
            "transform = sam(optax.sgd(0.1), normalize())",
        ),
        (
            "contrib_core:chain(contrib_algos.normalize())",
            "import contrib_algos\nfrom contrib_core import chain\n"
            "transform = chain(contrib_algos.normalize())",
        ),
        ("contrib_algos:DoG", "from contrib_algos import DoG\ntransform = DoG()"),
    ],
)
def test_specifications(rules: Path, spec: str, code: str):
    subject = resolve(spec)
    assert subject.code == code
    namespace: dict[str, Any] = {}
    exec(subject.as_test("it", "transform.init, transform.update"), namespace)
    namespace["test_it"]()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "spec, says",
    [
        ("my_rules.plain", "Write `my_rules:plain`."),
        ("my_rules.recipe(0.1)", "Write `my_rules:recipe(0.1)`."),
        ("my_rules", "Write `my_rules:NAME`, as in `mypkg.rules:my_rule(0.1)`."),
        ("recipe(0.1)", "Write `MODULE:recipe(0.1)`, as in "),
        ("my_rules.py:plain", "Write `my_rules:plain`."),
        ("a/my_rules.py:plain", "Write `a.my_rules:plain`."),
        (".my_rules:plain", "Write `my_rules:plain`."),
        ("my_rules:", "Write `my_rules:NAME`, as in "),
        (":plain", "Write `MODULE:plain`, as in "),
        (
            "contrib_algo:adam",
            "no module `contrib_algo`; did you mean `contrib_algos`?",
        ),
        ("contrib_law:LAWS", "did you mean `contrib_laws`?"),
        ("contrib_core.tre:x", "did you mean `contrib_core.tree`?"),
        ("my_missing:x", "`my_missing` needs `no_such_package`, which is missing."),
        ("my_typo:x", "name 'undefined' is not defined (my_typo.py, line 3)"),
        ("my_syntax:x", "SyntaxError: '(' was never closed (my_syntax.py, line 2)"),
        ("my_rules:recipe(0.1", "`recipe(0.1` is not a Python expression ("),
        ("my_rules:plan", "`my_rules` has no `plan`; did you mean `plain`? "),
        (
            "my_rules:recipe(prodigy())",
            "`my_rules` has no `prodigy`. Write names of other ",
        ),
        ("my_rules:optax.adamm(0.1)", "no attribute 'adamm'; did you mean `adam`?"),
        ("my_rules:recipe(b3=1)", "; it is `recipe(learning_rate, b1=0.9)`"),
        ("my_rules:recipe(b3=1)(2)", "raises TypeError: recipe() "),
        ("my_rules:three()", "TypeError: 'int' object is not callable"),
        ("my_rules:three", "3 is not a transform; a transform has `init` and `update`"),
        ("my_rules:demanding", "requires `foo`, "),
        ("my_rules:demanding", " Write `my_rules:demanding(foo=...)`."),
        ("my_rules:broken", "raises RuntimeError: out of luck (my_rules.py, line "),
    ],
)
def test_wrong_specifications_are_explained(
    rules: Path, capsys: pytest.CaptureFixture[str], spec: str, says: str
):
    with pytest.raises(SpecError) as caught:
        resolve(spec)
    assert says in str(caught.value)
    assert main([spec]) == 2
    assert capsys.readouterr().err == f"python -m contrib_laws: {caught.value}\n"


# The command line


def test_a_lawful_transform_exits_with_0(capsys: pytest.CaptureFixture[str]):
    assert main(["contrib_algos:normalize", *"--laws translation".split()]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "contrib_algos:normalize"
    assert out.splitlines()[-1].startswith("lawful: 1 declared law holds (")
    assert err.splitlines()[0].startswith("[1/1] translation")


def test_the_command_line_takes_a_guess_and_terms(capsys: pytest.CaptureFixture[str]):
    options = "--guess estim_lr0 --term monotone.distance=estim_lr --examples 2"
    laws = "--laws monotone,bounded_growth,initial_guess"
    assert main(["optax.contrib:prodigy", *options.split(), *laws.split()]) == 0
    out, _ = capsys.readouterr()
    for row in ("monotone        fails", "initial_guess   holds"):
        assert f"  {row} " in out
    assert "bounded_growth  does not apply" in out


def test_groups_can_be_declared(capsys: pytest.CaptureFixture[str]):
    options = "--laws translation --declared algebra"
    assert main(["contrib_algos:normalize", *options.split()]) == 0
    assert "Not declared" not in capsys.readouterr().out


def test_an_unlawful_transform_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "report.json"
    spec = "contrib_core:add_decayed_weights(0.1)"
    options = "--laws translation --declared translation --examples 3 --seed 7"
    assert main([spec, *options.split(), "--json", str(path)]) == 1
    found = json.loads(path.read_text())
    assert (found["name"], found["seed"], found["examples"]) == (spec, 7, 3)
    (law,) = found["laws"]
    assert law["verdict"] == "fails" and law["declared"]
    assert law["counterexample"] in capsys.readouterr().out
    namespace: dict[str, Any] = {}
    exec(law["counterexample"], namespace)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        namespace["test_translation"]()


@pytest.mark.parametrize(
    "options, says",
    [
        ("--laws tranlation", "did you mean `translation`? Laws: types, "),
        ("--laws ,", "names no law"),
        ("--declared units,foo", "there is no law `foo`. Laws: "),
        ("--term monoton.distance=d", "did you mean `monotone`?"),
        ("--term distance=d", "write LAW.TERM=FIELD, as in monotone.distance=d."),
    ],
)
def test_wrong_names_exit_with_2(
    capsys: pytest.CaptureFixture[str], options: str, says: str
):
    assert main(["contrib_algos:normalize", *options.split()]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["a:b", "--examples", "0"], ["--no"]])
def test_wrong_options_exit_with_2(argv: list[str]):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_a_file_that_cannot_be_written_exits_with_2(
    fakes: dict[str, Law], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "no" / "report.json"
    argv = ["contrib_algos:normalize", "--laws", "good", "--json", str(path)]
    assert main(argv) == 2
    assert f"cannot write {path}: No such file" in capsys.readouterr().err


def test_the_list_has_every_law(capsys: pytest.CaptureFixture[str]):
    assert main(["--list"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    for law in LAWS.values():
        assert f" {law.name} {law.sentence}" in listed


@pytest.mark.parametrize("has_rich", [True, False])
def test_on_a_terminal_there_are_colours_if_there_is_rich(
    fakes: dict[str, Law],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_rich: bool,
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    argv = ["contrib_algos:normalize", "--declared", "kept"]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert ("\x1b[" in out) == ("\x1b[" in err) == has_rich
    assert "NOT lawful: bad (" in out
    assert all(f"  {name}" in out for name in fakes)
    assert ("10/10" if has_rich else "[10/10] elsewhere") in err


def test_the_module_runs():
    env = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    options = "contrib_algos:normalize --laws translation,sharding --examples 3"
    result = subprocess.run(
        [sys.executable, "-m", "contrib_laws", *options.split()],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Without eight devices, sharding would not apply.
    assert "lawful: 1 contract law and 1 declared law hold (" in result.stdout
