"""What is said when a file cannot be written whole."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from lewel.errors import LewelError


def refusal(write: Callable[[], object], room: int) -> str:
    """The sentence of write in a process of its own, whose files cannot grow beyond room bytes."""

    def try_to_write(answer: Connection) -> None:
        torch.set_num_threads(1)  # those of the process that was forked are not there
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            write()
        except LewelError as error:
            answer.send(str(error))

    fork = multiprocessing.get_context("fork")
    question, answer = fork.Pipe(duplex=False)
    process = fork.Process(target=try_to_write, args=(answer,))
    process.start()
    answer.close()
    assert question.poll(60), "the process neither wrote nor refused"
    sentence = question.recv()
    process.join()
    return sentence
