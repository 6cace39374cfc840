"""STL-10: the 200-epoch recipes of CIFAR-10 at 96 pixels, with blur. Nobody has tuned them."""

from __future__ import annotations

from dataclasses import replace

from lewel.recipe.presets import cifar10
from lewel.recipe.presets.preset import SIMCLR_VIEWS, Preset
from lewel.recipe.schema import Data, Train


def _larger(run: Train) -> Train:
    data = Data("stl10", image_size=96, batch_size=256, augmentation=SIMCLR_VIEWS)
    return replace(run, data=data, encoder=replace(run.encoder, stem="small2"))


PRESETS = {
    name.replace("cifar10", "stl10").removesuffix("_200"): Preset(_larger(preset.run), 105_000)
    for name, preset in cifar10.PRESETS.items()
    if name.endswith("_200")
}
