"""Every image below a folder, in an order that does not depend on the file system, and what was passed over."""

from __future__ import annotations

import heapq
import os
import stat
from collections import Counter
from collections.abc import Container

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Folders that systems make for themselves beside one's own, in small letters.
OF_SYSTEMS = (
    "@eadir", "@__thumb", "#recycle", "@recycle", "__macosx", "lost+found", "$recycle.bin", "system volume information",
)  # fmt: skip
DRAWN = ("curves.png", "maps.png")  # by a run, where it lies in the very folder that is walked
NOT_READ = "files of kinds that are not read"
LINKED = "links to files"  # which are images of their own, and not passed over


class PassedOver:
    """What was passed over: by reason how often, and the first path in order."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.kinds: Counter[str] = Counter()  # of NOT_READ, by suffix
        self.folders: dict[str, str] = {}  # the reason for each folder and link, which may be all of a class
        self._told: set[int] = set()  # hashes of what was added, for two places may share folders

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """Counts path, or as many as count of which it is the first, unless it has been for this reason."""
        if hash((reason, path)) in self._told:
            return
        self._told.add(hash((reason, path)))
        self.counts[reason] += count
        self.first[reason] = min(self.first.get(reason, path), path, key=order)

    def add_file(self, path: str) -> None:
        """Counts a file of a kind that is not read."""
        before = self.counts[NOT_READ]
        self.add(NOT_READ, path)
        self.kinds[ending(path)] += self.counts[NOT_READ] - before

    def add_folder(self, reason: str, path: str, detail: str = "") -> None:
        """Counts a folder or a link, and keeps the reason with its detail."""
        self.add(reason, path)
        self.folders[path] = reason + detail

    def why(self, folder: str) -> str:
        """Why folder, or the first in it that was passed over, was: what it is one of; "" where none was."""
        inside = os.path.join(folder, "")
        first = min((path for path in self.folders if path == folder or path.startswith(inside)), default="")
        return f"{shown(first)} is one of the {shown(self.folders[first])}" if first else ""

    def join(self, other: PassedOver) -> None:
        """Adds what other has."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)
        self.kinds += other.kinds
        self.folders |= other.folders

    def lines(self) -> list[str]:
        """A line for each reason."""
        return [
            f"{reason}: {self._counted(reason, count)}{', such as' if count > 1 else ','} {shown(self.first[reason])}"
            for reason, count in ranked(self.counts)
            if reason != LINKED
        ]

    def _counted(self, reason: str, count: int) -> str:
        if reason != NOT_READ:
            return f"{count:,}"
        return kinds(self.kinds) + " (which a list of images may name)" * (set(self.kinds) == {""})


def images_below(folder: str, passed: PassedOver) -> list[str]:
    """The paths of every image below folder, in order; what is no image is told to passed.

    Links are followed, and each real folder is read once: real ones first, so that a folder has its own path where it
    lies below, and a link that leads back adds nothing. No file is looked at but where a link leads to.
    """
    return sorted(_Walk(folder, passed).found, key=order)


def order(path: str) -> str:
    """The key that sorts paths part by part, as Path sorts them."""
    return path.replace(os.sep, "\0")


def is_passed_over(name: str) -> bool:
    """Whether a folder of this name is hidden or a system's own."""
    return name.startswith(".") or name.lower() in OF_SYSTEMS


def is_run(names: Container[str]) -> bool:
    """Whether names are those of what lies in a run folder."""
    return "config.yaml" in names and any(name in names for name in ("log.jsonl", "lock.json", "checkpoints"))


def ending(name: str) -> str:
    """The suffix of a file name or path in small letters, with its dot; "" where there is none."""
    return os.path.splitext(name)[1].lower()


def shown(path: str) -> str:
    """path as it can be printed anywhere: what is no text of it, and what would break the line, is "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in path)


def kinds(counts: Counter[str]) -> str:
    """How many files there are of each suffix."""
    return few([f"{count:,} {shown(kind) or 'without suffix'}" for kind, count in ranked(counts)])


def ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """What was counted, the most frequent first, and of equals the first by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def few(names: list[str], most: int = 6) -> str:
    """The first of names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class _Walk:
    def __init__(self, top: str, passed: PassedOver) -> None:
        self.passed, self.top = passed, top
        self.found: list[str] = []
        self.home = os.path.realpath(top)
        self.seen: dict[tuple[int, int], str] = {}  # of device and inode of each folder the path it is read under
        self.links: list[tuple[str, str]] = []  # to folders, with the key that orders them
        self._read(top)
        while self.links:
            _, link = heapq.heappop(self.links)
            self._follow(link)

    def _follow(self, link: str) -> None:
        target = os.path.join(os.path.realpath(link), "")
        places = (self.home, os.path.realpath(os.path.dirname(link)))
        if any(os.path.join(place, "").startswith(target) for place in places):
            self.passed.add_folder("links that lead back to a folder they lie in", link)
        else:
            self._read(link)

    def _read(self, top: str) -> None:
        """Takes what is below top without following links to folders, which are kept for later."""
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                status = os.stat(folder)
                first = self.seen.setdefault((status.st_dev, status.st_ino), folder)
                if first != folder:
                    self.passed.add_folder("folders that are read under another path already", folder, f": {first}")
                    continue
                with os.scandir(folder) as entries:
                    inside = list(entries)
                of_run = is_run({entry.name for entry in inside})
                if of_run and folder != self.top:
                    self.passed.add_folder("folders of training runs, whose pictures are no data", folder)
                    continue
                for entry in inside:
                    if of_run and entry.name in DRAWN:
                        self.passed.add("pictures of a training run", entry.path)
                    else:
                        self._take(entry, folders)
            except OSError as error:
                self.passed.add_folder(f"folders that cannot be listed ({error.strerror})", folder)

    def _take(self, entry: os.DirEntry[str], folders: list[str]) -> None:
        if entry.name[0] == ".":
            self.passed.add("hidden files and folders", entry.path)
        elif entry.is_symlink():
            self._take_link(entry)
        elif entry.is_file(follow_symlinks=False):
            self._take_file(entry)
        elif not entry.is_dir(follow_symlinks=False):
            self.passed.add("pipes, sockets and devices", entry.path)  # to open one may wait for ever
        elif is_passed_over(entry.name):
            self.passed.add("folders of a system's own", entry.path)
        else:
            folders.append(entry.path)

    def _take_link(self, link: os.DirEntry[str]) -> None:
        try:
            mode = link.stat().st_mode
        except OSError:
            self.passed.add_folder("links that lead nowhere", link.path)
            return
        if stat.S_ISDIR(mode):
            heapq.heappush(self.links, (order(link.path), link.path))
        elif stat.S_ISREG(mode):
            self._take_file(link)
            if ending(link.name) in EXTENSIONS:
                self.passed.add(LINKED, link.path)
        else:
            self.passed.add("pipes, sockets and devices", link.path)

    def _take_file(self, entry: os.DirEntry[str]) -> None:
        if ending(entry.name) in EXTENSIONS:
            self.found.append(entry.path)
        else:
            self.passed.add_file(entry.path)


class Identities:
    """Tells whether two paths name one file, whatever links are on the way."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: str) -> str:
        """The real path of path."""
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)
