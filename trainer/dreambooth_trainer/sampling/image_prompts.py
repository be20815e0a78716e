"""Images of subjects as prompts: their embeddings, and the calls of a pipeline with an IP-Adapter.

The identifier in a prompt stands for the images of its subject; several stand for the images of all of their subjects.
The text encoder does not read them, because nothing was trained for them. A prompt without an identifier gives exactly
the images of the base model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreambooth_api.words import contains_word, without_word
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.families.base import ImagePrompts
from dreambooth_trainer.families.ip_adapter import adapter_files, check_adapter
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.models.files import IMAGE_EMBEDS_FILE, IP_ADAPTER_FILE
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder, atomic_directory

if TYPE_CHECKING:
    from torch import Tensor

_SCALE = "scale"


@dataclass(frozen=True)
class SubjectImages:
    """The embeddings of all subjects, for a pipeline with an adapter.

    Attributes:
        embeds: by identifier, [2, N, ...]: of no image and of the subject's N images, as
            `prepare_ip_adapter_image_embeds` of diffusers returns them. The attention is over all images.
        scale: weight of the attention to the images.
    """

    embeds: Mapping[str, Tensor]
    scale: float

    def subjects_of(self, prompt: str) -> tuple[str, ...]:
        """The identifiers in a prompt."""
        return tuple(name for name in self.embeds if contains_word(prompt, name))

    def text_of(self, prompt: str) -> str:
        """The prompt for the text encoder."""
        for name in self.subjects_of(prompt):
            prompt = without_word(prompt, name)
        return prompt

    def use(self, pipeline: Any, subjects: Sequence[str], *, guided: bool) -> dict[str, list[Tensor]]:
        """Select subjects for the next call of a pipeline; returns additional arguments of the call.

        Args:
            subjects: their identifiers; empty for the base model alone.
            guided: whether the call uses classifier-free guidance.
        """
        import torch

        # With a scale of 0, diffusers leaves the attention to the images out.
        pipeline.set_ip_adapter_scale(self.scale if subjects else 0.0)
        both = torch.cat([self.embeds[name] for name in subjects or [*self.embeds][:1]], dim=1)
        embeds = both if guided else both[1:]
        return {"ip_adapter_image_embeds": [embeds.to(device=pipeline.device, dtype=pipeline.dtype)]}


def encode_image_prompts(plan: Plan, folder: JobFolder) -> None:
    """Write the adapter, and the embeddings of the prepared images of all subjects. Runs on a worker.

    Raises:
        UserError: the adapter does not fit the base model.
    """
    import torch
    from safetensors.torch import save_file

    from dreambooth_trainer.sampling.generate import unload_models

    unload_models()  # the process may not have memory for two models
    settings, base = plan.image_prompts, local_folder(plan.model)
    assert settings is not None
    files, family = adapter_files(settings.adapter), open_family(base)
    check_adapter(files.weights, base)
    assert isinstance(family, ImagePrompts), "the plan was checked"
    pipeline: Any = family.pipeline(base, torch.float32)
    family.load_ip_adapter(pipeline, files.weights, encoder=True)
    device = work_device()
    pipeline.image_encoder.to(device)  # the only part that runs; a GPU may not have memory for the others in fp32
    embeds: dict[str, Tensor] = {}
    for index, subject in enumerate(plan.subjects):
        images = [Image.open(path) for path in folder.prepared_of(index)]
        with torch.no_grad():
            (own,) = pipeline.prepare_ip_adapter_image_embeds(
                [images], None, device, num_images_per_prompt=1, do_classifier_free_guidance=True
            )
        embeds[subject.identifier] = own.float().cpu().contiguous()
    with atomic_directory(folder.trained) as draft:
        # No hard link: the file belongs to the cache of the Hub or to the user, and the cache has symbolic links.
        shutil.copyfile(files.weights, draft / IP_ADAPTER_FILE)
        save_file(embeds, draft / IMAGE_EMBEDS_FILE, metadata={"format": "pt", _SCALE: str(settings.scale)})


def load_subject_images(folder: Path) -> SubjectImages:
    """Read what `encode_image_prompts` wrote, or a published copy of it."""
    from safetensors import safe_open

    with safe_open(folder / IMAGE_EMBEDS_FILE, "pt") as file:
        scale = float(file.metadata()[_SCALE])
        return SubjectImages({name: file.get_tensor(name) for name in file.keys()}, scale)  # noqa: SIM118 - no mapping
