"""The interface of a model family. Families are independent of fine-tuning methods, which modify their modules.

Modules have the names of their folders in the diffusers layout: "unet", "text_encoder_2", "transformer". Examples are
mappings of tensors whose first dimension is the example; only the family knows the keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from dreambooth_trainer.planning.plan import Plan

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image
    from torch import Tensor, nn

Tensors: TypeAlias = "Mapping[str, Tensor]"
Embeddings: TypeAlias = "Tensor | list[Tensor]"


@dataclass(frozen=True)
class Prediction:
    """What a denoiser predicts for noisy examples.

    Attributes:
        output: of the denoiser, [N, ...].
        target: what it is trained to predict, with the same shape.
        weights: of the examples' errors, [N]; None if all are 1.
    """

    output: Tensor
    target: Tensor
    weights: Tensor | None = None

    def rows(self, first: int, end: int | None) -> Prediction:
        """Those of some examples."""
        weights = None if self.weights is None else self.weights[first:end]
        return Prediction(self.output[first:end], self.target[first:end], weights)

    def errors(self) -> Tensor:
        """The mean squared error of each example, weighted, [N], in fp32."""
        errors = (self.output.float() - self.target.float()).square().flatten(1).mean(dim=1)
        return errors if self.weights is None else errors * self.weights


@dataclass(frozen=True)
class TextSlot:
    """A text encoder that can get new tokens.

    Attributes:
        module: name of the text encoder.
        folder: name of the tokenizer in the diffusers layout.
        key: of its embeddings in files of new tokens; empty for the token itself.
    """

    module: str
    tokenizer: Any
    folder: str
    key: str = ""


class Stage(Protocol):
    """A denoiser, and what encodes its examples.

    Attributes:
        denoiser: name of the denoiser's module.
        modules: only those that were opened. At real size each has up to gigabytes.
        text: the text encoders that can get new tokens, also if they are not open.
    """

    denoiser: str
    modules: dict[str, nn.Module]

    @property
    def text(self) -> Sequence[TextSlot]: ...

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode images of the same size, with the family's `image_encoders`."""
        ...

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        """Encode prompts.

        Args:
            live: text encoders that are trained, or get new tokens. Their inputs are returned instead of their
                outputs, and they need not be opened.
        """
        ...

    def noise_shapes(self, examples: Tensors) -> dict[str, tuple[int, ...]]:
        """The shapes of the noise that `denoise` uses for one example."""
        ...

    def denoise(
        self,
        modules: Mapping[str, nn.Module],
        examples: Tensors,
        noise: Tensors,
        u: Tensor,
        min_snr_gamma: float | None = None,
    ) -> Prediction:
        """Predict what the noise of examples is. The loss of each example is that of `Prediction.errors`.

        Args:
            modules: the denoiser, and the text encoders that are trained.
            examples: results of `encode_images` and `encode_prompts`.
            noise: standard normal, with the shapes of `noise_shapes`.
            u: uniform in [0, 1), [N]: the position in the noise schedule.
            min_snr_gamma: weight the examples by their signal-to-noise ratio.
        """
        ...


@dataclass(frozen=True)
class AdapterInfo:
    """Description of an adapter in the metadata of its file.

    Attributes:
        name: name of the job.
        base_model: Hub ID of the base model, or the name of its folder.
        resolution: side length of the training images in pixels.
    """

    name: str
    base_model: str
    instance_prompt: str
    resolution: int


class Family(Protocol):
    """One architecture of text-to-image diffusion models.

    Attributes:
        text_encoders: names of the text encoders. A model may lack some: `open` leaves them out.
        trainable_text_encoders: those that can be trained with the denoiser.
        image_encoders: names of the modules that `Stage.encode_images` needs.
        extensible_text_encoders: those that can get new tokens, with the folders of their tokenizers; empty if
            diffusers' pipelines load none.
    """

    name: str
    denoiser: str
    text_encoders: tuple[str, ...]
    trainable_text_encoders: tuple[str, ...]
    image_encoders: tuple[str, ...]
    extensible_text_encoders: Mapping[str, str]

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> Stage:
        """Open a diffusers folder for training, with some of its modules on the CPU, in fp32 or in bf16 as stored.

        Args:
            modules: names of the modules to load.
            empty: build the modules from their configurations, on torch's default device, and read no weights.
        """
        ...

    def pipeline(self, folder: Path, dtype: torch.dtype, **modules: nn.Module) -> DiffusionPipeline:
        """Load the pipeline of a diffusers folder, on the CPU.

        The autoencoder is in fp32 if its configuration requires that.

        Args:
            modules: by name; those to use as they are instead of loading them.
        """
        ...

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> Mapping[str, Embeddings]:
        """Text embeddings for calls of `pipeline`, by argument: of the prompts, and of no prompt for guidance.

        Each has one row per prompt: a tensor, or a list of tensors if their lengths differ.
        """
        ...

    def image_shapes(self, folder: Path, side: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what `Stage.encode_images` returns for one image, from the configuration of a diffusers folder.

        Args:
            side: side length of the square image in pixels.
        """
        ...

    def lora_target_modules(self) -> Mapping[str, Sequence[str]]:
        """Suffixes of the names of the layers that get LoRA adapters, by module."""
        ...

    def save(self, base: Path, modules: Mapping[str, nn.Module], target: Path) -> None:
        """Write a diffusers folder in safetensors: the base model with some modules replaced.

        Each module has the dtype in which the base model stores it.

        Args:
            base: diffusers folder of the base model.
            modules: by name. They are cast in place.
            target: folder to write.
        """
        ...

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        """Write `ADAPTER_FILE`, which diffusers' `load_lora_weights` can read, without changing number formats.

        Args:
            adapters: by module: weights with PEFT's names, and PEFT's configuration.
            target: folder to write to.
        """
        ...


@runtime_checkable
class KohyaWriter(Protocol):
    """A family whose adapters have a layout of kohya's sd-scripts. Families without it do not publish that file."""

    def save_kohya_adapter(self, folder: Path, target: Path, info: AdapterInfo) -> None:
        """Write the adapter of a trained model in kohya's layout, which ComfyUI and AUTOMATIC1111 read.

        Args:
            folder: what `save` and `save_adapter` wrote.
            target: file to write.
        """
        ...


@runtime_checkable
class GuidanceScale(Protocol):
    """A family whose pipeline has another definition of the guidance scale than other pipelines of diffusers."""

    def guidance_argument(self, scale: float) -> float:
        """The pipeline's argument for a scale as in Saharia et al. (2022, equation 2), where 1 disables guidance."""
        ...


@runtime_checkable
class SingleFileWriter(Protocol):
    """A family that can be written as a single file. Families without it do not publish that format."""

    def save_single_file(self, folder: Path, target: Path) -> None:
        """Write a diffusers folder as one safetensors file in the original layout, which other tools read."""
        ...


@runtime_checkable
class FineTunedScheduler(Protocol):
    """A family whose fine-tuned models are not sampled with the noise scheduler of the base model."""

    def fine_tuned_scheduler(self, scheduler: Any) -> Any:
        """The noise scheduler for a fine-tuned model, from that of the base model. `save` writes it."""
        ...


@runtime_checkable
class ImagePrompts(Protocol):
    """A family whose pipeline can have an image-prompt adapter (IP-Adapter)."""

    def load_ip_adapter(self, pipeline: Any, weights: Path, *, encoder: bool) -> None:
        """Load an adapter into a pipeline.

        Args:
            weights: file of the adapter.
            encoder: whether to load the image encoder as well. Without it, calls need the embeddings of images.
        """
        ...


@runtime_checkable
class SuperResolution(Protocol):
    """A family that enlarges the images of another one."""

    def upscale(
        self, pipeline: Any, images: Tensor, embeddings: Mapping[str, Embeddings], steps: int, generators: Sequence[Any]
    ) -> list[Image.Image]:
        """Enlarge images.

        Args:
            images: output of the other family's pipeline with `output_type="pt"`, [N, 3, h, w].
            embeddings: of the prompts, from the other family's `embed_prompts`.
            steps: denoising steps of the other family.
            generators: of the noise of each image.
        """
        ...


def trained_modules(family: Family, *, text_encoders: bool) -> tuple[str, ...]:
    """Names of the modules that can be trained: the denoiser, and the text encoders on request."""
    return (family.denoiser, *(family.trainable_text_encoders if text_encoders else ()))


def live_text_encoders(family: Family, plan: Plan) -> tuple[str, ...]:
    """Names of the text encoders that training computes: those that are trained, or that get new tokens."""
    if plan.spec.training.traits.tokens:
        return tuple(family.extensible_text_encoders)
    return family.trainable_text_encoders if plan.train_text_encoder else ()


def modules_in_training(family: Family, plan: Plan) -> tuple[str, ...]:
    """Names of the modules that the loss of a plan computes: the denoiser, and the live text encoders."""
    return (family.denoiser, *live_text_encoders(family, plan))
