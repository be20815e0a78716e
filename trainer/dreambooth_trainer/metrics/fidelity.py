"""Subject fidelity, prompt fidelity, prior preservation and diversity, defined as in the paper (sections 4.2 and 4.3).

Shape suffixes: N generated images, M real images, P pairs, D features. Features need not be normalized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PAIRS_PER_BATCH = 32

Distance = Callable[[Tensor, Tensor], Tensor]
"""Pairwise distance of two batches of P items: ([P, ...], [P, ...]) -> [P]."""


def mean_pairwise_cosine(a_ND: Tensor, b_MD: Tensor) -> float:
    """Mean cosine similarity over all N x M pairs, -1 to 1."""
    return float(_cosines(a_ND, b_MD).mean())


def mean_cosines(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """For each row of a, its mean cosine similarity to the rows of b, [N]."""
    return _cosines(a_ND, b_MD).mean(dim=1)


def mean_cosines_to_others(a_ND: Tensor) -> Tensor:
    """For each row, its mean cosine similarity to the other rows, [N], N > 1."""
    cosines_NN = _cosines(a_ND, a_ND)
    return (cosines_NN.sum(dim=1) - cosines_NN.diagonal()) / (len(a_ND) - 1)


def subject_fidelity(generated_ND: Tensor, real_MD: Tensor) -> float:
    """DINO or CLIP-I: "the average pairwise cosine similarity between embeddings of generated and real images"."""
    return mean_pairwise_cosine(generated_ND, real_MD)


def real_image_fidelity(real_MD: Tensor) -> float | None:
    """Upper bound of subject fidelity (row "Real Images" of the paper): mean cosine over all pairs of real images.

    Returns None for a single image.
    """
    distances = _pair_distances(real_MD, cosine_distance)
    return None if distances is None else 1.0 - float(distances.mean())


def prompt_fidelity(images_ND: Tensor, texts_ND: Tensor) -> float:
    """CLIP-T: mean cosine similarity of each image and its prompt. Row i of both tensors belongs to image i.

    The text is the prompt without the identifier, "a dog on the beach", because CLIP does not know the identifier.
    The paper does not specify this, and its code for CLIP-T is not public. Published comparisons do the same
    (adobe-research/custom-diffusion issue 29, forchchch/DisenBooth issue 6).
    """
    if images_ND.shape != texts_ND.shape:
        raise ValueError(
            f"expected one row of text features per image, got {tuple(images_ND.shape)} and {tuple(texts_ND.shape)}"
        )
    _check_features(images_ND)
    return float((_normalized(images_ND) * _normalized(texts_ND)).sum(dim=1).mean())


def prior_preservation(class_images_ND: Tensor, real_MD: Tensor) -> float:
    """PRES: mean pairwise DINO cosine similarity of generated class images ("a dog") and real images of the subject.

    Lower is better: a high value means that the class has collapsed onto the subject. Compare it with the value of
    the base model.
    """
    return mean_pairwise_cosine(class_images_ND, real_MD)


def cosine_distance(a_PD: Tensor, b_PD: Tensor) -> Tensor:
    """1 - cosine similarity of each pair, [P], 0 to 2."""
    return 1.0 - (_normalized(a_PD) * _normalized(b_PD)).sum(dim=1)


def diversity(groups: Sequence[Tensor], distance: Distance = cosine_distance) -> float | None:
    """Mean pairwise distance of images with the same prompt, averaged over prompts.

    The default distance is 1 - cosine similarity of the given features, which needs no additional weights. DIV of the
    paper uses LPIPS: its groups are images [K, 3, H, W], and `distance` is the network. The two have different scales.

    Args:
        groups: a tensor [K, ...] for each prompt. A prompt with K < 2 has no pairs and is ignored.

    Returns:
        None if no prompt has two images.
    """
    means = [d.mean() for group in groups if (d := _pair_distances(group, distance)) is not None]
    return float(torch.stack(means).mean()) if means else None


def _pair_distances(group: Tensor, distance: Distance) -> Tensor | None:
    # The upper triangle: each unordered pair once, no image with itself. In batches: 64 images have 2016 pairs.
    first, second = (index.split(PAIRS_PER_BATCH) for index in torch.triu_indices(len(group), len(group), offset=1))
    if len(group) < 2:
        return None
    return torch.cat([distance(group[a], group[b]) for a, b in zip(first, second, strict=True)])


def _cosines(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Cosine similarities of all pairs of rows, [N, M]."""
    _check_features(a_ND, b_MD)
    return _normalized(a_ND) @ _normalized(b_MD).T


def _normalized(features_ND: Tensor) -> Tensor:
    # float64: the mean over thousands of pairs must not depend on the blocking of the matrix product.
    return torch.nn.functional.normalize(features_ND.double(), dim=1)


def _check_features(*features: Tensor) -> None:
    for rows in features:
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise ValueError(f"expected features [N, D] of at least one image, got {tuple(rows.shape)}")
