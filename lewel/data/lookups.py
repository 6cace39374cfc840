"""Looks images up by what a list calls them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from lewel.data.walk import EXTENSIONS, Identities, ending, order, shown
from lewel.errors import LewelError


class Look(Protocol):
    """Finds an image by what a list calls it."""

    places: list[str]

    def up(self, text: str, bare: bool = False) -> str | None:
        """The image of that path or name, or, if bare, of that one and some suffix; what costs little."""

    def through_links(self, text: str) -> str | None:
        """By its real path."""

    def identity(self, path: str) -> str:
        """The same for two paths of one image."""


class Anywhere:
    """Images wherever they are, their paths from one folder."""

    def __init__(self, folder: str) -> None:
        self.places, self.identity = [folder], Identities().of
        self._stems: dict[str, defaultdict[str, list[str]]] = {}  # by folder

    def up(self, text: str, bare: bool = False) -> str | None:
        path = os.path.join(self.places[0], os.path.expanduser(text))
        if not bare:
            return path if os.path.isfile(path) else None
        folder, stem = os.path.split(path)
        if folder not in self._stems:
            self._stems[folder] = defaultdict(list)
            for name in _names(folder):
                self._stems[folder][os.path.splitext(name)[0]].append(name)
        names = self._stems[folder].get(stem, [])
        paths = (os.path.join(folder, name) for name in names if ending(name) in EXTENSIONS)
        return next((path for path in paths if os.path.isfile(path)), None)

    def through_links(self, text: str) -> str | None:
        return None  # which up has followed


class Among:
    """Images among those that there are."""

    def __init__(self, said: str, images: Sequence[str], places: Sequence[str]) -> None:
        """said is the list in sentences; places are where relative paths start."""
        self.said, self.places, self.images = said, list(dict.fromkeys(places)), images
        self.identities = Identities()
        self._real: dict[str, str] = {}
        self._paths: dict[bool, dict[str, str]] = {}
        self._named: dict[bool, defaultdict[str, list[str]]] = {}

    def up(self, text: str, bare: bool = False) -> str | None:
        if os.sep in text:
            return self._by_path(text, bare)
        in_class = os.path.join(text.partition("_")[0], text)
        return self._by_path(in_class, bare) or self._by_path(text, bare) or self._by_name(text, bare)

    def _by_path(self, text: str, bare: bool) -> str | None:
        if bare not in self._paths:
            self._paths[bare] = {_key(path, bare): path for path in self.images}
        known = self._paths[bare]
        paths = (os.path.normpath(os.path.join(place, text)) for place in self.places)
        return next((known[path] for path in paths if path in known), None)

    def _by_name(self, name: str, bare: bool) -> str | None:
        if bare not in self._named:
            self._named[bare] = defaultdict(list)
            for path in sorted(self.images, key=order):
                self._named[bare][os.path.basename(_key(path, bare))].append(path)
        paths = self._named[bare].get(name, [])
        if len(paths) > 1:
            raise LewelError(
                f"{self.said} lists {name}, the name of {len(paths)} images, among them "
                f"{shown(paths[0])} and {shown(paths[1])}; write its path below {self.places[0]}"
            )
        return paths[0] if paths else None

    def through_links(self, text: str) -> str | None:
        """Through links, or from another working directory than the images' own paths."""
        if not self._real:
            self._real = {self.identities.of(path): path for path in self.images}
        paths = (os.path.join(place, os.path.expanduser(text)) for place in self.places)
        return next((self._real[real] for path in paths if (real := self.identities.of(path)) in self._real), None)

    def identity(self, path: str) -> str:
        return path


def _key(path: str, bare: bool) -> str:
    return os.path.splitext(path)[0] if bare else path


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []
