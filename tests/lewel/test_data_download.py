"""Sets by name, fetched from a server on this machine."""

from __future__ import annotations

import functools
import http.server
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from small_sets import checksum, marked, write_cifar, write_imagenette
from torchvision import datasets

from lewel.data import Datasets, build
from lewel.errors import LewelError
from lewel.recipe.schema import Data


class Server(http.server.SimpleHTTPRequestHandler):
    served: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        self.served.append(self.path)


def archive(folder: Path, name: str) -> Path:
    """folder as a .tgz beside it, and folder itself gone from its place."""
    path = folder.parent / name
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    folder.rename(folder.parent / "unpacked")
    return path


@pytest.fixture
def address(tmp_path, monkeypatch) -> Iterator[str]:
    """Where the files in tmp_path are served."""
    handler = functools.partial(Server, directory=tmp_path)
    Server.served.clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(name: str, root: Path) -> Datasets:
    return build(Data(name=name, root=str(root), image_size=32, download=True), seed=0)


@pytest.fixture
def cifar(address, tmp_path, monkeypatch) -> Path:
    write_cifar(datasets.CIFAR10, tmp_path / "there", monkeypatch)
    path = archive(tmp_path / "there" / "cifar-10-batches-py", "cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/there/{path.name}")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", checksum(path))
    return path


@pytest.fixture
def imagenette(address, tmp_path, monkeypatch) -> Path:
    path = archive(write_imagenette(tmp_path / "there" / "imagenette2-160"), "imagenette2-160.tgz")
    monkeypatch.setitem(datasets.Imagenette._ARCHIVES, "160px", (f"{address}/there/{path.name}", checksum(path)))
    return path


def test_cifar(cifar, tmp_path):
    images = fetch("cifar10", tmp_path / "not" / "yet").bank.images
    assert torch.equal(images, torch.from_numpy(marked(0, 20, 32)))


def test_imagenette(imagenette, tmp_path):
    assert fetch("imagenette", tmp_path / "not" / "yet").num_classes == 10
    assert [path.name for path in (tmp_path / "not" / "yet").iterdir() if path.is_dir()] == ["imagenette2-160"]


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_what_is_there_is_not_fetched(name, request, tmp_path):
    path = request.getfixturevalue(name.removesuffix("10"))
    fetch(name, tmp_path)
    path.unlink()
    fetch(name, tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_the_processes_of_a_run_fetch_it_once(name, request, tmp_path):
    request.getfixturevalue(name.removesuffix("10"))
    fetch(name, tmp_path / "alone")
    alone = len(Server.served)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(fetch, [name] * 3, [tmp_path / "together"] * 3))
    assert len(Server.served) == 2 * alone


def test_a_damaged_set_is_fetched_again(cifar, tmp_path):
    fetch("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cut off")
    images = fetch("cifar10", tmp_path).bank.images
    assert torch.equal(images, torch.from_numpy(marked(0, 20, 32)))


@pytest.mark.parametrize("name", ["cifar10", "stl10", "imagenette"])
def test_a_failed_one_is_a_sentence(name, address, tmp_path, monkeypatch):
    nowhere = f"{address}/nowhere.tgz"
    for kind in (datasets.CIFAR10, datasets.STL10):
        monkeypatch.setattr(kind, "url", nowhere)
    monkeypatch.setitem(datasets.Imagenette._ARCHIVES, "160px", (nowhere, ""))
    with pytest.raises(LewelError, match=rf"cannot download {name} into .*404.* unpack its archive"):
        build(Data(name=name, root=str(tmp_path), download=True), seed=0)
    assert not [entry for entry in tmp_path.iterdir() if entry.is_dir()]


def test_a_damaged_archive_is_a_sentence(cifar, tmp_path):
    cifar.write_bytes(cifar.read_bytes()[:-9])
    with pytest.raises(LewelError, match=r"cannot download cifar10 .* corrupted"):
        build(Data(name="cifar10", root=str(tmp_path), download=True), seed=0)
