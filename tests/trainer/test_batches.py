"""The batch of a step is a function of seed and step, whoever computes which part of it."""

import pytest
import torch

from dreambooth_trainer.training.batches import DeterministicSampler, noise


def whole(order: DeterministicSampler, step: int, parts: int) -> dict[str, list[int]]:
    draws = [order.sample(step, part, parts) for part in range(parts)]
    return {
        name: torch.cat([getattr(draw, name) for draw in draws]).tolist()
        for name in ("indices", "timesteps", "noise_seeds")
    }


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_make_up_the_same_batch_however_many_share_it(parts: int) -> None:
    order = DeterministicSampler(images=5, batch_size=8, timesteps=1000, seed=3)
    for step in range(4):
        assert whole(order, step, parts) == whole(order, step, 1)


def test_every_image_comes_once_before_any_comes_again() -> None:
    order = DeterministicSampler(images=6, batch_size=4, timesteps=1000, seed=0)
    row = [i for step in range(9) for i in order.sample(step, 0, 1).indices.tolist()]
    rounds = [row[i : i + 6] for i in range(0, len(row), 6)]
    assert all(sorted(round_) == list(range(6)) for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) > 1


def test_steps_and_seeds_differ() -> None:
    a, b = (DeterministicSampler(images=4, batch_size=4, timesteps=1000, seed=seed) for seed in (0, 1))
    assert a.sample(0, 0, 1).timesteps.tolist() != a.sample(1, 0, 1).timesteps.tolist()
    assert a.sample(0, 0, 1).noise_seeds.tolist() != b.sample(0, 0, 1).noise_seeds.tolist()


def test_timesteps_cover_the_schedule_evenly() -> None:
    order = DeterministicSampler(images=4, batch_size=8, timesteps=1000, seed=0)
    steps = torch.cat([order.sample(step, 0, 1).timesteps for step in range(500)]).float()
    assert steps.min() >= 0 and steps.max() <= 999
    assert steps.mean() == pytest.approx(499.5, abs=20)
    assert steps.std() == pytest.approx(1000 / 12**0.5, abs=15)


def test_noise_is_each_images_own() -> None:
    seeds = torch.tensor([5, 7])
    both = noise(seeds, (3, 4, 4))
    assert torch.equal(noise(seeds[1:], (3, 4, 4))[0], both[1])
    assert both.std() == pytest.approx(1, abs=0.2)
