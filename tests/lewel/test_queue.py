from __future__ import annotations

import pytest
import torch

from lewel.errors import LewelError
from lewel.methods.key_queue import KeyQueue
from lewel.methods.losses import unit


def test_keys_leave_in_the_order_they_came():
    queue = KeyQueue(6, 2)
    batches = [unit(torch.randn(2, 2)) for _ in range(5)]
    for batch in batches:
        queue.enqueue(3 * batch)
    # Slots 0-1 and 2-3 were written a second time, 4-5 once.
    torch.testing.assert_close(queue.keys, torch.cat([batches[3], batches[4], batches[2]]))
    assert queue.pointer == 4


def test_rows_have_length_one_from_the_start():
    torch.testing.assert_close(KeyQueue(8, 5).keys.norm(dim=1), torch.ones(8))


def test_state_holds_keys_and_pointer():
    queue, other = KeyQueue(6, 2), KeyQueue(6, 2)
    queue.enqueue(torch.randn(2, 2))
    other.load_state_dict(queue.state_dict())
    assert other.pointer == 2
    torch.testing.assert_close(other.keys, queue.keys, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 7])
def test_batches_that_do_not_divide_the_queue_go_on_at_its_beginning(batch):
    """After any number of them the queue holds the last seven keys."""
    queue, seen = KeyQueue(7, 2), list(range(-7, 0))
    queue.keys = torch.full((7, 2), float("nan"))
    for first in range(0, 40, batch):
        numbers = range(first, first + batch)
        angles = torch.tensor(numbers, dtype=torch.float32) / 40
        queue.enqueue(torch.stack([angles.cos(), angles.sin()], dim=1))
        seen += numbers
        found = (40 * torch.atan2(queue.keys[:, 1], queue.keys[:, 0])).round()
        held = sorted(x for x in found.tolist() if x == x)
        assert held == sorted(x for x in seen[-7:] if x >= 0)
        assert queue.pointer == len(seen[7:]) % 7


def test_more_keys_than_a_queue_holds_are_a_sentence():
    queue = KeyQueue(6, 2)
    before = queue.keys.clone()
    with pytest.raises(LewelError, match="a queue of 6 keys cannot take 7 at once"):
        queue.enqueue(torch.randn(7, 2))
    assert torch.equal(queue.keys, before)
