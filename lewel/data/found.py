"""What was found where the images are, in a few lines that are said once, before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags

from lewel.data import opening, pictures
from lewel.data.walk import LINKED, PassedOver, kinds, ranked, shown

LOOKED_AT = 64  # images whose headers are read, at equal distances
NAMED = 6  # folders, which may be masks, and not classes as well


@dataclass
class Found:
    """What lewel.data.layout found. lines opens a few of the images, the rest is known."""

    where: str
    kinds: Counter[str] = field(default_factory=Counter)  # training images by suffix
    folders: Counter[str] = field(default_factory=Counter)  # training images by class folder
    labelled: bool = False  # whether all these folders are classes
    sample: list[str] = field(default_factory=list)  # training images to look at
    turned: bool = False  # whether data.exif_rotate turns them
    one_class: bool = False  # whether the images that kNN compares with are all of one class
    labels: str = ""  # the sentence about kNN: from which images, or why it is off
    why_none: str = ""  # why there are no images with labels to train on and to test by
    beside: list[str] = field(default_factory=list)  # what lies beside train/ and is not used
    passed: PassedOver = field(default_factory=PassedOver)
    in_eval: PassedOver = field(default_factory=PassedOver)  # passed over in data.eval

    def lines(self, knn: bool = True) -> list[str]:
        """What to print: training images by kind, folders and size, what kNN has, what was passed over and why.

        knn says whether the recipe asks for kNN.
        """
        count = f"{self.kinds.total():,} training images in {shown(self.where)}"
        sizes, notes = look(self.sample, self.turned)
        lines = ["; ".join(part for part in (f"found {count}: {kinds(self.kinds)}", self._folders(), sizes) if part)]
        lines += [f"  {shown(line)}" for line in (*notes, self.labels if knn else "", *self.beside) if line]
        if linked := self.passed.counts[LINKED]:
            lines.append(f"  links to files among the images, each an image of its own: {linked:,}")
        lines += [f"  passed over, {line}" for line in self.passed.lines()]
        return lines + [f"  passed over in data.eval, {line}" for line in self.in_eval.lines()]

    def _folders(self) -> str:
        if not self.folders:
            return ""
        (most, large), *_, (least, small) = ranked(self.folders) * 2  # of one folder too
        what = "class folder" if self.labelled else "folder"
        outside = self.kinds.total() - self.folders.total()
        beside = f", {outside:,} beside {'them' if len(self.folders) > 1 else 'it'}" if outside else ""
        if len(self.folders) == 1:
            return f"{f'{large:,} ' if outside else ''}in one {what}, {shown(most)}{beside}"
        if not self.labelled and len(self.folders) <= NAMED:
            named = ", ".join(f"{shown(name)} {count:,}" for name, count in sorted(self.folders.items()))
            return f"in {len(self.folders)} folders: {named}{beside}"
        each = f"{large:,} each" if large == small else f"{small:,} ({shown(least)}) to {large:,} ({shown(most)})"
        return f"in {len(self.folders):,} {what}s of {each}{beside}"


def look(paths: list[str], turned: bool) -> tuple[str, list[str]]:
    """The sizes of images in words, and a sentence for each thing that training makes of them unasked."""
    sizes: list[tuple[int, int]] = []
    rotated = transparent = several = wide = broken = 0
    for path in paths:
        try:
            with opening.opened(Path(path)) as image:
                sizes.append(image.size)
                # Of a PNG without it in front, asking would decode the whole.
                orientation = 1
                # A TIFF is turned by Pillow itself.
                if image.format not in ("PNG", "TIFF") or (image.format == "PNG" and "exif" in image.info):
                    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                rotated += orientation in range(2, 9)
                transparent += image.mode.lower().endswith("a") or "transparency" in image.info
                several += getattr(image, "is_animated", False)
                wide += pictures.is_wide(image)
        except Exception:  # whatever a decoder makes of a broken file; training tells of it by name
            broken += 1
    of = f"of {len(paths)} that were looked at"
    how = "are turned as EXIF says" if turned else "have an EXIF rotation, ignored without --data.exif-rotate"
    notes = (
        (rotated, how),
        (transparent, "have transparency, which is dropped"),
        (several, "hold several pictures, of which the first is used"),
        (wide, "hold more than 8 bits, scaled to 8: by the range of each, but for colours that use all 16 bits"),
        (broken, "cannot be read"),
    )
    return _sizes(sizes), [f"{of}, {count} {what}" for count, what in notes if count]


def _sizes(sizes: list[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    small, large = (pick(sizes, key=lambda size: (size[0] * size[1], size)) for pick in (min, max))
    text = "{}x{}".format(*small) + ("" if small == large else " to {}x{}".format(*large)) + " pixels"
    return text if len(sizes) < LOOKED_AT else f"{text} in {LOOKED_AT} looked at"
