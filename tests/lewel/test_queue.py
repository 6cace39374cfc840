from __future__ import annotations

import torch

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
