"""By what cached features are known: encoder, weights, precision, and the images that they are of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lewel.data import fingerprint
from lewel.evaluation.subject import Subject
from lewel.recipe.feature_maps import CUSTOM

FORMAT = "lewel features 2"
SETTINGS = ("name", "image_size", "exif_rotate", "max_pixels")  # of the data, that change how an image is evaluated
EMBEDDED = ("embedded_train", "embedded_test")


@dataclass(frozen=True)
class Key:
    """What features are of: the name of their folder, which is a hash, and what it is the hash of."""

    name: str
    of: dict[str, Any]


def key_of(subject: Subject) -> Key | None:
    """The key of what an encoder makes of its images; None where either comes from Python, whose code may change.

    Images in folders are known by the names of all, in order, by labels, size and time of change of each, and by what
    many of the files hold (lewel.data.fingerprint); which of them data.classes and the like choose follows from that.
    Reads these files, once.
    """
    digest, kept = subject.digest, subject.kept
    if "key" not in kept or kept["key"][0] != digest:
        kept["key"] = digest, _made(subject, digest)
    return kept["key"][1]


def _made(subject: Subject, digest: str) -> Key | None:
    run, sets = subject.run, subject.sets
    if run.data.name == "custom" or run.encoder.name == CUSTOM:
        return None
    settings = (*SETTINGS, *(EMBEDDED if run.data.name == "embedded" else ()))
    encoder = dataclasses.asdict(run.encoder)
    del encoder["zero_init_residual"]  # only says how one begins
    of = {
        "format": FORMAT,
        "weights": digest,
        "encoder": encoder,
        "precision": run.precision,
        "data": {name: getattr(run.data, name) for name in settings},
        "images": {
            "train": len(sets.bank),
            "test": len(sets.test),
            "classes": sets.num_classes,
            "folders": [split.identity() for split in sets.folders],
            "changed": [fingerprint.stamps(split.paths.tolist()) for split in sets.folders],
        },
    }
    return Key(_hashed(json.dumps(of, sort_keys=True)), of)


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=8).hexdigest()
