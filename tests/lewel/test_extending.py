"""docs/extending.md: each block of code runs, in the order of the page, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lewel

PAGE = Path(lewel.__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def objectives():
    before = dict(lewel.OBJECTIVES)
    yield
    lewel.OBJECTIVES.clear()
    lewel.OBJECTIVES.update(before)


@pytest.mark.usefixtures("objectives", "narrow")
def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) == text.count("```python") == 6
    names: dict = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)  # errors name the line of the page
    for folder in ("first", "encoder", "stripes", "barlow"):
        assert (tmp_path / "runs" / folder / "report.txt").exists()
    assert names["step"].loss.isfinite()
    assert names["step"].loss.dtype == names["torch"].float32
    assert names["method"].objective.queue.pointer == 16  # three times sixteen in 32
    loop = blocks[-1][1].partition("optimizer = ")[2]
    assert len(loop.strip().splitlines()) == 8
