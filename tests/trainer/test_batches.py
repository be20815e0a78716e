"""The batch of a step is a function of seed and step, however it is split into micro-batches."""

from dataclasses import replace

import pytest
import torch

from dreambooth_trainer.training.batches import DeterministicSampler, noise


def full_batch(sampler: DeterministicSampler, step: int, num_micro_batches: int) -> dict[str, list[int]]:
    samples = [sampler.sample(step, micro_batch, num_micro_batches) for micro_batch in range(num_micro_batches)]
    return {
        name: torch.cat([getattr(sample, name) for sample in samples]).tolist()
        for name in ("indices", "timesteps", "noise_seeds")
    }


@pytest.mark.parametrize("num_micro_batches", [2, 4, 8])
def test_micro_batches_add_up_to_the_same_batch(num_micro_batches: int) -> None:
    sampler = DeterministicSampler(num_images=5, batch_size=8, num_train_timesteps=1000, seed=3)
    for step in range(4):
        assert full_batch(sampler, step, num_micro_batches) == full_batch(sampler, step, 1)


def test_every_image_is_sampled_once_per_epoch_in_a_new_order() -> None:
    sampler = DeterministicSampler(num_images=6, batch_size=4, num_train_timesteps=1000, seed=0)
    indices = [i for step in range(9) for i in sampler.sample(step, 0, 1).indices.tolist()]
    epochs = [indices[i : i + 6] for i in range(0, len(indices), 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_that_cannot_be_split_is_an_error() -> None:
    # Ray may start an elastic job with any number of processes between its bounds.
    sampler = DeterministicSampler(num_images=5, batch_size=8, num_train_timesteps=1000, seed=3)
    with pytest.raises(ValueError, match="a batch of 8 images cannot be split into 5 micro-batches"):
        sampler.sample(0, 0, 5)


def test_augmentation_selects_variants_and_changes_nothing_else() -> None:
    plain = DeterministicSampler(num_images=5, batch_size=8, num_train_timesteps=1000, seed=3)
    augmented = replace(plain, num_variants=16)
    variants: set[int] = set()
    for step in range(20):
        before, after = full_batch(plain, step, 1), full_batch(augmented, step, 1)
        assert full_batch(augmented, step, 4) == after
        assert [index // 16 for index in after.pop("indices")] == before.pop("indices")
        assert before == after
        variants |= {index % 16 for index in full_batch(augmented, step, 1)["indices"]}
    assert variants == set(range(16))


def test_samples_differ_between_steps_and_between_seeds() -> None:
    a, b = (DeterministicSampler(num_images=4, batch_size=4, num_train_timesteps=1000, seed=seed) for seed in (0, 1))
    assert a.sample(0, 0, 1).timesteps.tolist() != a.sample(1, 0, 1).timesteps.tolist()
    assert a.sample(0, 0, 1).noise_seeds.tolist() != b.sample(0, 0, 1).noise_seeds.tolist()


def test_timesteps_cover_the_schedule_evenly() -> None:
    sampler = DeterministicSampler(num_images=4, batch_size=8, num_train_timesteps=1000, seed=0)
    steps = torch.cat([sampler.sample(step, 0, 1).timesteps for step in range(500)]).float()
    assert steps.min() >= 0 and steps.max() <= 999
    assert steps.mean() == pytest.approx(499.5, abs=20)
    assert steps.std() == pytest.approx(1000 / 12**0.5, abs=15)


def test_the_noise_of_an_image_depends_on_its_seed_only() -> None:
    seeds = torch.tensor([5, 7])
    both = noise(seeds, (3, 4, 4))
    assert torch.equal(noise(seeds[1:], (3, 4, 4))[0], both[1])
    assert both.std() == pytest.approx(1, abs=0.2)
