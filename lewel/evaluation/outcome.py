"""Stand-in until the real one is merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def newest(folder: Path, kind: str = "") -> list[dict[str, Any]]:
    paths = sorted((folder / "eval").glob(f"{kind}*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in paths]
