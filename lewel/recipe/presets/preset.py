"""What a preset is, and what presets of several data sets share: methods and the views of two papers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lewel.recipe.schema import Augmentation, MethodSettings, Train


@dataclass(frozen=True)
class Preset:
    """A recipe and what is known of it."""

    run: Train
    images: int
    """training images of the whole set"""
    expected: str = ""
    """what it is known to reach: a measure and percent"""
    source: str = "untuned"
    """where the recipe and what it reaches are from"""
    cost: str = ""
    """what an epoch takes, and on what"""
    linear_by: str = field(default="", kw_only=True)
    """protocol of lewel eval linear by which expected was measured, where it is a linear accuracy"""
    semi: tuple[float, float] | None = field(default=None, kw_only=True)
    """top-1 in percent after fine-tuning on SimCLR's 1 % and 10 % of ImageNet's labels (paper, Table 2)"""

    @property
    def linear(self) -> float | None:
        """Linear top-1 in percent, where that is what is expected."""
        measure, _, percent = self.expected.partition(" ")
        return float(percent) if measure == "linear" else None


MOCO_V2 = MethodSettings(loss="infonce", w_aligned=0.0)
LEWEL_M = replace(MOCO_V2, w_aligned=0.5)
BYOL = MethodSettings(loss="byol", w_aligned=0.0, momentum_schedule="cosine")
LEWEL_B = replace(BYOL, w_aligned=0.5)
SIMSIAM = MethodSettings(loss="simsiam", w_aligned=0.0)
# As in MoCo v2, and as in LEWEL's official release for its BYOL type.
MOCO_VIEWS = Augmentation(jitter=(0.4, 0.4, 0.4, 0.1), blur=(0.5, 0.5), solarize=(0.0, 0.0))
# The views that lightly's tables were measured with, BYOL's row too: SimCLRTransform at cj_strength 0.5. In its
# docs/source/getting_started/benchmarks/ see cifar10_benchmark.py at 03f534b3 (April 2023), imagenette_benchmark.py at
# 3ea07361 (May 2023). BYOL got its own views there in July 2023 (775829bb: BYOLTransform with saturation 0.2, solarize
# 0 and 0.2, blur 1.0 and 0.1 or none), and the tables are the same to this day: no number is known for those.
SIMCLR_VIEWS = replace(MOCO_VIEWS, crop_scale=(0.08, 1.0))
BYOL_VIEWS = Augmentation(jitter=(0.4, 0.4, 0.2, 0.1), blur=(1.0, 0.1), solarize=(0.0, 0.2))


def aligned(run: Train) -> Train:
    """The same recipe with LEWEL's branch: lewel_m of moco_v2, lewel_b of byol, lewel_s of simsiam."""
    return replace(run, method=replace(run.method, w_aligned=LEWEL_M.w_aligned))
