"""Processes that meet, die or are told to end, and the folders and terminals that they write to."""

from __future__ import annotations

import atexit
import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import yaml
from fault import TRAIN, Ended, Fault, picture, start
from tiny_runs import TINY, run_in

from lewel.evaluation import health
from lewel.run import checkpoint, lock, owners
from lewel.run.preemption import Stopped
from lewel.watching import log

MADE = f"{TRAIN} --data.name embedded --knn-every 0"  # of images that no fault is in
LONG = f"{MADE} --epochs 10000"
RUN = dataclasses.replace(TINY, epochs=2, knn_every=0)
OF_SIX = "run/checkpoints/step-00000006.pt"
AGAIN = "train --config run/config.yaml --out run --resume auto"


TAKEN = socket.create_server(("127.0.0.1", 0))  # a port, as long as the tests run


def nothing(folder: Path) -> None:
    pass


@functools.cache
def trained() -> Path:
    """A run of two epochs, whose checkpoints are of the steps 3 and 6."""
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place)
    folder = Path(place) / "run"
    run_in(folder, RUN)
    return folder


def with_run(change: Callable[[Path], object] = nothing) -> Callable[[Path], None]:
    def arrange(folder: Path) -> None:
        shutil.copytree(trained(), folder / "run")
        change(folder / "run")
        picture(folder / "cat.png")

    return arrange


def truncated(run: Path) -> None:
    newest = checkpoint.found(run / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])


def of_a_later_version(run: Path) -> None:
    newest = checkpoint.found(run / "checkpoints")[-1]
    torch.save(torch.load(newest) | {"format": "lewel checkpoint 99"}, newest)


def both_stay(ended: Ended) -> None:
    names = [path.name for path in checkpoint.found(ended.folder / "run" / "checkpoints")]
    assert names == [checkpoint.name_of(3), checkpoint.name_of(6)]


def put_aside(ended: Ended) -> None:
    """What was passed over; the run has made the checkpoint again."""
    both_stay(ended)
    assert (ended.folder / "run" / "checkpoints" / "step-00000006.pt.broken").stat().st_size == 1000
    whole_log(ended)


def failing(error: Exception) -> Mapping[str, object]:
    """What reads a checkpoint in a moment without memory, or from a disk that fails."""

    def load(*arguments: object, **named: object) -> object:
        raise error

    return {"torch.load": load}


def broken(run: Path) -> None:
    for path in checkpoint.found(run / "checkpoints"):
        path.write_bytes(b"")


def scribbled(run: Path) -> None:
    """Lines of the log that are no records, between those of the steps 3 and 4."""
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"step": 4,' in line)
    bad = [b'{"kind": "step", "st\n', b"\xff\xfe\n", b"[1]\n", b'{"kind": "step", "step": 4, "loss": "x"}\n', b"{}\n"]
    (run / "log.jsonl").write_bytes(b"".join([*lines[:at], *bad, *lines[at:]]))


def whole_log(ended: Ended) -> None:
    steps = [record["step"] for record in log.read(ended.folder / "run" / "log.jsonl") if record["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]


SCANDIR = os.scandir


def of_another_user(path: os.PathLike[str] | str) -> Iterator[os.DirEntry[str]]:
    if os.path.basename(path) == "checkpoints":
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return SCANDIR(path)


def both_logs(ended: Ended) -> None:
    whole_log(ended)
    before = log.read(ended.folder / "run" / "log.jsonl.before")
    assert before == log.read(trained() / "log.jsonl")


def log_of_another(run: Path) -> None:
    other = run.with_name("other")
    other.mkdir()
    shutil.copy(run / "log.jsonl", other)
    (other / "log.jsonl.before").touch()


def held(run: Path, **other: object) -> None:
    """A lock of another run in this process, but for what is given otherwise."""
    run.mkdir(exist_ok=True)
    (run / lock.NAME).write_text(json.dumps(dataclasses.asdict(owners.myself()) | other))


def nothing_left(ended: Ended) -> None:
    assert {path.name for path in ended.folder.iterdir()} == {"tiny.yaml"}


def unlocked(ended: Ended) -> None:
    assert not (ended.folder / "run" / lock.NAME).exists()


def one_run_each(ended: Ended) -> None:
    folders = sorted((ended.folder / "runs").iterdir())
    assert [folder.name for folder in folders] == ["custom", "custom-2", "custom-3"]
    assert sorted(yaml.safe_load((folder / "config.yaml").read_text())["seed"] for folder in folders) == [0, 1, 2]
    for folder in folders:
        assert [record["step"] for record in log.read(folder / "log.jsonl") if record["kind"] == "epoch"] == [6]
        assert not (folder / lock.NAME).exists()


def two_others(process: subprocess.Popen[bytes], folder: Path) -> None:
    others = [start(f"{MADE} --seed {seed}", folder) for seed in (1, 2)]
    assert [other.communicate(timeout=240) and other.returncode for other in others] == [0, 0]


def preset_with_glob_characters(folder: Path) -> None:
    for name in ("a [b]*", "a [b]*-2"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "config.yaml").touch()
    recipe = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe | {"preset": "a [b]*"}))


def preset_of_dots(folder: Path) -> None:
    recipe = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe | {"preset": "../" + 200 * "é"}))


def out_at_home(folder: Path) -> None:
    recipe = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe | {"out": "~/x"}))


def holds(*files: str) -> Callable[[Ended], None]:
    def left(ended: Ended) -> None:
        for file in files:
            assert (ended.folder / file).exists(), sorted(ended.folder.rglob("*"))

    return left


def full(path: Path, text: str) -> None:
    """In place of Path.write_text, on a disk that is full."""
    path.write_bytes(b"")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_recipe(ended: Ended) -> None:
    assert not [path.name for path in (ended.folder / "run").iterdir() if "config" in path.name]


def interrupted(times: int) -> Mapping[str, object]:
    """Sends Ctrl-C so many times in the middle of step 8, two steps after a checkpoint."""
    read, steps = health.read, []

    def in_a_step(values: dict[str, torch.Tensor]) -> dict[str, float]:
        steps.append(0)
        for _ in range(times if len(steps) == 8 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return read(values)

    return {"lewel.evaluation.health.read": in_a_step}


def says_once_where_it_goes_on(ended: Ended) -> None:
    assert ended.printed.count("--resume auto") == 1
    unlocked(ended)


def during_the_report(session: object) -> None:
    raise Stopped("SIGTERM")


def foreign_checkpoints(folder: Path) -> None:
    with_run()(folder)
    (folder / "run" / "config.yaml").unlink()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def signalled(at: str, *numbers: signal.Signals) -> Callable[[subprocess.Popen[bytes], Path], None]:
    """Sends the signals once the file at is there."""

    def during(process: subprocess.Popen[bytes], folder: Path) -> None:
        wait_for(folder / at, process)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)

    return during


def a_worker_killed(process: subprocess.Popen[bytes], folder: Path) -> None:
    wait_for(folder / "run" / "checkpoints" / checkpoint.name_of(6), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


def nobody_listens(process: subprocess.Popen[bytes], folder: Path) -> None:
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = open(os.devnull, "rb")  # noqa: SIM115


def ended_after_all_steps(ended: Ended) -> None:
    assert log.read(ended.folder / "run" / "log.jsonl")[-1]["step"] == 6
    assert (ended.folder / "run" / "report.txt").exists()


def saved_where_it_says(ended: Ended) -> None:
    (*_, newest) = checkpoint.found(ended.folder / "run" / "checkpoints")
    assert f"run/checkpoints/{newest.name} is saved: --resume auto goes on from there" in ended.printed
    assert log.read(ended.folder / "run" / "log.jsonl")[-1]["step"] == checkpoint.read(newest)["step"]


def interrupted_and_saved(ended: Ended) -> None:
    (*_, newest) = checkpoint.found(ended.folder / "run" / "checkpoints")
    assert f"run/checkpoints/{newest.name} is saved, and --resume auto goes on from there" in ended.printed
    unlocked(ended)


def refused(name: str, env: dict[str, str], *says: str) -> Fault:
    """A run that does not start in an environment; nothing is left of it."""
    return Fault(name, nothing, f"{MADE} --out run", says, status=2, env=env, left=nothing_left)


ROWS: tuple[Fault, ...] = (
    Fault("three-at-once", nothing, f"{MADE} --seed 0", left=one_run_each, during=two_others, slow=True),
    Fault(
        "resume-of-a-live-run",
        with_run(held),
        AGAIN,
        (f"process {os.getpid()} on", "is writing to run", "choose another --out", "remove run/lock.json"),
        status=2,
        left=holds("run/lock.json"),
    ),
    Fault(
        "out-of-a-live-run",
        with_run(held),
        f"{MADE} --out run",
        (f"process {os.getpid()} on", "is writing to run"),
        status=2,
    ),
    Fault(
        "checkpoint-of-a-live-run",
        with_run(held),
        "train --config run/config.yaml --resume run/checkpoints/step-00000003.pt",
        (f"process {os.getpid()} on", "is writing to"),
        status=2,
    ),
    Fault(
        "lock-of-a-process-that-was-killed",
        with_run(lambda run: held(run, started="0")),
        AGAIN,
        left=unlocked,
    ),
    Fault("preset-with-glob-characters", preset_with_glob_characters, MADE, left=holds("runs/a [b]*-3/report.txt")),
    Fault(
        "preset-of-dots-and-too-long",
        preset_of_dots,
        MADE,
        left=holds("runs/-" + 99 * "é" + "/report.txt", "tiny.yaml"),
    ),
    Fault("out-at-home", out_at_home, MADE, left=holds("home/x/report.txt"), env={"HOME": "home"}),
    Fault("out-of-an-unknown-user", nothing, f"{MADE} --out ~nobody-at-all/x", ("write the path in full",), status=2),
    Fault(
        "out-at-an-address",
        nothing,
        f"{MADE} --out s3://bucket/run",
        ("out s3://bucket/run is an address, and a run writes to a folder of this machine",),
        status=2,
        left=nothing_left,
    ),
    Fault(
        "out-that-is-a-link-to-nothing",
        lambda folder: (folder / "run").symlink_to("gone"),
        f"{MADE} --out run",
        ("run is a link to gone, which is not there",),
        status=2,
    ),
    Fault("out-not-in-utf-8", nothing, f"{MADE} --out r\udcff", (r"r\xff is not UTF-8",), status=2, left=nothing_left),
    Fault(
        "rank-of-a-command-of-one-process",
        nothing,
        "show run",
        ("run is no run folder",),
        status=2,
        env={"RANK": "1", "WORLD_SIZE": "2"},
    ),
    refused("world-size-without-rank", {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK is not set"),
    *(
        Fault(
            f"tasks-of-{by}-that-know-nothing-of-each-other",
            nothing,
            f"{MADE} --out run",
            (f"this is one of 2 tasks of {by}, but RANK and WORLD_SIZE are not set: each trains a run of its own",),
            env={count: "2", own: "0"},
        )
        for count, own, by in (
            ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
            ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun"),
        )
    ),
    *(
        Fault(
            f"resume-{name}",
            with_run(),
            f"{MADE} --resume {given}",
            (said,),
            status=2,
            left=both_stay,
        )
        for name, given, said in (
            ("a-run-folder", "run", "run --resume auto, or name a checkpoint: "),
            ("a-folder-of-checkpoints", "run/checkpoints", "run --resume auto, or name a checkpoint: "),
            ("a-folder", ".", "is a folder, and no run folder with checkpoints"),
            ("a-word", "latest", '--resume takes a checkpoint, or "auto" for the newest of a run folder'),
        )
    ),
    refused("world-size-empty", {"WORLD_SIZE": ""}, "WORLD_SIZE is '', which is no number of processes"),
    refused("rank-empty", {"WORLD_SIZE": "2", "RANK": ""}, "RANK is '', which is no number"),
    refused("rank-too-high", {"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 but WORLD_SIZE is 2"),
    refused("rank-without-world-size", {"RANK": "1"}, "RANK is 1 but WORLD_SIZE is not set"),
    refused("local-rank-odd", {"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1', which is no number"),
    refused("no-meeting-place", {"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT must say where"),
    refused(
        "meeting-place-unknown",
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "no host", "MASTER_PORT": "29500"},
        "MASTER_ADDR is 'no host', which names no machine",
    ),
    refused(
        "port-taken",
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(TAKEN.getsockname()[1])},
        "that port is taken",
        "choose another MASTER_PORT",
    ),
    Fault(
        "more-processes-than-gpus",
        nothing,
        f"{MADE} --out run",
        ("2 processes on this machine found 1 GPUs; start at most as many processes",),
        status=2,
        env={"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        patches={"torch.cuda.is_available": lambda: True, "torch.cuda.device_count": lambda: 1},
        left=nothing_left,
    ),
    Fault(
        "shared-memory-too-small",
        nothing,
        f"{MADE} --out run --data.workers 30 --data.image-size 32",
        ("30 data workers put up to 11 MiB of images into /dev/shm, which has 1 MiB free", "--data.workers 2 fits"),
        status=2,
        patches={"lewel.data.shared.free_bytes": lambda: 2**20},
        left=nothing_left,
    ),
    Fault(
        "worker-killed",
        nothing,
        f"{LONG} --out run --data.workers 1",
        ("memory has run out, as a rule",),
        status=2,
        during=a_worker_killed,
        left=saved_where_it_says,
        slow=True,
    ),
    Fault(
        "output-that-cannot-encode",
        nothing,
        f"{MADE} --out ünï",
        (r"wrote \xfcn\xef/curves.png",),
        env={"PYTHONIOENCODING": "ascii"},
        alone=True,
        slow=True,
    ),
    Fault("nobody-listens", nothing, f"{MADE} --out run", during=nobody_listens, left=ended_after_all_steps, slow=True),
    Fault(
        "ctrl-c-before-the-first-step",
        nothing,
        f"{LONG} --out run",
        ("lewel: interrupted",),
        ("Traceback", "--resume auto"),
        -signal.SIGINT,
        during=signalled("run/lock.json", signal.SIGINT),
        left=nothing_left,
        slow=True,
    ),
    Fault(
        "ctrl-c-of-a-run-with-workers",
        nothing,
        f"{LONG} --out run --data.workers 1",
        ("lewel: interrupted",),
        status=-signal.SIGINT,
        during=signalled("run/checkpoints/step-00000006.pt", signal.SIGINT),
        left=interrupted_and_saved,
        slow=True,
    ),
    Fault(
        "sigterm-before-the-first-step",
        nothing,
        f"{LONG} --out run",
        ("lewel: ended by SIGTERM; there is nothing to continue",),
        ("Traceback", "--resume auto"),
        during=signalled("run/lock.json", signal.SIGTERM),
        left=nothing_left,
        slow=True,
    ),
    Fault(
        "ctrl-c",
        nothing,
        f"{LONG} --out run",
        (
            "stopping after this step",
            "stopped by SIGINT after step 8\n",
            "interrupted; run/checkpoints/step-00000008.pt",
        ),
        status=130,
        patches=interrupted(1),
        left=says_once_where_it_goes_on,
    ),
    Fault(
        "ctrl-c-twice",
        nothing,
        f"{LONG} --out run",
        ("stopping after this step", "interrupted; run/checkpoints/step-00000006.pt is saved"),
        ("Traceback", "stopped by"),
        status=130,
        patches=interrupted(2),
        left=says_once_where_it_goes_on,
    ),
    Fault(
        "sigterm-while-the-report-is-written",
        nothing,
        f"{MADE} --out run",
        ("lewel: ended by SIGTERM; training has finished and is saved; --resume auto writes the report",),
        patches={"lewel.results.report.write": during_the_report},
    ),
    Fault(
        "out-of-checkpoints-without-a-recipe",
        foreign_checkpoints,
        f"{MADE} --out run",
        ("run holds a run already",),
        status=2,
        left=both_stay,
    ),
    Fault(
        "show-of-a-run-without-a-step",
        with_run(lambda run: (run.with_name("new").mkdir(), (run.with_name("new") / "log.jsonl").touch())),
        "show run new nowhere",
        ("left out: the log of new has no step yet", "left out: nowhere is no run folder", "wrote curves.png"),
    ),
    Fault(
        "show-of-a-log-that-is-a-folder",
        lambda folder: (folder / "run" / "log.jsonl").mkdir(parents=True),
        "show run",
        ("cannot read run/log.jsonl: Is a directory",),
        status=2,
    ),
    *(
        Fault(
            f"{name}-within-a-run",
            with_run(),
            command,
            (f"{given} is no run folder: it is a file; it lies in the run run, name that",),
            status=2,
        )
        for name, command, given in (
            ("show-of-a-log", "show run/log.jsonl", "run/log.jsonl"),
            ("eval-of-a-checkpoint", f"eval knn {OF_SIX}", OF_SIX),
        )
    ),
    Fault("show-of-a-log-with-broken-lines", with_run(scribbled), "show run", ("left 5 lines out of run/log.jsonl",)),
    Fault(
        "resume-of-a-log-with-broken-lines",
        with_run(lambda run: (scribbled(run), truncated(run))),
        AGAIN,
        ("left 5 lines out of run/log.jsonl",),
        left=whole_log,
    ),
    *(
        Fault(
            f"{command.split()[0]}-of-checkpoints-of-another-user",
            with_run(),
            command,
            ("the checkpoints in run/checkpoints cannot be listed (Permission denied); have its owner let",),
            status=2,
            patches={"os.scandir": of_another_user},
        )
        for command in (AGAIN, "eval knn run")
    ),
    Fault(
        "resume-where-the-checkpoints-were-deleted",
        with_run(lambda run: shutil.rmtree(run / "checkpoints")),
        AGAIN,
        ("run/log.jsonl has the steps of an earlier start, and is named log.jsonl.before now", "starts from the begin"),
        left=both_logs,
    ),
    Fault(
        "resume-elsewhere-over-a-log",
        with_run(log_of_another),
        "train --config run/config.yaml --resume run/checkpoints/step-00000003.pt --out other",
        ("other/log.jsonl has the steps of an earlier start, and is named log.jsonl.before-2 now",),
        left=holds("other/log.jsonl.before", "other/log.jsonl.before-2", "other/report.txt"),
    ),
    Fault(
        "resume-of-a-truncated-checkpoint",
        with_run(truncated),
        AGAIN,
        (
            "step-00000006.pt is truncated",
            "step-00000003.pt, the one before, is taken instead",
            "after step 3",
            "step-00000006.pt, which cannot be used, is named step-00000006.pt.broken now",
        ),
        left=put_aside,
    ),
    *(
        Fault(
            f"resume-where-{what}-fails",
            with_run(),
            AGAIN,
            ("step-00000006.pt cannot be read now", said),
            ("Traceback", "taken instead"),
            status=2,
            patches=failing(error),
            left=both_stay,
        )
        for what, error, said in (
            ("memory", MemoryError(), "MemoryError"),
            ("a-large-tensor", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "can't allocate"),
            ("the-disk", OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
            (
                "the-disk-within-torch",
                RuntimeError("PytorchStreamReader failed reading file data/0: file read failed"),
                "file read failed",
            ),
        )
    ),
    Fault(
        "resume-of-a-later-version-s-checkpoint",
        with_run(of_a_later_version),
        AGAIN,
        ("step-00000006.pt was not written by this version of lewel train", "'lewel checkpoint 99'"),
        ("Traceback", "taken instead"),
        status=2,
        left=both_stay,
    ),
    *(
        Fault(
            f"{command.split()[0]}-of-a-truncated-checkpoint",
            with_run(truncated),
            command,
            ("step-00000006.pt is truncated", "step-00000003.pt, the one before, is taken instead"),
        )
        for command in ("eval knn run", "maps run cat.png", "export run --to safetensors")
    ),
    Fault(
        "resume-of-broken-checkpoints",
        with_run(broken),
        AGAIN,
        ("no checkpoint in run/checkpoints can be used", "step-00000003.pt", "step-00000006.pt"),
        status=2,
    ),
    Fault(
        "log-that-cannot-be-written",
        lambda folder: (folder / "run" / "log.jsonl").mkdir(parents=True),
        f"{MADE} --out run",
        ("cannot write run/log.jsonl: Is a directory",),
        status=2,
    ),
    Fault(
        "recipe-on-a-full-disk",
        nothing,
        f"{MADE} --out run",
        ("cannot write run/config.yaml: No space left on device",),
        status=2,
        patches={"pathlib.Path.write_text": full},
        left=no_recipe,
    ),
)
