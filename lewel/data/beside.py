"""What lies beside the images that are used, or among them and should not, and how to name it, as sentences."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice

from lewel.data.division import TESTS, divided, folders, is_used
from lewel.data.walk import DRAWN, EXTENSIONS, ending, few, shown

LOOKED_AT = 10_000  # entries of a folder, to see whether it holds images


def not_used(root: str, used: Sequence[str]) -> str:
    """What lies in root beside the folders that are used, the first of them train/, and how it would be used."""
    others = sorted(folders(root) - set(used), key=lambda name: (name.lower() in TESTS, name))
    try:
        with os.scandir(root) as entries:
            images = sum(ending(entry.name) in EXTENSIONS and entry.is_file() for entry in entries)
    except OSError as error:
        return f"{root} cannot be listed ({error.strerror}), so nothing is known of what is there beside {used[0]}/"
    parts = [f"{shown(name)}/" for name in others] + ([f"{images:,} image{'s' * (images > 1)}"] if images else [])
    if not parts:
        return ""
    said = f"not used, beside {' and '.join(f'{name}/' for name in used)} in {root}: {few(parts)}"
    places = (os.path.join(root, name) for name in others)
    place = next((place for place in places if _holds_images(place)), "FOLDER" if images else "")
    return said + (f"; to train on more, name it too: --data.root {_command(root, place)}" if place else "")


def _holds_images(folder: str) -> bool:
    """Whether images lie below folder, other than the pictures of training runs, by its first LOOKED_AT entries."""
    try:
        names = (entry.name for entry in islice(_below(folder), LOOKED_AT))
        return any(ending(name) in EXTENSIONS and name not in DRAWN for name in names)
    except OSError:
        return False


def _below(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)


def trained_on(root: str, paths: Sequence[str]) -> str:
    """That test images are among paths, all the images below root, and what to name for none; "" where none are."""
    found = divided(root, paths)
    if not found:
        return ""
    tests = [f"{os.path.join(each.folder, name)}/" for each in found for name in each.tests]
    said = f"{root} holds no train/, so all images below it are trained on, those of {few(tests)} too"
    whole = [each for each in found if each.trains]
    if not whole:
        return said
    if len(whole) > 1:
        places = few([f"{each.folder or root}/" for each in whole])
        return f"{said}; {places} hold training and test images each, name what to use of them: --data.root FOLDER"
    folder, trains, _ = whole[0]
    place = os.path.join(root, folder) if folder else root
    if is_used(whole[0]):
        return f"{said}; {folder}/ holds train/ and test/ or val/, to use these: --data.root {_command(place)}"
    return f"{said}; without them: --data.root {_command(*(os.path.join(place, name) for name in trains))}"


def class_called_train(root: str) -> str:
    """That train/ in root is taken for a class."""
    train = os.path.join(root, "train")
    return (
        f"{train} holds images and no folders, as others beside it do, so it is taken for a class; to train on it "
        f"alone: --data.root {_command(train)}"
    )


def _command(*places: str) -> str:
    return " ".join(map(shlex.quote, places))
