"""Evaluations: of what is no run, of weights that are not all there, of features that are not what they should be."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fault import OF_FILES, Ended, Fault, labelled, pictures
from tiny_runs import TINY, run_in

from lewel import cli
from lewel.methods import encoders
from lewel.recipe import plain
from lewel.recipe.schema import EncoderSettings

NEWEST = "run/checkpoints/step-00000003.pt"
_made: list[Path] = []


def trained(folder: Path) -> None:
    """A run of one epoch in run/, trained once for all rows."""
    if not _made or not _made[0].exists():
        _made[:] = [folder.parent / "evaluated"]
        run_in(_made[0], replace(TINY, epochs=1))
    shutil.copytree(_made[0], folder / "run")
    (folder / "one.yaml").write_text(plain.to_yaml(TINY))


def unlabelled(folder: Path) -> None:
    pictures(folder / "flat", 8)
    run = replace(OF_FILES, data=replace(OF_FILES.data, root=str(folder / "flat")))
    run_in(folder / "run", run)


def with_class_beyond(folder: Path) -> None:
    """Test images of a class that no training image is of: an empty class folder, whose test images a list names."""
    trained(folder)
    labelled(folder / "set")
    shutil.rmtree(folder / "set" / "train" / "bee")
    (folder / "set" / "train" / "bee").mkdir()


def of_one_class(folder: Path) -> None:
    trained(folder)
    for split in ("train", "test"):
        pictures(folder / "one" / split / "ant", 8)


def without_labels(folder: Path) -> None:
    """notest/ has no test images; differ/ has a class of test images alone."""
    trained(folder)
    for name in ("notest", "differ"):
        labelled(folder / name)
    shutil.rmtree(folder / "notest" / "test")
    shutil.rmtree(folder / "differ" / "train" / "bee")


def other_weights(folder: Path) -> None:
    trained(folder)
    torch.save(encoders.build(EncoderSettings("tiny", "imagenet")).state_dict(), folder / "w.pth")


def in_part(folder: Path) -> None:
    trained(folder)
    state = encoders.build(TINY.encoder).state_dict()
    del state["layer3.0.bn2.running_mean"]
    torch.save(state, folder / "w.pth")


def cut_off(folder: Path) -> None:
    trained(folder)
    whole = (folder / NEWEST).read_bytes()
    (folder / "w.pt").write_bytes(whole[: len(whole) // 2])


def of_another_stem(folder: Path) -> None:
    trained(folder)
    (folder / "other.yaml").write_text(plain.to_yaml(replace(TINY, encoder=EncoderSettings("tiny", "small"))))


def with_features(folder: Path) -> Path:
    """The run with its features: their folder."""
    trained(folder)
    with_arguments = ["eval", "knn", str(folder / "run"), "--k", "5"]
    cli._dispatch(with_arguments)
    for result in (folder / "run" / "eval").glob("*.json"):
        result.unlink()
    return next((folder / "run" / "eval").iterdir())


def broken_features(folder: Path) -> None:
    path = with_features(folder) / "train-0000.npy"
    path.write_bytes(path.read_bytes()[:-100])


def interrupted_features(folder: Path) -> None:
    features = with_features(folder)
    (features / "train-0000.npy").rename(features / f".{socket.gethostname()}.999999999.train-0000.npy")


def foreign_features(folder: Path) -> None:
    features = with_features(folder)
    text = (features / "key.json").read_text()
    (features / "key.json").write_text(text.replace('"precision": "fp32"', '"precision": "fp16"'))


def features_of_nan(folder: Path) -> None:
    path = with_features(folder) / "test-0000.npy"
    values = np.load(path)
    values[0, 0] = np.inf
    np.save(path, values)


def nothing_is_written(ended: Ended) -> None:
    assert not (ended.folder / "run" / "eval").exists()
    assert not (ended.folder / "runs").exists()


def features_are_whole(ended: Ended) -> None:
    (features,) = (path for path in (ended.folder / "run" / "eval").iterdir() if path.is_dir())
    parts = [f"{split}-0000{what}.npy" for split in ("test", "train") for what in ("-labels", "-scale", "")]
    names = ["key.json", *parts]
    assert sorted(path.name for path in features.iterdir()) == names
    for split, count in (("train", 48), ("test", 16)):
        assert np.isfinite(np.load(features / f"{split}-0000.npy")).all()
        assert len(np.load(features / f"{split}-0000.npy")) == count


def no_result(ended: Ended) -> None:
    assert not list((ended.folder / "run" / "eval").glob("*.json"))


def signalled(number: signal.Signals) -> Callable[[subprocess.Popen[bytes], Path], None]:
    """Sends the signal once the state of an unfinished evaluation is there."""

    def during(process: subprocess.Popen[bytes], folder: Path) -> None:
        while not list(folder.glob("run/eval/*.state")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)  # it is there a moment before the evaluation counts its epoch as saved
        process.send_signal(number)

    return during


def nothing(folder: Path) -> None:
    pass


ROWS = (
    Fault("without-anything", nothing, "eval knn", status=2,
          says=("lewel eval knn needs a run folder, or --weights FILE",)),
    Fault("of-a-preset-alone", nothing, "eval logistic --preset embedded/lewel_m", status=2,
          says=("lewel eval logistic needs a run folder, or --weights FILE; --preset embedded/lewel_m alone has no",)),
    Fault("of-preset-and-config", nothing, "eval knn --weights w.pth --preset embedded/lewel_m --config tiny.yaml",
          status=2, says=("preset and config both name a recipe; give one of them",)),
    Fault("of-a-run-and-a-preset", trained, "eval knn run --preset embedded/lewel_m", status=2, left=nothing_is_written,
          says=("the run run has its own recipe; leave out --preset embedded/lewel_m",)),
    Fault("of-no-run", nothing, "eval logistic nowhere", status=2,
          says=("nowhere is no run folder: it is not there",)),
    Fault("of-a-run-without-labels", unlabelled, "eval knn run", status=2, left=nothing_is_written,
          says=("kNN compares labels, and the images of run have none", "flat holds no train/ with class folders",
                "; --data-eval ROOT")),
    Fault("logistic-of-a-run-without-labels", unlabelled, "eval logistic run", status=2, left=nothing_is_written,
          says=("a logistic regression learns labels, and the images of run have none", "; --data-eval ROOT")),
    Fault("of-weights-that-are-not-there", trained, "eval knn run --weights w.pth", status=2, left=nothing_is_written,
          says=("there is no file or run folder w.pth of weights (--weights)",)),
    Fault("of-weights-without-a-recipe", other_weights, "eval knn --weights w.pth", status=2, left=nothing_is_written,
          says=("w.pth says nothing about the images to evaluate with; add a run folder, --preset NAME or --config",)),
    Fault("of-weights-of-another-encoder", other_weights, "eval knn run --weights w.pth", status=2,
          left=nothing_is_written, says=("w.pth does not fit the encoder: shapes differ: conv1.weight is",)),
    Fault("of-weights-in-part", in_part, "eval knn run --weights w.pth", status=2, left=nothing_is_written,
          says=("w.pth does not fit the encoder: it lacks layer3.0.bn2.running_mean",)),
    Fault("of-weights-that-are-cut-off", cut_off, "eval knn run --weights w.pt", status=2, left=nothing_is_written,
          says=("w.pt cannot be read as a file of weights: it is cut off",)),
    Fault("of-a-checkpoint-that-is-cut-off", cut_off, "eval knn --weights w.pt", status=2, left=nothing_is_written,
          says=("w.pt cannot be read as a file of weights: it is cut off",)),
    Fault("of-a-checkpoint-of-another-stem", of_another_stem, f"eval knn --config other.yaml --weights {NEWEST}",
          status=2, left=nothing_is_written,
          says=("has the weights of another encoder (its encoder.stem is small2, this run's small)", "leave out RUN")),
    Fault("with-a-k-beyond-the-bank", trained, "eval knn run --k 5 100", status=2, left=nothing_is_written,
          says=("k is 100 but there are only 48 images in the bank", "choose a smaller --k")),
    Fault("with-the-recipe-s-k-beyond-the-bank", trained, "eval knn run",
          says=("the recipe's k 200 is more than the bank's 48 images: all of them vote", "kNN-200", "kNN-20")),
    Fault("with-broken-features", broken_features, "eval knn run --k 5", left=features_are_whole,
          says=("train-0000.npy cannot be read: it is cut off", "this part is computed anew", "kNN-5")),
    Fault("with-features-that-are-not-finite", features_of_nan, "eval knn run --k 5", left=features_are_whole,
          says=("test-0000.npy has values that are not finite; this part is computed anew", "kNN-5")),
    Fault("with-interrupted-features", interrupted_features, "eval knn run --k 5", left=features_are_whole,
          says=("features of the test images: 1 of 1 parts are in run/eval/features-", "kNN-5"),
          never=("Traceback", "anew")),
    Fault("with-features-of-something-else", foreign_features, "eval knn run --k 5", status=2, left=no_result,
          says=("has other features, as its key.json says (precision); remove the folder",)),
    Fault("of-a-class-without-training-images", with_class_beyond, "eval logistic run --data-root set", status=2,
          left=nothing_is_written, says=("bee",)),
    *(Fault(f"{kind}-of-one-class", of_one_class, f"eval {kind} run --data-root one", status=2,
            left=nothing_is_written,
            says=("all training images are of one class, and a classifier learns to tell classes apart",))
      for kind in ("linear", "linear --protocol a", "logistic", "semi", "logistic --dry-run")),
    Fault("knn-of-one-class", of_one_class, "eval knn run --data-root one --k 3", says=("which means nothing",)),
    Fault("of-a-place-without-labels", without_labels, "eval knn run --data-root notest", status=2,
          left=nothing_is_written, says=("the images of notest have none to learn and to test by (notest holds no",)),
    Fault("of-a-place-whose-classes-differ", without_labels, "eval knn run --data-root differ", status=2,
          left=nothing_is_written, says=("'bee' in differ/test; --data-eval ROOT names",),
          never=("--data.", "without labels", "Traceback")),
    Fault("of-no-neighbours", trained, "eval knn run --k 0", status=2, left=nothing_is_written,
          says=("lewel: k must be one number of neighbours",)),
    Fault("of-a-bank-below-0", trained, "eval knn run --bank -1", status=2, left=nothing_is_written,
          says=("lewel: bank must be 0 or more, got -1",)),
    Fault("of-torchvision-s-tiny", trained, "eval knn run --weights torchvision", status=2, left=nothing_is_written,
          says=("choose encoder.name resnet18, or a file (a setting of the recipe; without RUN, --preset",)),
    *(Fault(f"bank-beyond-the-images{also}", trained, f"eval knn run --k 5 --bank 500{also}",
            says=("there are only 48 training images, so that the bank has 48 and not 500",))
      for also in ("", " --dry-run")),
    Fault("help", nothing, "eval --help", says=("usage: lewel eval KIND [RUN]", "  semi  ", "for example: lewel eval")),
    Fault("of-no-kind", nothing, "eval", status=2,
          says=("lewel eval needs a kind and a run folder", "usage: lewel eval KIND [RUN]", "for example: lewel eval")),
    Fault("of-a-misspelt-kind", nothing, "eval knm run", status=2, says=("got knm run; did you mean knn?",)),
    Fault("with-a-k-that-is-no-number", nothing, "eval knn run --k x", status=2, says=("Error parsing --k: invalid",),
          never=("NoneType", "None}", "Traceback")),
    Fault("with-a-rate-that-is-no-number", nothing, "eval semi run --lr x", status=2,
          says=("Error parsing --lr: could",),
          never=("NoneType", "None}", "Traceback")),
    Fault("with-a-misspelt-flag", nothing, "eval knn run --ks 5", status=2, says=("Perhaps you meant", "--k [INT"),
          never=("None}", "Traceback")),
    *(Fault(f"{by.name}-during-{kind}", trained, f"eval {kind} run --epochs 5000", status=status, slow=True,
            during=signalled(by), left=no_result, says=(ended, "--resume auto"))
      for kind in ("semi",)
      for by, status, ended in ((signal.SIGINT, -signal.SIGINT, "lewel: interrupted; "),
                                (signal.SIGTERM, 0, "lewel: ended by SIGTERM; "))),
    Fault("dry-with-a-seed-below-0", trained, "eval logistic run --seed -1 --dry-run", status=2,
          left=nothing_is_written, says=("seed must be 0 or more",)),
    Fault("into-a-file", lambda folder: (trained(folder), (folder / "out").touch()), "eval knn run --k 5 --out out",
          status=2, says=("results cannot be written to out/eval: ", "--out FOLDER")),
)  # fmt: skip
