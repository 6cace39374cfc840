"""Fused alignment maps and aligned pooling for LEWEL (Learning Where to Learn, CVPR 2022).

Importing this package imports neither a compiler nor a GPU library; backends are loaded when first chosen.
"""

from lewel_kernels.dispatch import BACKENDS, BackendUnavailable, Explanation, use_backend
from lewel_kernels.functional import align_aggregate, explain, fused_align_aggregate
from lewel_kernels.modules import AlignAggregate

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "AlignAggregate",
    "BackendUnavailable",
    "Explanation",
    "__version__",
    "align_aggregate",
    "explain",
    "fused_align_aggregate",
    "use_backend",
]
