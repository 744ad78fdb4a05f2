"""The order with several buckets, and the pictures held out."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from lavi_bridge.training.data.order import BLOCK, Order, held_out


def test_one_bucket_is_seen_in_the_order_of_before() -> None:
    """Golden: what the order gave before there were buckets, which runs of then are resumed with."""
    assert Order(10, 4, 7).batch(0) == ([3, 1, 8, 7], [0, 0, 0, 0])
    assert Order(10, 4, 7).batch(2) == ([9, 4, 4, 1], [0, 0, 1, 1])
    assert Order(5000, 3, 12).batch(4000) == ([93, 44, 55], [2, 2, 2])
    assert Order([torch.arange(100, 110)], 4, 7).batch(2) == ([109, 104, 104, 101], [0, 0, 1, 1])


def buckets() -> list[torch.Tensor]:
    everything = torch.randperm(60, generator=torch.manual_seed(1))
    return [everything[:40], everything[40:56], everything[56:]]


def test_a_batch_is_of_one_bucket_and_any_step_can_be_asked_for_first() -> None:
    order = Order(buckets(), 4, seed=5)
    steps = [*range(30), BLOCK - 1, BLOCK, 3 * BLOCK + 7]
    seen = {step: order.batch(step) for step in steps}
    for step in reversed(steps):
        assert Order(buckets(), 4, seed=5).batch(step) == seen[step] == order.batch(step)
        assert any(set(seen[step][0]) <= set(bucket.tolist()) for bucket in buckets())
    assert Order(buckets(), 4, seed=6).batch(0) != seen[0]


def test_every_picture_is_seen_equally_often_and_by_its_buckets_rounds() -> None:
    order, steps = Order(buckets(), 4, seed=5), 3 * BLOCK
    seen, rounds = Counter(), Counter()
    for step in range(steps):
        indices, epochs = order.batch(step)
        seen.update(indices)
        rounds.update(zip(indices, epochs, strict=True))
    assert set(rounds.values()) == {1}  # once a round, each
    expected = steps * 4 / 60
    for bucket in buckets():
        counts = [seen[i] for i in bucket.tolist()]
        assert max(counts) - min(counts) <= 1
        # Three blocks, each at most one draw off its share.
        assert sum(counts) / len(counts) == pytest.approx(expected, abs=3 * 4 / len(bucket) + 1)


def test_buckets_of_one_length_are_not_shuffled_alike() -> None:
    order = Order([torch.arange(20), torch.arange(20, 40)], 4, seed=0)
    first: dict[bool, list[int]] = {True: [], False: []}
    for step in range(40):
        indices, _ = order.batch(step)
        first[indices[0] < 20] += [index % 20 for index in indices]
    assert first[True][:20] != first[False][:20] and sorted(first[True][:20]) == list(range(20))


def test_buckets_smaller_than_a_batch_are_told(caplog: pytest.LogCaptureFixture) -> None:
    Order(buckets(), 4, 0)
    assert not caplog.text
    order = Order(buckets(), 8, 0)
    assert "4 pictures lie in 1 buckets that are smaller than a batch of 8" in caplog.text
    assert any(max(Counter(order.batch(step)[0]).values()) == 2 for step in range(200))
    with pytest.raises(ValueError, match="empty"):
        Order([], 4, 0)


def test_the_pictures_held_out_follow_their_names() -> None:
    names = [f"picture {i}" for i in range(200)]
    held = {names[i] for i in held_out(names, 20, seed=3)}
    assert len(held) == 20 and held != {names[i] for i in held_out(names, 20, seed=4)}
    assert {names[i] for i in held_out(names, 30, seed=3)} > held
    assert {name for i, name in enumerate(reversed(names)) if i in held_out(reversed(names), 20, 3)} == held
    fewer = [name for name in names if name != min(held)]
    assert {fewer[i] for i in held_out(fewer, 20, 3)} > held - {min(held)}
    twice = [*names, *names]  # a picture with two captions goes whole
    indices = held_out(twice, 20, seed=3)
    assert {i + 200 for i in indices if i < 200} == {i for i in indices if i >= 200} and len(indices) == 20
    assert held_out(names, 0, 3) == set()
