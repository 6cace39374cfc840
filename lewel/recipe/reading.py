"""Reads the YAML of a recipe, and refuses what YAML would take for something else than is meant."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import Any

import yaml

from lewel.errors import LewelError

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MERGE = "tag:yaml.org,2002:merge"  # of <<
ARCHIVE = b"PK\x03\x04"  # what torch.save begins a checkpoint with


def read(path: str | os.PathLike[str]) -> Any:
    """What a YAML file holds. Raises LewelError for one that is none, is empty, or says something twice."""
    path = Path(path)
    if path.is_dir():
        inside = path / "config.yaml"
        raise LewelError(
            f"the recipe {path} is a folder; " + (f"its run's is {inside}" if inside.exists() else "name a YAML file")
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LewelError(f"cannot read the recipe {path}: {error.strerror}") from None
    if b"\0" in content and not content.startswith(UTF16):
        checkpoint = f"; a checkpoint is continued by --resume {path}" if content.startswith(ARCHIVE) else ""
        raise LewelError(f"the recipe {path} is no YAML text{checkpoint}")
    try:
        values = yaml.load(content, _Loader)
    except yaml.reader.ReaderError as error:
        raise LewelError(f"cannot read the recipe {path} as UTF-8: {str(error).splitlines()[0]}") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise LewelError(f"cannot read the recipe {path}: {line}{problem}") from None
    except (ValueError, RecursionError) as error:  # as of !!int x, and of thousands of brackets
        raise LewelError(f"cannot read the recipe {path}: {error}") from None
    if values is None:
        raise LewelError(f"the recipe {path} is empty; write a setting, such as epochs: 20, or leave it out")
    return values


class _Loader(yaml.SafeLoader):
    """Refuses keys that are there twice, of which the last would count, and numbers to the base of 8 and 60."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:  # of which there may be several
                if key.value in lines:
                    _refuse(f"{key.value} is in line {lines[key.value]} already; write it once", key)
                lines[key.value] = key.start_mark.line + 1
        return node

    def whole(self, node: yaml.ScalarNode) -> int:
        return self._decimal(node, self.construct_yaml_int(node))

    def number(self, node: yaml.ScalarNode) -> float:
        return self._decimal(node, self.construct_yaml_float(node))

    def text(self, node: yaml.ScalarNode) -> str:
        """A date, which may be the name of a folder."""
        return self.construct_yaml_str(node)

    def _decimal(self, node: yaml.ScalarNode, value: Any) -> Any:
        if ":" in node.value or re.match("[-+]?0[0-7_]+$", node.value):
            _refuse(f"YAML takes {node.value} for {value}; write that number, or quotes around what is text", node)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.text)


def _refuse(problem: str, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
