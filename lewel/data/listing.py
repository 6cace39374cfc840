"""Files that list what is used: images to train on, classes (ImageNet-100), training images (the 1 % and 10 %)."""

from __future__ import annotations

import codecs
import difflib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from lewel.data.walk import EXTENSIONS, Identities, PassedOver, ending, order, shown
from lewel.errors import LewelError

NAMED = 3  # bad lines that a sentence quotes
QUOTED = 120  # characters of a line that are quoted
LONGEST = 4096  # characters that a path may have
LABELS = "labels behind the paths of a list (labels come from folders)"


def classes(file: str, names: Sequence[str], where: str) -> set[str]:
    """The class folders that file lists. Raises LewelError for one that is not among names, the folders in where."""
    listed = [bare for line in _lines(file, "data.classes") if (bare := _without_comment(line))]
    unknown = [name for name in listed if name not in names]
    if unknown:
        near = difflib.get_close_matches(_cut(unknown[0]), names, n=1, cutoff=0.0)
        meant = f"did you mean {shown(near[0])}?" if near else "there are no class folders there."
        raise LewelError(
            f"data.classes {file} lists {len(unknown)} classes that have no folder in {where}, the first "
            f"{_cut(unknown[0])!r}; {meant} Expected one class folder a line"
        )
    return set(listed)


def images(file: str, passed: PassedOver) -> list[str]:
    """The paths of the images that file lists, each once, in order; a relative path starts from file's own folder.

    Raises LewelError for lines that name no image.
    """
    folder, identities = os.path.dirname(file), Identities()
    found: dict[str, str] = {}
    bad: list[tuple[str, str]] = []
    lines = _lines(file, "data.root")
    for line in lines:
        readings = ((os.path.join(folder, os.path.expanduser(text)), rest) for text, rest in _readings(line))
        path, rest = next((reading for reading in readings if os.path.isfile(reading[0])), ("", ""))
        if not path:
            bad.append((line, _why_no_image([os.path.join(folder, line)])))
        elif ending(path) not in ("", *EXTENSIONS):  # without a suffix it may be anything, and somebody named it
            bad.append((line, f"{ending(path)} files are not read"))
        elif second := _image_in(rest):
            bad.append((line, second))
        else:
            _told(passed, line, rest, path, identities.of(path), found)
    if bad:
        raise LewelError(
            f"data.root {file} lists what is no image in {len(bad):,} of {len(lines):,} lines: {_quoted(bad)}; "
            f"expected one image a line, its path absolute or from {folder or '.'}, the folder of the list"
        )
    return sorted(found.values(), key=order)


def chosen(file: str, among: Sequence[str], places: Sequence[str], passed: PassedOver) -> set[str]:
    """Those of the images among that file lists.

    A line is a path, absolute, from one of places or from file's own folder, or a bare file name. A bare name is looked
    up in the class before its first "_", then among all images. Raises LewelError for lines that name none of the
    images, or a bare name that several have.
    """
    look = _Among(file, among, [*places, os.path.dirname(file)])
    found: dict[str, str] = {}
    bad: list[tuple[str, str]] = []
    for line in _lines(file, "data.train_list"):
        readings = ((look.up(text), rest) for text, rest in _readings(line))
        path, rest = next((reading for reading in readings if reading[0]), (None, ""))
        if path is None:
            bad.append((line, _why_no_image([os.path.join(place, line) for place in look.places])))
        elif second := _image_in(rest):
            bad.append((line, second))
        else:
            _told(passed, line, rest, path, path, found)
    if bad:
        raise LewelError(
            f"data.train_list {file} lists {len(bad):,} images that are not in {', '.join(places[:1])}"
            f"{' and the other places' * (len(places) > 2)}, the first {_quoted(bad)}; "
            "expected one image a line: its path, absolute or from that folder, or its name"
        )
    return set(found)


class _Among:
    """Finds an image by what a list calls it."""

    def __init__(self, file: str, images: Sequence[str], places: Sequence[str]) -> None:
        self.file, self.places, self.images = file, list(dict.fromkeys(places)), set(images)
        self.identities = Identities()
        self._real: dict[str, str] = {}
        self._named: defaultdict[str, list[str]] = defaultdict(list)

    def up(self, text: str) -> str | None:
        tries: tuple[Callable[[str], str | None], ...] = (self._by_path, self._by_real_path)
        tries = tries if os.sep in text else (self._in_its_class, self._by_path, self._by_name, self._by_real_path)
        return next((path for attempt in tries if (path := attempt(text))), None)

    def _by_path(self, text: str) -> str | None:
        paths = (os.path.normpath(os.path.join(place, text)) for place in self.places)
        return next((path for path in paths if path in self.images), None)

    def _in_its_class(self, name: str) -> str | None:
        return self._by_path(os.path.join(name.partition("_")[0], name))

    def _by_real_path(self, text: str) -> str | None:
        """Through links, or from another working directory than the images' own paths."""
        if not self._real:
            self._real = {self.identities.of(path): path for path in self.images}
        paths = (os.path.join(place, os.path.expanduser(text)) for place in self.places)
        return next((self._real[real] for path in paths if (real := os.path.realpath(path)) in self._real), None)

    def _by_name(self, name: str) -> str | None:
        if not self._named:
            for path in sorted(self.images, key=order):
                self._named[os.path.basename(path)].append(path)
        paths = self._named.get(name, [])
        if len(paths) > 1:
            raise LewelError(
                f"data.train_list {self.file} lists {name}, the name of {len(paths)} images, among them "
                f"{shown(paths[0])} and {shown(paths[1])}; write its path below {self.places[0]}"
            )
        return paths[0] if paths else None


def _told(passed: PassedOver, line: str, rest: str, path: str, identity: str, found: dict[str, str]) -> None:
    """Adds the image at path to found, and tells passed what of the line is not used."""
    if rest:
        passed.add(LABELS, _cut(line))
    if identity in found:
        passed.add("images that are listed twice", path)
    found.setdefault(identity, path)


def _readings(line: str) -> Iterator[tuple[str, str]]:
    """What path a line may mean, the whole of it first, and what follows it: of "path", "path label", "path,label".

    A path may hold blanks, commas and the sign of a comment.
    """
    yield line, ""
    bare = _without_comment(line)
    if bare != line:
        yield bare, ""
    for text in dict.fromkeys((bare, line)):
        for mark in reversed(list(re.finditer(r"\s*[\s,;]\s*", text[:LONGEST]))):
            yield text[: mark.start()], text[mark.end() :]


def _image_in(rest: str) -> str:
    """What is wrong where another image follows the first in a line, or ""."""
    second = next((word for word in re.split(r"[\s,;]+", _without_comment(rest)) if ending(word) in EXTENSIONS), "")
    return f"{_cut(second)} follows in the same line" if second else ""


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line).strip()


def _why_no_image(paths: Sequence[str]) -> str:
    """Why none of paths is an image that is used."""
    there = next((path for path in paths if os.path.exists(path)), None)
    if there is None:
        return "there is no such file"
    if os.path.isdir(there):
        return "a folder"
    return "not below it" if ending(there) in EXTENSIONS else f"{ending(there) or 'files without suffix'} is not read"


def _quoted(bad: Sequence[tuple[str, str]]) -> str:
    named = ", ".join(f"{_cut(line)!r} ({why})" for line, why in bad[:NAMED])
    return named + (f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else "")


def _cut(line: str) -> str:
    return line if len(line) <= QUOTED else f"{line[:QUOTED]}..."


def _lines(file: str, setting: str) -> list[str]:
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", _text(file, setting))]
    lines = [line for line in lines if _without_comment(line)]
    if not lines:
        raise LewelError(f"{setting} {file} lists nothing; expected one name a line")
    return lines


def _text(file: str, setting: str) -> str:
    try:
        with open(os.path.expanduser(file), "rb") as stream:
            content = stream.read(8192)
            encoding = _encoding(content)
            if encoding == "utf-16" or b"\0" not in content:  # else it is not worth to be read whole
                content += stream.read()
        if encoding != "utf-16" and b"\0" in content:
            remedy = "; name its folder" if setting == "data.root" else ""
            raise LewelError(f"{setting} {file} is a file, but no text that lists names, one a line{remedy}")
        # A name that is no text to its file system is found by its bytes.
        return content.decode(encoding, "surrogateescape" if encoding != "utf-16" else "strict")
    except (OSError, UnicodeDecodeError) as error:
        raise LewelError(f"cannot read {setting}: {error}") from None


def _encoding(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
        return "utf-16"
    return "utf-8-sig"
