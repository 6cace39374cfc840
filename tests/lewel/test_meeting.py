"""Processes that have not met yet: what the environment says of them, and which of them speaks."""

from __future__ import annotations

import pytest
import torch

from lewel import distributed, meeting
from lewel.errors import LewelError, OwnError, ToldError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("others", [{}, {"WORLD_SIZE": "2", "RANK": "0"}])
def test_tasks_of_a_launcher_are_told_once_that_they_know_nothing_of_each_other(others, environment):
    environment(SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0", **others)
    assert ("this is one of 2 tasks of srun" in meeting.apart()) is (not others)
    environment(SLURM_PROCID="1")
    assert meeting.apart() == ""
    environment(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0")
    assert meeting.apart() == ""


def test_one_of_several_says_what_all_have_met(environment):
    assert meeting.speaks()
    environment(RANK="1")
    assert meeting.speaks()  # a stray one, of a run of one process
    environment(WORLD_SIZE="2")
    assert not meeting.speaks(LewelError())
    assert meeting.speaks(OwnError())
    environment(RANK="0")
    assert meeting.speaks(LewelError())
    assert not meeting.speaks(ToldError())


@pytest.mark.parametrize("number_here", [True, False], ids=["torchrun", "srun"])
def test_one_process_of_a_machine_says_that_it_has_too_few_gpus(number_here, environment):
    said = []
    for local_rank in range(4):
        if number_here:
            environment(LOCAL_WORLD_SIZE="4")
        try:
            meeting.check_gpus(local_rank, 2)
        except LewelError as error:
            said.append(type(error))
    assert said == ([OwnError, ToldError, ToldError, ToldError] if number_here else [OwnError, ToldError])


def test_who_waits_for_long_says_for_whom(environment, monkeypatch, capfd):
    environment(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    monkeypatch.setattr(meeting, "SECONDS_UNTIL_SAID", 0)
    with meeting.place():
        for _ in range(500):
            if said := capfd.readouterr().err:
                break
            meeting.threading.Event().wait(0.01)
    assert "process 1 of 2 waits for the others at 127.0.0.1:29500" in said


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("listen: EADDRINUSE, message: address already in use"), "port is taken, .*another MASTER_PORT"),
        (TimeoutError("timed out"), "is process 0 running on that machine.*timed out"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_goes_wrong_is_a_sentence_of_the_process_that_met_it(error, sentence, environment):
    environment(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    with pytest.raises(OwnError, match=f"process 1 of 2 could not meet .*{sentence}"), meeting.place():
        raise error


@pytest.mark.parametrize("port", ["", "http", "0", "70000"])
def test_a_port_that_is_none_is_a_sentence(port, environment):
    environment(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(LewelError, match="MASTER_PORT"), meeting.place():
        pass


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:2983: Connection reset by peer"),
            True,
        ),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"), True),
        (RuntimeError("writeAll: Broken pipe"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_the_end_of_another_process_is_no_error_of_one_s_own(error, lost):
    assert distributed._is_of_another(error) == lost
