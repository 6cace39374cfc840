"""What online kNN compares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lewel.evaluation import knn


def compared(patch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Of every later call of knn.nearest its bank and labels, whole, its test features as they come in, and its k."""
    calls, nearest = [], knn.nearest

    def look(bank, test, k):
        call = SimpleNamespace(rows=[], labels=[], test=test.clone(), k=k)

        def passing():
            for rows, labels in bank:
                call.rows.append(rows.clone())
                call.labels.append(labels.clone())
                yield rows, labels

        found = nearest(passing(), test, k)
        call.blocks = len(call.rows)
        call.bank, call.labels = torch.cat(call.rows), torch.cat(call.labels)
        calls.append(call)
        return found

    patch.setattr(knn, "nearest", look)
    return calls
