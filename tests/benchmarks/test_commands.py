"""The list of commands, and the messages for a wrong command line."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.__main__ import COMMANDS, main
from benchmarks.step.rules import RULES


ROOT = Path(benchmarks.__path__[0])

# Commands with the argument --tree.
OF_A_TREE = ["speed", "memory", "compile"]


@pytest.mark.parametrize("argv,code", [([], 2), (["sped"], 2), (["--help"], 0)])
def test_commands_are_listed(argv, code, capsys):
    assert main(argv) == code
    out = capsys.readouterr().out
    assert list(COMMANDS) == [
        line.split()[0] for line in out.splitlines() if "  " in line
    ]
    assert ("'sped'" in out) == (argv == ["sped"])


def test_names_of_commands():
    expected = "demo speed memory compile trace train privacy atlas"
    assert list(COMMANDS) == expected.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    assert error.value.code == 0
    assert f"python -m benchmarks {command}" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.stem)
def test_commands_are_imported_by_no_other_module(path):
    package = ".".join(path.relative_to(ROOT.parent).parts[:-1])
    commands = {f"benchmarks.{command.module}" for command in COMMANDS.values()}
    assert not (commands - {package}) & imported(path, package)


def imported(path: Path, package: str) -> set[str]:
    """Names of modules, and of their attributes, that a file of `package` imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(relative, package)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("command", OF_A_TREE)
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


@pytest.mark.parametrize("command", [*OF_A_TREE, "trace"])
def test_missing_package_names_the_install_command(command, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith("benchmarks."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optax", None)
    assert main([command]) == 1
    assert f'{command} needs optax: pip install -e ".[demo]"' in capsys.readouterr().err
