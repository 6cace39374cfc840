"""What a kind of evaluation, such as kNN, consists of; lewel.evaluation.offline has the table of all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from lewel.errors import LewelError
from lewel.evaluation.features import Tell
from lewel.evaluation.subject import Subject
from lewel.recipe import plain

# What flags of lewel train are in an evaluation, which says only where images are; sentences of both name them.
FLAGS = {
    r", and --data\.root \S.* alone trains without labels": "",
    r"--data\.(root|eval)\b": r"--data-\1",
    r"--data\.workers\b": "--workers",
    r"--init\b": "--weights",
}
OF_THE_RECIPE = re.compile(r"--((?:data|encoder|optim|method)\.[\w.-]*\w)")


def worded(sentence: str) -> str:
    """A sentence of an error with the flags that `lewel eval` has; other settings are said to be the recipe's."""
    for flag, here in FLAGS.items():
        sentence = re.sub(flag, here, sentence)
    settings = list(dict.fromkeys(name.replace("-", "_") for name in OF_THE_RECIPE.findall(sentence)))
    if not settings:
        return sentence
    of = "settings" if len(settings) > 1 else "a setting"
    sentence = OF_THE_RECIPE.sub(lambda found: found[1].replace("-", "_"), sentence)
    return f"{sentence} ({of} of the recipe; without RUN, --preset or --config names another)"


@dataclass(frozen=True)
class Kind:
    """A kind of evaluation; s stands for its settings, an instance of settings."""

    settings: type[Any]
    """the dataclass of its settings, which the command line and lewel.eval make"""
    evaluate: Callable[[Subject, Any, Tell | None], dict[str, Any]]
    """(subject, s, tell) -> values of the result, "accuracy" among them; every process calls it"""
    said: Callable[[dict[str, Any]], str]
    """values -> the numbers in a clause: kNN-200 41.40 %"""
    name: Callable[[Any], str]
    """s -> the kind of the result, such as linear-cached, with which its file's name begins"""
    resolved: Callable[[Subject, Any], dict[str, Any]]
    """(subject, s) -> the settings that the result is written with; raises LewelError for bad ones"""
    cached: Callable[[Any], bool] = lambda settings: True
    """s -> whether it works on the cached features"""
    published: Callable[[Subject, Any], str] = lambda subject, settings: ""
    """(subject, s) -> the published value that goes with it, in a line"""
    planned: Callable[[Subject, Any], str] = lambda subject, settings: ""
    """(subject, s) -> what it is about to do, in lines that are printed before it and in a dry run"""
    done: Callable[[Subject, Any], None] = lambda subject, settings: None
    """(subject, s): is called by every process once the result is written, as to remove a state to go on from"""
    more: Callable[[dict[str, Any]], list[str]] = lambda values: []
    """values -> lines that a person is told after the numbers"""
    answer: Callable[[dict[str, Any]], Any] = lambda values: values
    """values -> what lewel.eval returns"""
    classifies: bool = True
    """whether it learns classes, of which each must have training images"""

    def made(self, given: Mapping[str, Any]) -> Any:
        """Its settings from Python, where None leaves one as it is and one number stands for a list of it.

        Raises LewelError, with the nearest name, for one that there is none of, and for one of the wrong type.
        """
        known = get_type_hints(self.settings)
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise LewelError(f"lewel.eval: there is no {name}; {meant}")
        return self.settings(**{name: _typed(known[name], v, name) for name, v in given.items() if v is not None})


def _typed(hint: Any, value: Any, name: str) -> Any:
    """value as hint has it, a type or one that None may stand for. Raises LewelError for another."""
    kind = next(each for each in get_args(hint) if each is not NoneType) if isinstance(hint, UnionType) else hint
    value = plain.bare(value)
    if isinstance(value, (list, tuple, range)):
        value = tuple(map(plain.bare, value))
    elif get_origin(kind) is tuple and not isinstance(value, str):
        value = (value,)
    return plain.typed(kind, value, name, "lewel.eval")
