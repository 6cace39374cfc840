"""The lines of a file that lists something, and which path a line may mean, however its fields are laid out."""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lewel.data.walk import EXTENSIONS, ending
from lewel.errors import LewelError

QUOTED = 120  # characters of a line that are quoted
LONGEST = 4096  # characters that a path may have
FIRST = 32  # lines that decide on the form of all
WHOLE, BLANKS = "\n", " "
MARKS = (WHOLE, BLANKS, ",", "\t", ";")  # between the fields of a line
HEADS = {"path", "paths", "file", "filename", "filepath", "image", "images", "img", "name", "id", "label", "class"}


def read(file: str, setting: str) -> list[str]:
    """The lines of file, which setting names, without empty ones."""
    return [line for line in map(str.strip, re.split(r"\r\n|\r|\n", _text(file, setting))) if line]


class Form(NamedTuple):
    """How the lines of a list give their paths."""

    mark: str
    column: int
    backslash: bool  # stands for a slash
    bare: bool  # without a suffix

    def of(self, line: str) -> tuple[str, str]:
        """The path in line, as far as it goes, and what stands beside it."""
        fields = _fields(line, self.mark)
        if self.column >= len(fields):
            return "", ""
        path = fields.pop(self.column)
        return path.replace("\\", os.sep) if self.backslash else path, without_comment(" ".join(fields))


PLAIN = Form(WHOLE, 0, False, False)


def form_of(lines: Sequence[str], is_image: Callable[[str, bool], bool]) -> Form | None:
    """The form in which most of the first lines give an image, the plainest of equals; None where none does.

    is_image is asked for paths as they are written, or for those without a suffix.
    """
    first = [line for line in lines[: FIRST + 1] if without_comment(line)]
    best, most = None, 0
    for bare in (False, True):
        forms = (form for line in first for form in _forms(line, bare))
        counts = Counter(form for form, path in forms if path and is_image(path, bare))
        if counts and max(counts.values()) > most:
            best = min(counts, key=lambda form: (-counts[form], form.column, MARKS.index(form.mark), form.backslash))
            most = counts[best]
        if 2 * most > len(first):
            break
    return best


def readings(line: str) -> Iterator[tuple[str, str]]:
    """What path a line may mean, the whole of it first, and what follows it: of "path", "path label", "path,label".

    A path may hold blanks, commas and the sign of a comment.
    """
    yield line, ""
    bare = without_comment(line)
    if bare not in (line, ""):
        yield bare, ""
    for text in dict.fromkeys((bare, line)):
        for mark in reversed(list(re.finditer(r"\s*[\s,;]\s*", text[:LONGEST]))):
            yield text[: mark.start()], text[mark.end() :]


def image_in(rest: str) -> str:
    """What is wrong where another image follows the first in a line, or ""."""
    words = re.split(r"[\s,;]+", without_comment(rest)) if "." in rest else []
    second = next((word for word in words if ending(word) in EXTENSIONS), "")
    return f"{cut(second)} follows in the same line" if second else ""


def is_head(line: str) -> bool:
    """Whether a line may name the columns of those below it."""
    words = re.findall(r"[a-z]+", line.lower())
    return not (re.search(r"[/\\]", line) or image_in(line)) and not HEADS.isdisjoint(words)


def is_json(line: str) -> bool:
    """Whether a first line may begin JSON, of one object a line or of one in all."""
    return re.match(r"""[\[{]\s*(["\[{]|$)""", line) is not None


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line).strip()


def cut(line: str) -> str:
    return line if len(line) <= QUOTED else f"{line[:QUOTED]}..."


def _forms(line: str, bare: bool) -> Iterator[tuple[Form, str]]:
    """Every form that line may have, with the path that it would give."""
    for mark in MARKS:
        for column, field in enumerate(_fields(line, mark)):
            yield Form(mark, column, False, bare), field
            if "\\" in field:
                yield Form(mark, column, True, bare), field.replace("\\", os.sep)


def _fields(line: str, mark: str) -> list[str]:
    """The fields of a line between marks, without the quotes around them."""
    line = line[:LONGEST]
    if mark == WHOLE:
        return [line]
    if mark == BLANKS:
        return line.split()
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=mark, skipinitialspace=True))]
    except csv.Error:  # a field too long for it
        return []


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
