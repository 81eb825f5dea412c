"""Augmentation: repeatable for each picture, whatever batch it comes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gistcli.data import Preprocess
from gistcli.data.augment import FlipCrop, RandAugment, build, shuffled, uniforms

SIZE = Preprocess((28, 21), (0.5, 0.4, 0.3), (0.25,) * 3)


def canvases(count: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, 32, 24)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_uniforms_are_uniform_and_differ_by_seed_epoch_index_and_draw() -> None:
    u = uniforms(0, 0, np.arange(20_000), 3)
    assert u.shape == (20_000, 3)
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean(axis=0) == pytest.approx(0.5, abs=0.01)
    assert u.var(axis=0) == pytest.approx(1 / 12, abs=0.003)
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.03
    for seed, epoch in ((1, 0), (0, 1), (-1, 0)):
        assert not (uniforms(seed, epoch, np.arange(100), 3) == u[:100]).any()


def test_a_pictures_draws_do_not_depend_on_its_neighbours() -> None:
    whole = uniforms(5, 2, np.arange(10), 4)
    assert (uniforms(5, 2, np.array([7, 3]), 4) == whole[[7, 3]]).all()
    assert (uniforms(5, 2, np.array([7, 3]), 2) == whole[[7, 3], :2]).all()


def test_shuffling_is_a_permutation_that_epoch_and_seed_change() -> None:
    orders = [shuffled(s, e, 100) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert shuffled(0, 0, 5).tolist() == [1, 3, 4, 0, 2]  # frozen: old runs must stay resumable


def test_flip_crop_cuts_and_mirrors_as_drawn() -> None:
    pixels = canvases(4)
    u = np.array([[0, 0, 0.9], [0.999, 0.999, 0.9], [0.5, 0, 0.1], [0, 0.999, 0.4]])
    crops = FlipCrop(SIZE)(pixels, u)
    assert torch.equal(crops[0], pixels[0, :, :28, :21])
    assert torch.equal(crops[1], pixels[1, :, 4:, 3:])
    assert torch.equal(crops[2], pixels[2, :, 2:30, :21].flip(-1))
    assert torch.equal(crops[3], pixels[3, :, :28, 3:].flip(-1))


def test_every_corner_is_drawn_equally_often() -> None:
    u = uniforms(0, 0, np.arange(5000), 3)
    tops = np.floor(u[:, 0] * 5)
    assert np.bincount(tops.astype(int)) == pytest.approx(1000, abs=120)


@pytest.mark.parametrize("name", ["flip-crop", "randaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_the_sum_of_its_pictures(name: str, channels: int) -> None:
    preprocess = Preprocess((28, 21), (0.5,) * channels, (0.25,) * channels)
    augment = build(name, preprocess)
    assert augment is not None
    pixels = canvases(30, channels)
    u = uniforms(3, 1, np.arange(30), augment.draws)
    together = augment(pixels.clone(), u)
    assert together.shape == (30, channels, 28, 21)
    assert together.dtype == torch.uint8
    for i in (0, 11, 29):
        assert torch.equal(augment(pixels[i : i + 1].clone(), u[i : i + 1])[0], together[i])
    assert augment(pixels[:0], u[:0]).shape == (0, channels, 28, 21)


def test_every_operation_keeps_the_shape_and_all_but_one_change_the_picture() -> None:
    operations = RandAugment(SIZE).table
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(60, 200, (3, 28, 21), dtype=torch.uint8, generator=generator)
    unchanged = 0
    for operation in operations:
        for sign in (1.0, -1.0):
            changed = operation(picture.clone(), sign)
            assert changed.shape == picture.shape
            assert changed.dtype == torch.uint8
            unchanged += torch.equal(changed, picture)
    assert len(operations) == 14
    assert unchanged == 2  # the identity, with either sign


def test_none_is_none() -> None:
    assert build("none", SIZE) is None
