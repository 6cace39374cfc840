"""Recipes as plain data: YAML in and out, an unknown key answered with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lewel.errors import LewelError
from lewel.recipe.schema import Train


def to_plain(run: Train) -> dict[str, Any]:
    """The recipe as nested dictionaries of numbers, strings and lists."""
    return _listed(dataclasses.asdict(run))


def to_yaml(run: Train) -> str:
    return yaml.safe_dump(to_plain(run), sort_keys=False)


def load(path: str | os.PathLike[str]) -> Train:
    """The recipe in a YAML file; what it leaves out has the default value."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LewelError(f"cannot read the recipe {path}: {error}") from None
    if values is None:
        raise LewelError(f"the recipe {path} is empty; write a setting, such as epochs: 20, or leave it out")
    return from_plain(values, source=str(path))


def from_plain(values: Any, *, source: str) -> Train:
    """The inverse of to_plain; source names the origin in errors."""
    return _build(Train, values, "", source)


def changed(run: Train, settings: Mapping[str, Any], *, source: str) -> Train:
    """run with settings by name, each a value or a table: {"epochs": 2, "optim.lr": 0.1, "heads": {"tau": 0.1}}."""
    values = to_plain(run)
    for name, value in settings.items():
        _put(values, name.split("."), value)
    return from_plain(values, source=source)


def differences(old: Train, new: Train, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """One "key: old -> new" for every value that differs."""
    before, after = _flat(to_plain(old)), _flat(to_plain(new))
    changed = [key for key in before if before[key] != after[key] and key not in ignore]
    return [f"{key}: {before[key]} -> {after[key]}" for key in changed]


def _put(table: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets the value at path. An unknown setting is put there too: from_plain then refuses it."""
    (name, *rest), known = path, table.get(path[0])
    if rest:
        value = {".".join(rest): value}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping) and isinstance(known, dict):
        for key, item in value.items():
            _put(known, str(key).split("."), item)
    else:
        table[name] = [_text(item) for item in value] if isinstance(value, (list, tuple)) else _text(value)


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _build(schema: type, values: Any, prefix: str, source: str) -> Any:
    if not isinstance(values, dict):
        raise LewelError(f"{source}: {prefix.rstrip('.') or 'the recipe'} must be a table of keys, got {values!r}")
    hints = get_type_hints(schema)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1)
            meant = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(hints)}"
            raise LewelError(f"{source}: there is no {prefix}{key}; {meant}")
    return schema(**{key: _value(hints[key], value, prefix + key, source) for key, value in values.items()})


def _value(kind: Any, value: Any, key: str, source: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, key + ".", source)  # type: ignore[arg-type]
    either = isinstance(kind, UnionType) and any(get_origin(each) is tuple for each in get_args(kind))
    if either and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        kind = next((each for each in get_args(kind) if get_origin(each) is tuple), kind)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        fits = any(value == choice and type(value) is type(choice) for choice in choices)  # 2.0 and true are no 1 or 2
        expected = "one of " + ", ".join(map(str, choices))
    elif get_origin(kind) is tuple:
        items, listed = get_args(kind), isinstance(value, (list, tuple))
        if listed and items[-1] is Ellipsis:
            items = items[:1] * len(value)
        fits = listed and len(value) == len(items)
        what = "strings" if items[:1] == (str,) else "numbers"
        expected = f"a list of {what}" if items[-1:] == (Ellipsis,) else f"{len(items)} {what}"
        if fits:
            return tuple(_value(item, v, key, source) for item, v in zip(items, value, strict=True))
    elif kind is float:
        fits, expected = isinstance(value, (int, float)) and not isinstance(value, bool), "a number" + _as_number(value)
        value = float(value) if fits else value
    elif kind is int:
        fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif kind is bool:
        fits, expected = isinstance(value, bool), "true or false"
    else:
        fits, expected = isinstance(value, str) or (value is None and type(None) in get_args(kind)), "a string"
        expected += " or a list of strings" * either
    if not fits:
        raise LewelError(f"{source}: {key} must be {expected}, got {value!r}")
    return value


def _as_number(value: Any) -> str:
    """A hint how to write a number like 1e-3, which YAML reads as text; "" for any other value."""
    if not isinstance(value, str) or not re.fullmatch(r"[-+]?[0-9]+\.?[0-9]*e[-+]?[0-9]+", value.lower()):
        return ""
    mantissa, exponent = value.lower().split("e")
    return f" (write {mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+}, which YAML reads as one)"


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
