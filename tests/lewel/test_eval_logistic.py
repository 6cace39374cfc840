"""`lewel eval logistic`: scikit-learn's regression on kept features."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_eval_knn import command

import lewel
from lewel.errors import LewelError
from lewel.evaluation import cache, logistic, outcome
from lewel.evaluation.cache import Features
from lewel.evaluation.logistic import Settings


def drawn(count: int, classes: int, seed: int, spread: float = 1.0) -> Features:
    """Rows about a mean for each class, which two of them share with a neighbour in part."""
    draw = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(classes, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % classes
    rows = 50 * (means[labels] + spread * torch.randn(count, 6, generator=draw))
    return Features(rows.half(), labels, torch.arange(count))


def fitted(monkeypatch: pytest.MonkeyPatch, train: Features, test: Features, **settings: Any) -> dict[str, Any]:
    monkeypatch.setattr(cache, "features_of", lambda subject, split, tell: train if split == "train" else test)
    return logistic.evaluate(SimpleNamespace(), Settings(**settings))  # type: ignore[arg-type]


def test_it_is_scikit_learn_s_on_all_training_images(monkeypatch):
    train, test = drawn(300, 7, 1, 3.0), drawn(140, 7, 2, 3.0)
    found = fitted(monkeypatch, train, test, c=(0.3,))
    rows, tests = train.rows.double().numpy(), test.rows.double().numpy()
    scale = np.sqrt((rows**2).mean())
    model = LogisticRegression(C=0.3, max_iter=1000).fit(rows / scale, train.labels)
    scores, truth = model.decision_function(tests / scale), test.labels.numpy()[:, None]
    ranked = np.argsort(-scores, axis=1)
    assert found["top1"] == pytest.approx(100 * (ranked[:, :1] == truth).any(1).mean(), abs=1)
    assert found["top5"] == pytest.approx(100 * (ranked[:, :5] == truth).any(1).mean(), abs=1)
    assert found["top1"] < found["top5"] < 100
    assert found["accuracy"] == found["top1"]


def test_c_is_chosen_on_training_images_alone(monkeypatch):
    train = drawn(300, 3, 1, 4.0)
    grid = (1e-4, 0.1, 10.0)
    one, other = (fitted(monkeypatch, train, test, c=grid) for test in (drawn(90, 3, 2), drawn(90, 3, 3, 9.0)))
    assert one["c"] == other["c"]
    assert one["held_out"] == other["held_out"]
    assert one["held_out"].keys() == {"0.0001", "0.1", "10"}
    assert one["held_out"][f"{one['c']:g}"] == max(one["held_out"].values())


def test_of_two_classes_and_of_fewer_than_five(monkeypatch):
    found = fitted(monkeypatch, drawn(80, 2, 1, 0.2), drawn(40, 2, 2, 0.2))
    assert (found["top1"], found["top5"]) == (100, 100)


def test_that_it_did_not_converge_is_said(monkeypatch, capsys):
    found = fitted(monkeypatch, drawn(80, 4, 1, 3.0), drawn(40, 4, 2), c=(100.0,), iterations=1)
    assert not found["converged"]
    assert "lbfgs did not converge in 1 iterations for c 100" in capsys.readouterr().out


def test_one_class_is_a_sentence(monkeypatch):
    with pytest.raises(LewelError, match="needs training images of two classes at least"):
        fitted(monkeypatch, drawn(20, 1, 1), drawn(10, 1, 2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"c": (0.0, 1.0)}, "c must be positive numbers"),
        ({"iterations": 0}, "must be positive"),
        ({"seed": -1}, "seed must be 0 or more, and below 2.*63, got -1"),
    ],
)
def test_bad_settings_are_sentences_before_anything_is_written(settings, said, finished, tmp_path):
    with pytest.raises(LewelError, match=said):
        lewel.eval("logistic", finished.folder, out=tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_one_number_does_as_a_list_of_it(finished, tmp_path):
    assert lewel.eval("logistic", finished.folder, c=0.1, out=tmp_path)["c"] == 0.1


def test_from_the_command_line(finished, tmp_path, capsys):
    command("eval", "logistic", finished.folder, "--c", 0.01, 1, "--out", tmp_path)
    (result,) = outcome.newest(tmp_path, "logistic")
    values = result["values"]
    assert f"logistic regression {values['top1']:.2f} % (top-5 {values['top5']:.2f} %)" in capsys.readouterr().out
    assert result["accuracy"] == values["top1"] <= values["top5"]
    assert lewel.eval("logistic", finished.folder, c=[0.01, 1], out=tmp_path)["top1"] == values["top1"]
    assert len(list(Path(tmp_path, "eval").glob("*.json"))) == 1
