"""Tables, numbers in them and files of the measurements."""

import math
import sys

import pytest

from benchmarks import report
from benchmarks.__main__ import main


@pytest.mark.usefixtures("standard_promotion")
def test_plain_table_and_folder_without_rich(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    argv = ["--rules", "sgd", "--tree", "leaves:2", "--out", str(tmp_path / "folder")]
    assert main(["memory", *argv]) == 0
    assert (tmp_path / "folder" / "memory-leaves-2.json").exists()
    _, header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["rule", "floor", "streams"]
    assert row.split()[:5] == ["sgd", "3", "3.00", "3.00", "1.00"]
    assert len(header) == len(row)


@pytest.mark.parametrize(
    "ours,peer,expected", [(3, 2, 1.5), (3, None, None), (0, 0, 1), (3, 0, math.inf)]
)
def test_ratio(ours, peer, expected):
    assert report.ratio(ours, peer) == expected


def test_number():
    assert [report.number(None), report.number(0.5, 3)] == ["-", "0.500"]
