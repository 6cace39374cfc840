"""The table of errors of small calls: python -m benchmarks accuracy."""

from __future__ import annotations

import pytest

from benchmarks import __main__
from benchmarks.gpu import accuracy


def test_a_row_for_each_call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(accuracy, "CASES", accuracy.CASES[:2])
    with pytest.raises(SystemExit) as left:
        __main__.main(["accuracy", "--backend", "reference", "--draws", "2"])
    assert not left.value.code
    header, _, *rows = (line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line)
    assert [row[0].strip() for row in rows] == ["1, 8, 8, 16, 2, 196", "4, 64, 257, 16, 1, 16"]
    for row in rows:
        named = dict(zip((x.strip() for x in header), (x.strip() for x in row), strict=True))
        assert 0.5 < float(named["pooled"]) <= float(named["ratio"]) < 3
        assert 1e-9 < float(named["rms"]) < 1e-4
        assert named["draws outside"] in ("0 %", "50 %", "100 %")
