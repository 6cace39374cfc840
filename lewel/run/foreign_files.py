"""What a file or a folder is that is no file of weights, and what to do, in a clause."""

from __future__ import annotations

import codecs
import zipfile
from pathlib import Path

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")  # of files of weights
UNPACK = "unpack it and name the file that was in it"
KINDS = {  # by their first bytes
    b"\x1f\x8b": f"it is compressed by gzip; {UNPACK}",
    b"BZh": f"it is compressed by bzip2; {UNPACK}",
    b"\xfd7zXZ\x00": f"it is compressed by xz; {UNPACK}",
    b"(\xb5/\xfd": f"it is compressed by zstd; {UNPACK}",
    b"7z\xbc\xaf'\x1c": f"it is an archive of 7-Zip; {UNPACK}",
    b"Rar!": f"it is a rar archive; {UNPACK}",
    b"\x89HDF": "it is HDF5, as Keras writes it; give weights of PyTorch",
    b"\x93NUMPY": "it is one array of numpy; give weights of PyTorch, which have names",
}
LIBRARIES = {".onnx": "ONNX", ".msgpack": "Flax"}  # which its first bytes do not tell
TAR = b"ustar"  # after 257 bytes
ZEROS = bytes(512)
CUT = "it is cut off; copy or download it again"
CUTS = ("Ran out of input", "truncated", "unexpected EOF", "incomplete metadata", "invalid header length")


def reason(error: Exception, path: Path) -> str:
    """What is wrong with the file at path, which a reader of weights has met with error."""
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return (
            "it is a TorchScript program; save its weights alone: "
            'torch.save(torch.jit.load(FILE).state_dict(), "weights.pth")'
        )
    if "explicit pickle_module" in text:
        return "there are objects beside its tensors, and TORCH_FORCE_WEIGHTS_ONLY_LOAD is set; unset it, none is run"
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as unreadable:
        return str(unreadable.strerror)
    if not start:
        return "it is empty"
    for first, said in KINDS.items():
        if start.startswith(first):
            return said
    if start[257:].startswith(TAR):
        return f"it is a tar archive; {UNPACK}"
    if start.startswith(b"PK"):
        archive = _archive(path)
        if archive:
            return archive
        if "PytorchStreamReader" in text:
            return "it is damaged; copy or download it again"
    if start == ZEROS[: len(start)]:
        return f"it begins with {len(start)} zeros, as where a copy or a download has not ended; copy it again"
    words = _words(start)
    if words:  # a web page, or a pointer of Git LFS
        return f"it is text, which begins with {words!r}"
    size = f"{path.stat().st_size:,} bytes"
    if isinstance(error, EOFError) or any(part in text for part in CUTS):
        return f"{CUT}: it has {size}"
    if path.suffix in LIBRARIES:
        return f"it is a file of {LIBRARIES[path.suffix]}; give weights of PyTorch"
    return (
        f"it is whole of none of the kinds that are read (torch.save, pickle, safetensors), and has "
        f"{size} ({type(error).__name__}: {text.split('. ')[0][:160]})"
    )


def in_folder(folder: Path) -> str:
    """What to do with the weights that lie in a folder, in a clause, or nothing where there are none."""
    if (folder / "data.pkl").is_file() and (folder / "data").is_dir():
        return f"it is an unpacked file of torch.save; pack it, and name that: python -m zipfile -c w.pth {folder}"
    if any(folder.glob("*.distcp")):
        return (
            "it is a checkpoint in parts; join them, and name that file: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} w.pth"
        )
    within = [*folder.iterdir(), *folder.glob("snapshots/*/*")]  # as in the cache of the Hugging Face hub
    files = sorted(str(path) for path in within if path.suffix in SUFFIXES and path.is_file())
    if len(files) == 1:
        return f"weights lie in it; name the file: --init {files[0]}"
    return f"weights lie in it; name one of {_some(files)}" if files else ""


def _archive(path: Path) -> str:
    """What a zip archive is, or nothing where it is one of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"{CUT}: it has {path.stat().st_size:,} bytes, and the end of a zip archive, as torch.save's, is missing"
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if any(name.endswith("/archive_format") for name in names):
        return (
            "it is a program of torch.export; save its weights alone: "
            'torch.save(torch.export.load(FILE).state_dict, "weights.pth")'
        )
    if names and all(name.endswith(".npy") for name in names):
        return f"it is numpy's .npz, of {_some(names)}; give weights of PyTorch"
    return f"it is a zip archive of {_some(names)}; {UNPACK}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _words(start: bytes) -> str:
    """The first words of a text, or nothing where the bytes are none."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)  # the last letter may be cut
    except UnicodeDecodeError:
        text = start.decode("latin1")
    words = " ".join(text.split())
    return words[:40] if words.isprintable() else ""
