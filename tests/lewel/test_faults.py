"""Faults that users of trainers report, each with the command that meets it and the sentence or state that is right.

The tables are in the faults_*.py beside this file; fault.py says what a row holds.
"""

from __future__ import annotations

import faults_eval
import faults_layouts
import faults_limits
import faults_options
import faults_pictures
import faults_processes
import faults_weights
import pytest

TABLES = (faults_eval, faults_layouts, faults_limits, faults_options, faults_pictures, faults_processes, faults_weights)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=f"{table.__name__.removeprefix('faults_')}-{fault.name}{'-slow' * fault.slow}")
        for table in TABLES
        for fault in table.ROWS
    ],
)
def test_fault(fault, tmp_path, capfd, monkeypatch):
    fault.run(tmp_path, capfd, monkeypatch)
