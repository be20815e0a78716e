"""Subject fidelity, prompt fidelity, prior preservation and diversity, as the paper defines them (section 4.2-4.3).

Shape suffixes: N generated images, M real images, P pairs, D features. Features need not be normalised.
Nothing here loads a model; `scores.py` puts features and encoders together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""Row-wise distance of two batches of P items: ([P, ...], [P, ...]) -> [P]."""


def mean_pairwise_cosine(a_ND: Tensor, b_MD: Tensor) -> float:
    """Mean cosine similarity over all N x M pairs, -1 to 1."""
    _need_rows(a_ND, b_MD)
    return float((_unit(a_ND) @ _unit(b_MD).T).mean())


def subject_fidelity(generated_ND: Tensor, real_MD: Tensor) -> float:
    """DINO or CLIP-I: "the average pairwise cosine similarity between embeddings of generated and real images"."""
    return mean_pairwise_cosine(generated_ND, real_MD)


def real_image_fidelity(real_MD: Tensor) -> float | None:
    """The ceiling, the paper's row "Real Images": mean cosine of each real image with every other; None for one."""
    distances = _pair_distances(real_MD, cosine_distance)
    return None if distances is None else 1.0 - float(distances.mean())


def prompt_fidelity(images_ND: Tensor, texts_ND: Tensor) -> float:
    """CLIP-T: mean over images of the cosine between an image and its own prompt; row i of both belongs to image i.

    The text is the prompt without the identifier, "a dog on the beach". The paper does not say, and its authors
    released no code for CLIP-T; but the identifier means nothing to CLIP, and those who published how they compared
    with the paper drop it too (adobe-research/custom-diffusion issue 29, forchchch/DisenBooth issue 6).
    """
    if images_ND.shape != texts_ND.shape:
        raise ValueError(f"one text row an image: got {tuple(images_ND.shape)} and {tuple(texts_ND.shape)}")
    _need_rows(images_ND)
    return float((_unit(images_ND) * _unit(texts_ND)).sum(dim=1).mean())


def prior_preservation(class_images_ND: Tensor, real_MD: Tensor) -> float:
    """PRES: mean pairwise DINO cosine of generated class images ("a dog") and real images of the subject.

    HIGHER IS WORSE: the class has collapsed onto the subject. The base model's own value is the mark to compare with.
    """
    return mean_pairwise_cosine(class_images_ND, real_MD)


def cosine_distance(a_PD: Tensor, b_PD: Tensor) -> Tensor:
    """1 - cosine of rows, [P], 0 to 2."""
    return 1.0 - (_unit(a_PD) * _unit(b_PD)).sum(dim=1)


def diversity(groups: Sequence[Tensor], distance: Distance = cosine_distance) -> float | None:
    """DIV: mean pairwise distance among images of the same prompt, averaged over prompts; higher is more diverse.

    The paper's distance is LPIPS. The default is 1 - cosine of the features given (DINO's, in `scores.py`), which needs
    no further weights but is another scale: compare it with itself only. For LPIPS pass groups of image tensors
    [K, 3, H, W] and the network as `distance`.

    Args:
        groups: a tensor [K, ...] for each prompt; a prompt with K < 2 has no pairs and does not count.

    Returns:
        None if no prompt has two images.
    """
    means = [d.mean() for group in groups if (d := _pair_distances(group, distance)) is not None]
    return float(torch.stack(means).mean()) if means else None


def _pair_distances(group: Tensor, distance: Distance) -> Tensor | None:
    # The upper triangle: each unordered pair once, no image with itself.
    first, second = torch.triu_indices(len(group), len(group), offset=1)
    return distance(group[first], group[second]) if len(first) else None


def _unit(rows_ND: Tensor) -> Tensor:
    # float64: means over thousands of pairs must not depend on how the matrix product is blocked.
    return torch.nn.functional.normalize(rows_ND.double(), dim=1)


def _need_rows(*features: Tensor) -> None:
    for rows in features:
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise ValueError(f"expected features [N, D] of at least one image, got {tuple(rows.shape)}")
