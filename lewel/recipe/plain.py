"""Recipes as plain data: YAML in and out, an unknown key answered with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lewel.errors import LewelError
from lewel.recipe import objectives
from lewel.recipe.schema import Train

PYTHON = "lewel.train"  # as a source: the values are not from YAML
FLAGS = ("config", "resume", "dry_run", "processes")  # of lewel train beside the recipe


def to_plain(run: Train) -> dict[str, Any]:
    """The recipe as nested dictionaries of numbers, strings and lists."""
    return _listed(dataclasses.asdict(run))


def to_yaml(run: Train) -> str:
    return yaml.safe_dump(to_plain(run), sort_keys=False)


def from_plain(values: Any, *, source: str) -> Train:
    """The inverse of to_plain; source names the origin in errors."""
    return _build(Train, values, "", source)


def changed(run: Train, settings: Mapping[str, Any], *, source: str) -> Train:
    """run with settings by name, each a value or a table: {"epochs": 2, "optim.lr": 0.1, "heads": {"tau": 0.1}}.

    Places of images without the name of a set are folders. Raises LewelError for a setting that is given twice too.
    """
    if not isinstance(settings, Mapping):
        raise LewelError(f"{source}: the recipe must be a table of keys, got {settings!r}")
    given = Counter(name for name, _ in flat(settings))
    if twice := [name for name, count in given.items() if count > 1]:
        raise LewelError(f"{source}: {twice[0]} is given twice, dotted and in its table; give it once")
    values = to_plain(run)
    for name, value in settings.items():
        _put(values, str(name).split("."), value)
    made = from_plain(_listed(values), source=source)
    if made.data.name == "embedded" and made.data.roots and not {"data", "data.name"} & given.keys():
        made = dataclasses.replace(made, data=dataclasses.replace(made.data, name="folder"))
    return made


def differences(old: Train, new: Train, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """One "key: old -> new" for every value that differs."""
    before, after = dict(flat(to_plain(old))), dict(flat(to_plain(new)))
    changed = [key for key in before if before[key] != after[key] and key not in ignore]
    return [f"{key}: {before[key]} -> {after[key]}" for key in changed]


def bare(value: Any) -> Any:
    """A path as a string, numbers and arrays of numpy and torch as Python's; anything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in nested tables by dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
        table[name] = value


def _build(schema: type, values: Any, prefix: str, source: str) -> Any:
    hints = get_type_hints(schema)
    if not isinstance(values, dict):
        what = prefix.rstrip(".") or "the recipe"
        raise LewelError(f"{source}: {what} must be a table of keys, got {values!r}{_as_table(what, values, hints)}")
    for key in values:
        if prefix + str(key) in FLAGS:
            flag = f"--{key.replace('_', '-')}"
            raise LewelError(f"{source}: {key} is no part of a recipe; it is a flag of the command, lewel train {flag}")
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1)
            meant = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(hints)}"
            raise LewelError(f"{source}: there is no {prefix}{key}; {meant}")
    return schema(**{key: typed(hints[key], value, prefix + key, source) for key, value in values.items()})


def typed(kind: Any, value: Any, key: str, source: str) -> Any:
    """value as kind, the type of a field. Raises LewelError, with key and source, where it is of another."""
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
            return tuple(typed(item, v, key, source) for item, v in zip(items, value, strict=True))
    elif kind is float:
        fits, expected = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
        value = float(value) if fits else value
    elif kind is int:
        fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif kind is bool:
        fits, expected = isinstance(value, bool), "true or false"
    else:
        fits, expected = isinstance(value, str) or (value is None and type(None) in get_args(kind)), "a string"
        expected += " or a list of strings" * either
    if not fits:
        hint = _hint(kind, value, source) if kind in (float, int, bool) else ""
        raise LewelError(f"{source}: {key} must be {expected}{hint}, got {value!r}")
    return value


def _hint(kind: type, value: Any, source: str) -> str:
    """How to write a number or truth that is given as text, as YAML reads 1e-3 too; "" for other values."""
    text = value.lower() if isinstance(value, str) else ""
    if kind is float and source != PYTHON and re.fullmatch(r"[-+]?[0-9]+\.?[0-9]*e[-+]?[0-9]+", text):
        mantissa, exponent = text.split("e")
        return f" (write {mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+}, which YAML reads as one)"
    digits = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?"
    written = {float: digits, int: "[-+]?(0|[1-9][0-9]*)", bool: "true|false"}[kind]
    return " (without quotes)" if re.fullmatch(written, text) else ""


def _as_table(section: str, value: Any, hints: Mapping[str, Any]) -> str:
    """A hint how to write what is given as the word value for a section; "" where none is known."""
    if not isinstance(value, str) or "name" not in hints:
        return f"; {meant}" if section == "method" and (meant := objectives.meant(str(value))) else ""
    key = "root" if section == "data" and value not in get_args(hints["name"]) else "name"
    return f"; write {section}: {{{key}: {value}}}"


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else bare(value)
