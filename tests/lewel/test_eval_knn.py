"""`lewel eval knn`: by kept features, in one process or several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_runs import TINY, assert_equal, run_in

import lewel
from lewel import cli, data
from lewel.errors import LewelError
from lewel.evaluation import cache, neighbours, offline, outcome, subject
from lewel.evaluation.features import knn_accuracy
from lewel.evaluation.neighbours import Settings
from lewel.evaluation.subject import Asked
from lewel.run import checkpoint


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lewel", *map(str, arguments)])
        cli.main()


def test_it_is_the_online_one_to_what_16_bits_may_change(finished, tmp_path):
    online = knn_accuracy(finished)
    found = neighbours.evaluate(subject.find(Asked(run=finished.folder, out=str(tmp_path))), Settings())
    one_image = 100 / len(finished.sets.test)
    assert {int(k): v for k, v in found["knn"].items()} == pytest.approx(online, abs=one_image + 1e-6)
    assert found["accuracy"] == found["knn"]["200"]


def test_neighbours_are_those_of_the_features_in_float64(finished, tmp_path):
    what = subject.find(Asked(run=finished.folder, out=str(tmp_path)))
    train, test = (cache.features_of(what, split) for split in ("train", "test"))
    bank, tests = (torch.nn.functional.normalize(each.rows.double()) for each in (train, test))
    chosen = torch.from_numpy(data.spaced(what.sets.bank, 31))
    best, place = (tests @ bank[chosen].T).topk(7)
    votes = torch.zeros(len(tests), 10, dtype=torch.float64)
    votes.scatter_add_(1, train.labels[chosen][place], (best / 0.07).exp())
    expected = 100 * float((votes.argmax(1) == test.labels).double().mean())
    assert neighbours.evaluate(what, Settings((7,), 0.07, 31))["knn"]["7"] == pytest.approx(expected)


def test_the_command_line_prints_as_ever_and_writes_a_result(finished, tmp_path, capsys):
    command("eval", "knn", finished.folder, "--k", 5, 20, "--out", tmp_path)
    (result,) = outcome.newest(tmp_path)
    line = ", ".join(f"kNN-{k} {result['values']['knn'][str(k)]:.2f} %" for k in (5, 20))
    assert f"{finished.folder}: {line} after epoch 3\n" in capsys.readouterr().out
    assert (result["kind"], result["settings"]) == ("knn", {"k": [5, 20], "temperature": 0.1, "bank": 48})
    assert lewel.eval("knn", finished.folder, k=(5, 20), out=tmp_path) == {
        int(k): v for k, v in result["values"]["knn"].items()
    }


def test_of_weights_there_is_no_epoch(finished, tmp_path, capsys):
    state = {n: v for n, v in finished.method.online.encoder.state_dict().items() if "num_batches" not in n}
    torch.save(state, tmp_path / "w.pth")
    command("eval", "knn", finished.folder, "--weights", tmp_path / "w.pth", "--k", 5, "--out", tmp_path)
    assert "after epoch" not in capsys.readouterr().out
    own, theirs = (lewel.eval("knn", finished.folder, k=5, weights=w, out=tmp_path) for w in ("", tmp_path / "w.pth"))
    assert own == theirs
    assert {result["checkpoint"] for result in outcome.newest(tmp_path)} == {"w", "step-00000009"}


@pytest.mark.parametrize(("settings", "more"), [({"k": 49}, "$"), ({"k": 9, "bank": 8}, "or a larger --bank")])
def test_a_k_beyond_the_bank_is_refused_where_it_is_given(settings, more, finished, tmp_path):
    with pytest.raises(LewelError, match=rf"k is \d+ but there are only \d+ images in the bank.*{more}"):
        lewel.eval("knn", finished.folder, out=tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_the_recipe_s_k_beyond_the_bank_lets_all_vote_and_that_is_said(finished, tmp_path, capsys):
    assert lewel.eval("knn", finished.folder, out=tmp_path).keys() == {200, 20}
    assert "the recipe's k 200 is more than the bank's 48 images: all of them vote" in capsys.readouterr().out


def test_a_dry_run_computes_and_writes_nothing(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subject.Subject, "features", None)
    monkeypatch.setattr("lewel.data.embedded.compose", None)
    for kind in offline.KINDS:
        command("eval", kind, finished.folder, "--out", tmp_path / "out", "--dry-run")
        printed = capsys.readouterr().out
        assert "step-00000009.pt after epoch 3 (step 9)" in printed
        assert "48 to learn from and 16 to test by, of 10 classes (embedded), at 32 pixels" in printed
        assert f"the result would go to {tmp_path}/out/eval/{kind}-" in printed
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_of_the_features_is_there(finished, tmp_path, capsys):
    plan = ("eval", "knn", finished.folder, "--out", tmp_path, "--dry-run")
    command(*plan)
    assert f"features: to be computed, into {tmp_path}/eval/features-" in capsys.readouterr().out
    cache.features_of(subject.find(Asked(run=finished.folder, out=str(tmp_path))), "train")
    command(*plan)
    assert f"features: 1 of 2 parts are in {tmp_path}/eval/features-" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["knn", "logistic"])
def test_no_tensor_of_the_encoder_changes(kind, finished, tmp_path):
    what = subject.find(Asked(run=finished.folder, out=str(tmp_path)))
    before = {name: value.clone() for name, value in what.encoder.state_dict().items()}
    offline.KINDS[kind].evaluate(what, offline.KINDS[kind].settings(), None)
    assert_equal(what.encoder.state_dict(), before)


def test_frozen_is_checked_for_every_kind(finished, tmp_path, monkeypatch):
    def changing(what, settings, tell):
        what.encoder.bn1.running_mean += 1
        return {"accuracy": 0.0}

    monkeypatch.setitem(offline.KINDS, "knn", replace(neighbours.KIND, evaluate=changing))
    with pytest.raises(AssertionError, match="the frozen encoder has changed"):
        lewel.eval("knn", finished.folder, out=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_an_interrupted_evaluation_says_what_is_kept(finished, tmp_path, monkeypatch):
    def interrupted(what, settings, tell):
        cache.features_of(what, "test")
        raise KeyboardInterrupt

    monkeypatch.setitem(offline.KINDS, "knn", replace(neighbours.KIND, evaluate=interrupted))
    with pytest.raises(KeyboardInterrupt, match=r"1 parts of the features are kept in .*eval/features-"):
        lewel.eval("knn", finished.folder, out=tmp_path)


def test_an_unknown_setting_is_answered_with_the_nearest(finished):
    with pytest.raises(LewelError, match=r"lewel.eval: there is no temprature; did you mean temperature\?"):
        lewel.eval("knn", finished.folder, temprature=0.1)


def test_the_newest_whole_checkpoint_is_taken(tmp_path, capsys):
    session = run_in(tmp_path / "run", replace(TINY, epochs=2, keep=2))
    newest = checkpoint.found(session.folder / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    command("eval", "knn", session.folder, "--k", 5)
    printed = capsys.readouterr().out
    assert "step-00000003.pt, the one before, is taken instead" in printed
    assert "after epoch 1" in printed
