"""The objectives, a file each: what is made of two views, and what is trained or kept for it beside the networks."""

from __future__ import annotations

from typing import cast

from lewel.methods.objectives.base import Embedding, Objective, Terms
from lewel.methods.objectives.contrast import Contrast
from lewel.methods.objectives.predict import Predict
from lewel.methods.objectives.simsiam import SimSiam
from lewel.recipe import objectives

__all__ = ["OBJECTIVES", "Contrast", "Embedding", "Objective", "Predict", "SimSiam", "Terms"]

OBJECTIVES = cast(dict[str, type[Objective]], objectives.OBJECTIVES)  # one table, which recipes look names up in
OBJECTIVES |= {"infonce": Contrast, "byol": Predict, "simsiam": SimSiam}
