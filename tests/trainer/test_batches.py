"""The batch of a step is a function of seed and step, however it is split into micro-batches."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from dreambooth_trainer.training.batches import DeterministicSampler, noise
from dreambooth_trainer.training.cache import EncodedImages


def full_batch(sampler: DeterministicSampler, step: int, num_micro_batches: int) -> dict[str, list[int]]:
    samples = [sampler.sample(step, micro_batch, num_micro_batches) for micro_batch in range(num_micro_batches)]
    return {
        name: torch.cat([getattr(sample, name) for sample in samples]).tolist()
        for name in ("indices", "u", "noise_seeds")
    }


@pytest.mark.parametrize("num_micro_batches", [2, 4, 8])
def test_micro_batches_add_up_to_the_same_batch(num_micro_batches: int) -> None:
    sampler = DeterministicSampler(images=(range(5),), batch_size=8, seed=3)
    for step in range(4):
        assert full_batch(sampler, step, num_micro_batches) == full_batch(sampler, step, 1)


def test_every_image_is_sampled_once_per_epoch_in_a_new_order() -> None:
    sampler = DeterministicSampler(images=(range(6),), batch_size=4, seed=0)
    indices = [i for step in range(9) for i in sampler.sample(step, 0, 1).indices.tolist()]
    epochs = [indices[i : i + 6] for i in range(0, len(indices), 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_image_occurs_as_often_as_its_weight_in_each_epoch() -> None:
    images = EncodedImages(
        {}, {}, torch.tensor([[0, 3], [3, 5]]), torch.zeros(5), torch.tensor([2, 1, 1, 1, 3])
    ).indices
    sampler = DeterministicSampler(images, batch_size=4, seed=0)
    indices = [i for step in range(8) for i in sampler.sample(step, 0, 1).indices.tolist()]
    for own, epoch in ((indices[0::2], {0: 2, 1: 1, 2: 1}), (indices[1::2], {3: 1, 4: 3})):
        assert [Counter(own[i : i + 4]) for i in range(0, 16, 4)] == [Counter(epoch)] * 4


def test_a_batch_that_cannot_be_split_is_an_error() -> None:
    # Ray may start an elastic job with any number of processes between its bounds.
    sampler = DeterministicSampler(images=(range(5),), batch_size=8, seed=3)
    with pytest.raises(ValueError, match="a batch of 8 images cannot be split into 5 micro-batches"):
        sampler.sample(0, 0, 5)


def test_augmentation_selects_variants_and_changes_nothing_else() -> None:
    plain = DeterministicSampler(images=(range(5),), batch_size=8, seed=3)
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
    a, b = (DeterministicSampler(images=(range(4),), batch_size=4, seed=seed) for seed in (0, 1))
    assert a.sample(0, 0, 1).u.tolist() != a.sample(1, 0, 1).u.tolist()
    assert a.sample(0, 0, 1).noise_seeds.tolist() != b.sample(0, 0, 1).noise_seeds.tolist()


def test_positions_cover_the_schedule_evenly() -> None:
    sampler = DeterministicSampler(images=(range(4),), batch_size=8, seed=0)
    u = torch.cat([sampler.sample(step, 0, 1).u for step in range(500)])
    assert u.min() >= 0 and u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.02)
    assert u.std() == pytest.approx(12**-0.5, abs=0.015)


def test_the_noise_of_an_image_depends_on_its_seed_only() -> None:
    seeds = torch.tensor([5, 7])
    shapes = {"latent": (3, 4, 4), "noise": (3, 4, 4)}
    both, second = noise(seeds, shapes), noise(seeds[1:], shapes)
    assert all(torch.equal(second[name][0], both[name][1]) for name in shapes)
    assert not torch.equal(both["latent"], both["noise"])
    assert torch.cat([*both.values()]).std() == pytest.approx(1, abs=0.2)


# Recorded: (images, batch size, seed), and a digest of the first six batches.
SINGLE_SUBJECT = [
    (4, 4, 0, "b78af7bcd349950d"),
    (5, 1, 28, "33f83c1008b12c4a"),
    (200, 4, 2, "d4bc2ef49e6e67ba"),
]


@pytest.mark.parametrize(("count", "batch_size", "seed", "digest"), SINGLE_SUBJECT)
def test_the_batches_of_one_subject_never_change(count: int, batch_size: int, seed: int, digest: str) -> None:
    sampler = DeterministicSampler((range(count),), batch_size, seed)
    samples = [sampler.sample(step, 0, 1) for step in range(6)]
    rows = [[s.indices.tolist(), s.u.tolist(), s.noise_seeds.tolist()] for s in samples]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == digest


UNEVEN = (range(3), range(3, 8), range(8, 10))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_batches_rotate_through_the_subjects(batch_size: int) -> None:
    sampler = DeterministicSampler(UNEVEN, batch_size, seed=1)
    indices = [i for step in range(60) for i in sampler.sample(step, 0, 1).indices.tolist()]
    subjects = [next(k for k, images in enumerate(UNEVEN) if i in images) for i in indices]
    assert subjects == [position % 3 for position in range(len(indices))]
    for subject, images in enumerate(UNEVEN):
        own = indices[subject::3]
        epochs = [own[i : i + len(images)] for i in range(0, len(own) - len(images) + 1, len(images))]
        assert all(sorted(epoch) == list(images) for epoch in epochs)


@pytest.mark.parametrize("num_micro_batches", [2, 3, 6])
def test_micro_batches_of_several_subjects_add_up_to_the_same_batch(num_micro_batches: int) -> None:
    sampler = DeterministicSampler(UNEVEN, batch_size=6, seed=3)
    for step in range(4):
        assert full_batch(sampler, step, num_micro_batches) == full_batch(sampler, step, 1)


def test_subjects_with_the_same_class_images_use_each_once_per_epoch() -> None:
    sampler = DeterministicSampler((range(6), range(6), range(6, 9)), batch_size=3, seed=0)
    indices = [i for step in range(9) for i in sampler.sample(step, 0, 1).indices.tolist()]
    shared = [i for position, i in enumerate(indices) if position % 3 < 2]
    assert [Counter(shared[i : i + 6]) for i in (0, 6, 12)] == [Counter(range(6))] * 3
    assert set(indices[2::3]) == {6, 7, 8}


def test_subjects_that_all_share_class_images_train_on_them_as_one_subject_does() -> None:
    one, two = (DeterministicSampler((range(7),) * count, 4, seed=5) for count in (1, 2))
    assert [one.sample(s, 0, 1).indices.tolist() for s in range(9)] == [
        two.sample(s, 0, 1).indices.tolist() for s in range(9)
    ]
