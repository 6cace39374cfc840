"""Files that list what is used: images to train on, classes (ImageNet-100), training images (the 1 % and 10 %)."""

from __future__ import annotations

import difflib
import errno
import os
import stat
from collections.abc import Sequence

from lewel.data import lines as text_lines
from lewel.data.lines import cut, image_in, readings, without_comment
from lewel.data.lookups import Among, Anywhere, Look
from lewel.data.walk import EXTENSIONS, PassedOver, ending, order, shown
from lewel.errors import LewelError

NAMED = 3  # bad lines that a sentence quotes
LABELS = "labels beside the paths of a list (labels come from folders)"
HEAD = "the first line of a list, which names its columns"
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def classes(file: str, names: Sequence[str], where: str) -> set[str]:
    """The class folders that file lists. Raises LewelError for one that is not among names, the folders in where."""
    known = set(names)
    lines = text_lines.read(file, "data.classes")
    listed = [name for line in lines if (name := line if line in known else without_comment(line))]
    if not listed:
        raise _nothing(file, "data.classes")
    unknown = [name for name in listed if name not in known]
    if unknown:
        near = difflib.get_close_matches(cut(unknown[0]), names, n=1, cutoff=0.0)
        meant = f"did you mean {shown(near[0])}?" if near else "there are no class folders there."
        raise LewelError(
            f"data.classes {file} lists {len(unknown)} classes that have no folder in {where}, the first "
            f"{cut(unknown[0])!r}; {meant} Expected one class folder a line"
        )
    return set(listed)


def images(file: str, passed: PassedOver) -> list[str]:
    """The paths of the images that file lists, each once, in order; a relative path starts from file's own folder.

    Raises LewelError for lines that name no image.
    """
    folder = os.path.dirname(file)
    expected = f"one image a line, its path absolute or from {folder or '.'}, the folder of the list"
    listed = _Listed(file, "data.root", Anywhere(folder), expected, passed)
    if bad := listed.bad:
        raise LewelError(
            f"data.root {file} lists what is no image in {len(bad):,} of {len(listed.lines):,} lines: {_quoted(bad)}; "
            f"expected {expected}"
        )
    return sorted(listed.found.values(), key=order)


def chosen(
    file: str, among: Sequence[str], places: Sequence[str], passed: PassedOver, setting: str = "data.train_list"
) -> set[str]:
    """Those of the images among that file lists, which setting names.

    A line is a path, absolute, from one of places or from file's own folder, or a bare file name. A bare name is looked
    up in the class before its first "_", then among all images. Raises LewelError for lines that name none of the
    images, or a bare name that several have.
    """
    expected = "one image a line: its path, absolute or from that folder, or its name"
    look = Among(f"{setting} {file}", among, [*places, os.path.dirname(file)])
    listed = _Listed(file, setting, look, expected, passed)
    if bad := listed.bad:
        raise LewelError(
            f"{setting} {file} lists {len(bad):,} images that are not in {', '.join(places[:1])}"
            f"{' and the other places' * (len(places) > 2)}, the first {_quoted(bad)}; expected {expected}"
        )
    return set(listed.found)


class _Listed:
    """What the lines of a file name."""

    def __init__(self, file: str, setting: str, look: Look, expected: str, passed: PassedOver) -> None:
        """Raises LewelError where there is nothing, or JSON; expected says what should be there."""
        self.look, self.passed = look, passed
        self.found: dict[str, str] = {}  # images by their identities
        self.bad: list[tuple[str, str]] = []  # lines that name none, and why, where that is quoted
        self.lines = text_lines.read(file, setting)
        self.form = text_lines.form_of(self.lines, self._is_image)
        for number, line in enumerate(self.lines):
            path, rest = self._image(line)
            if path:
                self._take(path, rest, line)
            elif not without_comment(line):
                continue
            elif not number and text_lines.is_json(line):
                raise LewelError(f"{setting} {shown(file)} is JSON, which is not read; expected {expected}")
            elif not number and self.form is not None and text_lines.is_head(line):
                passed.add(HEAD, cut(line))
            else:
                self.bad.append((line, self._why_none(line) if len(self.bad) < NAMED else ""))
        if not self.found and not self.bad:
            raise _nothing(file, setting)

    def _is_image(self, text: str, bare: bool) -> bool:
        try:
            return self.look.up(text, bare) is not None
        except LewelError:  # of several that have this name
            return True

    def _image(self, line: str) -> tuple[str, str]:
        """The image that a line names, and what follows it; "" where there is none."""
        commented = not without_comment(line)
        for form in (text_lines.PLAIN, self.form or text_lines.PLAIN):  # the others take long
            text, rest = form.of(line)
            path = self.look.up(text, form.bare) if text[:1] == "#" or not commented else None
            if path and not image_in(rest):
                return path, rest
        texts = list(readings(line))
        for up in (self.look.up, self.look.through_links):
            for text, rest in texts:
                if path := up(text):
                    return path, rest
        return "", ""

    def _take(self, path: str, rest: str, line: str) -> None:
        wrong = image_in(rest)
        if ending(path) not in ("", *EXTENSIONS):  # without a suffix it may be anything, and somebody named it
            wrong = f"{ending(path)} files are not read"
        if wrong:
            self.bad.append((line, wrong))
            return
        if rest:
            self.passed.add(LABELS, cut(line))
        identity = self.look.identity(path)
        if identity in self.found:
            self.passed.add("images that are listed twice", path)
        self.found.setdefault(identity, path)

    def _why_none(self, line: str) -> str:
        """Why nothing that a line may mean is an image that is used."""
        whole = (line, without_comment(line))
        texts = [self.form.of(line)[0] or line] if self.form else []
        texts += [text for text, _ in readings(line)]
        for path in (os.path.join(place, text) for text in texts for place in self.look.places):
            try:
                mode = os.stat(os.path.expanduser(path)).st_mode
            except OSError as error:
                if error.errno not in ABSENT:
                    return error.strerror or str(error)
            except ValueError:  # a path that cannot be
                continue
            else:
                if stat.S_ISREG(mode):
                    known = ending(path) in EXTENSIONS
                    return "not below it" if known else f"{ending(path) or 'files without suffix'} is not read"
                if not stat.S_ISDIR(mode):
                    return "a pipe, socket or device"
                if path.endswith(whole):
                    return "a folder"
        return "there is no such file"


def _nothing(file: str, setting: str) -> LewelError:
    return LewelError(f"{setting} {file} lists nothing; expected one name a line")


def _quoted(bad: Sequence[tuple[str, str]]) -> str:
    named = ", ".join(f"{cut(line)!r} ({why})" for line, why in bad[:NAMED])
    return named + (f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else "")
