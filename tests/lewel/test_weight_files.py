"""What files of weights hold beside tensors, what is no such file, and that nothing in them is run."""

from __future__ import annotations

import argparse
import bz2
import collections
import datetime
import enum
import functools
import gzip
import lzma
import os
import pathlib
import pickle
import re
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_runs import assert_equal
from torch import nn

from lewel.errors import LewelError
from lewel.run import foreign_files, weight_files

WEIGHTS = {"conv1.weight": torch.arange(6.0).view(2, 3), "bn1.num_batches_tracked": torch.tensor(3)}


class Kind(enum.Enum):
    ONE = 1


class Table(dict):  # type: ignore[type-arg]
    """As configurations and states are: entries, attributes, and a way back to what holds it."""

    def __init__(self, entries=()):
        super().__init__(entries)
        self.parent = self


class Program:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


HARMLESS = {
    "args": argparse.Namespace(out=pathlib.Path("/x"), kind=Kind.ONE),
    "when": [datetime.datetime(2020, 1, 1), datetime.timedelta(1)],
    "tables": [SimpleNamespace(a=1), collections.defaultdict(list, x=[1]), collections.deque([1], 3), Table({"a": 1})],
    "numbers": [np.float32(2), *np.random.RandomState(1).get_state(), np.random.default_rng(1), 1j],
    "by objects": {Kind.ONE: 1, pathlib.Path("x"): 2, frozenset([1]): {2}},
    "torch": [torch.device("cpu"), torch.Size([1]), torch.float16, nn.functional.relu, nn.CrossEntropyLoss()],
    "call": functools.partial(print, 1),
    "bytes": [b"", b"ab", bytearray(b"ab")],
    "other dtypes": torch.ones(2, dtype=torch.uint16),
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(9))], lr=0.1),
}
WAYS = {
    "zip": torch.save,
    "zip of pickle 4": functools.partial(torch.save, pickle_protocol=4),
    "before zip": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle 2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "pickle 5": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=5)),
}
EACH_WAY = pytest.mark.parametrize("way", WAYS)


@EACH_WAY
def test_what_trainers_keep_beside_weights_is_passed_over(way, tmp_path):
    for key, beside in HARMLESS.items():
        WAYS[way]({"model": WEIGHTS, key: beside}, tmp_path / "w.pth")
        read = weight_files.read(tmp_path / "w.pth")
        assert_equal({name: read[f"model.{name}"] for name in WEIGHTS}, WEIGHTS)


@EACH_WAY
def test_tables_of_other_classes_and_parameters_are_read(way, tmp_path):
    state = {"weight": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), "array": np.arange(3.0)}
    WAYS[way](Table({"net": collections.defaultdict(list, state)}), tmp_path / "w.pth")
    expected = {"net.weight": state["weight"].detach(), "net.array": torch.arange(3.0, dtype=torch.float64)}
    assert_equal({name: value.detach() for name, value in weight_files.read(tmp_path / "w.pth").items()}, expected)


@EACH_WAY
def test_nothing_in_a_file_is_run(way, tmp_path):
    WAYS[way]({"model": WEIGHTS, "args": Program(f"touch {tmp_path}/run")}, tmp_path / "w.pth")
    assert len(weight_files.read(tmp_path / "w.pth")) == 2
    assert not (tmp_path / "run").exists()


@EACH_WAY
@pytest.mark.parametrize(
    "held",
    [
        lambda module: module,
        lambda module: {"model": module, "epoch": 3},
        lambda module: {"model": module.state_dict},  # the brackets were forgotten
        lambda module: torch.compile(module),
        lambda module: {"runs": [SimpleNamespace(net=nn.DataParallel(module))], "loss": torch.ones(1)},
    ],
)
def test_the_line_that_saves_the_weights_of_a_module_does_so(held, way, tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3))
    WAYS[way](held(module), tmp_path / "w.pth")
    with pytest.raises(LewelError, match=r"it holds objects of torch\.nn\..*, which could run programs; ") as refused:
        weight_files.read(tmp_path / "w.pth")
    line = str(refused.value).split("alone: ")[1].replace('"weights.pth"', "OUT")
    exec(line, {"torch": torch, "pickle": pickle, "FILE": tmp_path / "w.pth", "OUT": tmp_path / "out.pth"})
    found = {name.removeprefix("module."): value for name, value in weight_files.read(tmp_path / "out.pth").items()}
    assert_equal(found, module.state_dict())


def test_objects_alone_are_no_weights(tmp_path):
    torch.save({"model": Table(), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(LewelError, match=r"it holds no table of tensors, but objects of test_weight_files\.Table"):
        weight_files.read(tmp_path / "w.pth")


def test_an_environment_that_forbids_stand_ins_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": WEIGHTS}, tmp_path / "w.pth")
    assert len(weight_files.read(tmp_path / "w.pth")) == 2
    torch.save({"model": WEIGHTS, "args": argparse.Namespace()}, tmp_path / "w.pth")
    with pytest.raises(LewelError, match="beside its tensors, and TORCH_FORCE_WEIGHTS_ONLY_LOAD is set; unset it"):
        weight_files.read(tmp_path / "w.pth")


def test_one_tensor_is_no_network(tmp_path):
    torch.save(torch.ones(3), tmp_path / "w.pth")
    with pytest.raises(LewelError, match="it is one tensor, without a name"):
        weight_files.read(tmp_path / "w.pth")


def test_tensors_without_plain_values_are_on_the_meta_device(tmp_path):
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    }
    for beside in ({}, {"args": SimpleNamespace()}):
        torch.save({**odd, **WEIGHTS, **beside}, tmp_path / "w.pth")
        read = weight_files.read(tmp_path / "w.pth")
        assert [name for name, value in read.items() if value.is_meta] == list(odd)


def archive(path: pathlib.Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"content")


def tar(path: pathlib.Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(__file__, "w.pth")


TEXTS = {
    "<html>\r\n\t<b>Größe</b>": "<html> <b>Größe</b>",
    "\ufeff<?xml ?>": "<?xml ?>",
    "ü" * 600: "ü" * 40,  # the last letter that is looked at is cut
}


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: archive(path, "a.pth", "b.txt"), "it is a zip archive of a.pth, b.txt; unpack it"),
        (lambda path: np.savez(path.open("wb"), a=np.ones(2)), "it is numpy's .npz, of a.npy; give"),
        (lambda path: np.save(path.open("wb"), np.ones(2)), "it is one array of numpy"),
        (lambda path: path.write_bytes(gzip.compress(b"w")), "it is compressed by gzip; unpack it"),
        (lambda path: path.write_bytes(bz2.compress(b"w")), "it is compressed by bzip2; unpack it"),
        (lambda path: path.write_bytes(lzma.compress(b"w")), "it is compressed by xz; unpack it"),
        (tar, "it is a tar archive; unpack it"),
        (lambda path: path.write_bytes(bytes(900)), "it begins with 512 zeros"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "it is HDF5"),
        (lambda path: path.write_bytes("Größe".encode("latin1")), "it is text, which begins with 'Größe'"),
        *((lambda path, text=text: path.write_text(text, encoding="utf-8", newline=""), f"begins with '{said}'")
          for text, said in TEXTS.items()),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(write, sentence, tmp_path):
    write(tmp_path / "w.pth")
    with pytest.raises(LewelError, match=re.escape(sentence)):
        weight_files.read(tmp_path / "w.pth")


@pytest.mark.parametrize("way", [*WAYS, "safetensors"])
@pytest.mark.parametrize("kept", [40, 300, -10])
def test_a_file_that_is_cut_off_is_said_to_be(way, kept, tmp_path):
    WAYS.get(way, safetensors.torch.save_file)({"weight": torch.ones(500)}, tmp_path / "w.pth")
    os.truncate(tmp_path / "w.pth", kept if kept > 0 else (tmp_path / "w.pth").stat().st_size + kept)
    with pytest.raises(LewelError, match="it is cut off; copy or download it again: it has "):
        weight_files.read(tmp_path / "w.pth")


def test_a_damaged_file_is_said_to_be(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    with open(tmp_path / "w.pth", "r+b") as file:
        file.seek(20)
        file.write(bytes(400))
    with pytest.raises(LewelError, match="it is damaged; copy or download it again"):
        weight_files.read(tmp_path / "w.pth")


def test_an_exported_program_is_refused_with_the_line_that_saves_its_weights(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "w.pt2")
    with pytest.raises(LewelError, match=r"torch\.save\(torch\.export\.load\(FILE\)\.state_dict, "):
        weight_files.read(tmp_path / "w.pt2")


def test_the_line_that_packs_an_unpacked_file_does_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(WEIGHTS, "given.pth")
    with zipfile.ZipFile("given.pth") as file:
        file.extractall(".")
    told = foreign_files.in_folder(pathlib.Path("given"))
    zipfile.main(told.split("python -m zipfile ")[1].split())
    assert_equal(weight_files.read("w.pth"), WEIGHTS)


def test_a_folder_of_parts_is_joined_by_torch(tmp_path):
    (tmp_path / "__0_0.distcp").touch()
    assert f"dcp_to_torch {tmp_path} w.pth" in foreign_files.in_folder(tmp_path)


def test_the_cache_of_the_hub_is_looked_into(tmp_path):
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).touch()
    assert foreign_files.in_folder(tmp_path) == (
        f"weights lie in it; name the file: --init {snapshot}/model.safetensors"
    )
    (snapshot / "pytorch_model.bin").touch()
    assert "name one of " in foreign_files.in_folder(tmp_path)


@pytest.mark.parametrize(("suffix", "library"), [(".onnx", "ONNX"), (".msgpack", "Flax")])
def test_a_library_is_known_by_the_suffix_where_bytes_say_nothing(suffix, library, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x08\x08\x12\x07pytorch\xff")
    with pytest.raises(LewelError, match=f"it is a file of {library}; give weights of PyTorch"):
        weight_files.read(path)
