"""The settings of a recipe that a run which is continued may change."""

from __future__ import annotations

# What the next step does not depend on, or, from accumulate on, only where it is computed. See lewel.run.resuming
# for epochs, and lewel.run.shares for accumulate.
FREE_TO_CHANGE = (
    "preset", "out", "keep", "keep_every", "save_every", "log_every", "wandb",
    "knn_every", "knn_k", "knn_temperature", "knn_bank", "probe", "linear_at_end", "data.root", "data.eval",
    "data.download", "data.workers", "data.max_unreadable", "init", "accumulate", "backend", "compile",
    "channels_last", "epochs",
)  # fmt: skip
