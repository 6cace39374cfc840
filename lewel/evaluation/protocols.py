"""The protocols of linear evaluation: optimizer, batch, rate and schedule of the classifier, and what it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Name = Literal["cached", "a", "b", "moco"]
GRID = tuple(10 ** (-2 + i / 3) for i in range(13))
"""learning rates per 256 images that are tried, three a decade from 0.01 to 100: best values of methods differ by a
factor of a hundred, for the sizes of their features do (swav, issue 38)"""


@dataclass(frozen=True)
class Protocol:
    """How the linear classifiers of one evaluation are trained. Weight decay is 0 in all of them, momentum 0.9."""

    said: str
    """what it is, in words that follow its name"""
    epochs: int
    batch_size: int
    rate: float
    """learning rate per 256 images that was published with it; 0 where none was"""
    schedule: Literal["steps", "cosine", "smooth"]
    """steps: a tenth of the rate from 60 % of the epochs on, a hundredth from 80 %; cosine: half a cosine to 0, one rate
    an epoch; smooth: the cosine step by step"""
    larc: bool = False
    augmented: bool = True
    """whether it is shown random crops, flipped, which the encoder describes anew in every epoch, and not features of
    the centre crop, which are computed once"""

    def factor(self, epoch: int, epochs: int, step: int, steps: int) -> float:
        """What rates are multiplied by in a step of an epoch, both counted from 0, of so many."""
        if self.schedule == "steps":
            return 0.1 ** ((10 * epoch >= 6 * epochs) + (10 * epoch >= 8 * epochs))
        done = epoch / epochs if self.schedule == "cosine" else (epoch * steps + step) / (epochs * steps)
        return 0.5 * (1 + math.cos(math.pi * done))


PROTOCOLS: dict[str, Protocol] = {
    # Not a published one, and the default, for it takes seconds where the others take many passes of the encoder.
    "cached": Protocol("SGD on features of the centre crop", 50, 256, 0.0, "smooth", augmented=False),
    # LEWEL: main_lincls.py, as EMAN's: 0.4, and x 0.1 at 30 and 40 of 50 epochs (EMAN has 30 for MoCo). LEWEL_B.
    "a": Protocol("SGD", 50, 256, 0.4, "steps"),
    # The paper's 3.2 at 4096 images for LEWEL_M, which is 0.2 per 256; SimSiam's code (main_lincls.py), where LARC, the
    # batch, 90 epochs and the cosine by epoch are from, has 0.1 per 256, 1.6 in all.
    "b": Protocol("SGD in LARC", 90, 4096, 0.2, "cosine", larc=True),
    # moco: main_lincls.py: 30, and x 0.1 at 60 and 80 of 100 epochs.
    "moco": Protocol("SGD", 100, 256, 30.0, "steps"),
}
