"""The protocols of linear evaluation: optimizer, batch, rate and schedule of the classifier, and what it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Name = Literal["cached", "a", "b", "moco"]
GRID = tuple(10 ** (-2 + i / 3) for i in range(13))
"""learning rates per 256 images that are tried, three a decade from 0.01 to 100: best values of methods differ by a
factor of a hundred, for the sizes of their features do (swav, issue 38). Cached features are divided by their size; of
those of embedded/lewel_m and embedded/moco_v2 0.2 was best"""

# Of cached features, tried before these were divided by their size. Of embedded/lewel_m: 62, 67, 69, 69 and 70 % after
# 800, 1,600, 3,200, 6,400 and 12,800 steps (a logistic regression: 70); of embedded/moco_v2: -, 60, 64, 66 and 67 (67);
# of CIFAR images by an untrained encoder: 37, 39, 40 and 40 after 780, 1,560, 3,900 and 7,800.
ENOUGH = 4000  # steps
LEAST, MOST = 30, 500  # epochs


def drops(epochs: int) -> tuple[int, int]:
    """After how many of epochs a rate falls to a tenth, and to a hundredth: 60 % and 80 %, or the next whole ones."""
    return -(-6 * epochs // 10), -(-8 * epochs // 10)


@dataclass(frozen=True)
class Protocol:
    """How the linear classifiers of one evaluation are trained. Weight decay is 0 in all of them, momentum 0.9."""

    epochs: int
    """0: as epochs_for says"""
    batch_size: int
    rate: float
    """learning rate per 256 images that was published with it; 0 where none was"""
    schedule: Literal["steps", "cosine", "smooth"]
    """steps: a tenth of the rate from 60 % of the epochs on, a hundredth from 80 %; cosine: half a cosine to 0, of one
    rate an epoch; smooth: the cosine step by step"""
    larc: bool = False
    augmented: bool = True
    """whether it is shown random crops, flipped, which the encoder describes anew in every epoch, and not features of
    the centre crop, which are computed once"""

    def epochs_for(self, steps: int) -> int:
        """Epochs of so many steps each: the protocol's own or, of cached features, enough to converge in."""
        return self.epochs or min(max(LEAST, -(-ENOUGH // steps)), MOST)

    def factor(self, epoch: int, epochs: int, step: int, steps: int) -> float:
        """What rates are multiplied by in a step of an epoch, both counted from 0, of so many."""
        if self.schedule == "steps":
            return 0.1 ** sum(epoch >= drop for drop in drops(epochs))
        done = epoch / epochs if self.schedule == "cosine" else (epoch * steps + step) / (epochs * steps)
        return 0.5 * (1 + math.cos(math.pi * done))


PROTOCOLS: dict[str, Protocol] = {
    # Not a published one, and the default, for it takes one pass of the encoder where the others take fifty and more.
    "cached": Protocol(0, 256, 0.0, "smooth", augmented=False),
    # LEWEL: main_lincls.py, as EMAN's: 0.4, and x 0.1 at 30 and 40 of 50 epochs (EMAN has 30 for MoCo). LEWEL_B.
    "a": Protocol(50, 256, 0.4, "steps"),
    # The paper's 3.2 at 4096 images for LEWEL_M, which is 0.2 per 256; SimSiam's code (main_lincls.py), where LARC, the
    # batch, 90 epochs and the cosine by epoch are from, has 0.1 per 256, 1.6 in all.
    "b": Protocol(90, 4096, 0.2, "cosine", larc=True),
    # moco: main_lincls.py: 30, and x 0.1 at 60 and 80 of 100 epochs.
    "moco": Protocol(100, 256, 30.0, "steps"),
}
