"""DINO and CLIP from transformers. Only safetensors are read; code in model repositories is never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, PreTrainedModel, ViTModel

from dreambooth_trainer.metrics.batching import encode_normalized
from dreambooth_trainer.metrics.encoder_files import CLIP, DINO, EncoderKind, encoder_folder, unavailable

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class DinoEncoder:
    """DINO ViT-S/16: the class token of the last hidden state, after the final layer norm.

    Preprocessing follows the authors' code (google/dreambooth issue 3): bicubic resize of the shorter side to 256
    pixels, center crop to 224 x 224, ImageNet mean and standard deviation. The preprocessor_config.json on the Hub,
    which resizes to 224 x 224 without a crop, is not used.
    """

    def __init__(self, name: str, model: ViTModel) -> None:
        self.name = name
        self._model = model
        config: Any = model.config
        side: int = config.image_size
        self._width: int = config.hidden_size
        self._processor = CLIPImageProcessorPil(
            size={"shortest_edge": side * 256 // 224},
            crop_size={"height": side, "width": side},
            image_mean=IMAGENET_MEAN,
            image_std=IMAGENET_STD,
        )

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalized features, float32 [N, D]; D is 384 for ViT-S."""
        return encode_normalized(images, self._class_token, self._width)

    def _class_token(self, images: Sequence[Image.Image]) -> Tensor:
        pixels_N3HW = _pixels(self._processor, images, self._model)
        return self._model(pixel_values=pixels_N3HW).last_hidden_state[:, 0]


class ClipEncoder:
    """CLIP ViT-B/32: projected image and text features, with the preprocessing of the checkpoint."""

    def __init__(self, name: str, model: CLIPModel, processor: CLIPImageProcessorPil, tokenizer: CLIPTokenizer) -> None:
        self.name = name
        self._model = model
        config: Any = model.config
        self._width: int = config.projection_dim
        self._max_tokens: int = config.text_config.max_position_embeddings
        self._processor = processor
        self._tokenizer = tokenizer

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalized features, float32 [N, D]; D is 512 for ViT-B/32."""
        return encode_normalized(images, self._image_features, self._width)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Normalized features, float32 [N, D]. Texts are truncated to CLIP's 77 tokens."""
        return encode_normalized(texts, self._text_features, self._width)

    def _image_features(self, images: Sequence[Image.Image]) -> Tensor:
        pixels_N3HW = _pixels(self._processor, images, self._model)
        return _projected(self._model.get_image_features(cast("Any", pixels_N3HW)))

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        tokens: Any = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._model.device)
        return _projected(self._model.get_text_features(**tokens))


def load_dino(name: str, device: str, commit: str | None = None) -> DinoEncoder:
    """Load a DINO ViT by Hub ID or folder.

    Args:
        commit: commit on the Hub; None to resolve it.

    Raises:
        UserError: the model is not available or not a ViT.
        TransientError: the Hub cannot be reached.
    """
    folder = encoder_folder(DINO, name, commit)
    return DinoEncoder(name, _pretrained(ViTModel, DINO, name, folder, device, add_pooling_layer=False))


def load_clip(name: str, device: str, commit: str | None = None) -> ClipEncoder:
    """Load a CLIP model with its tokenizer and image processor, by Hub ID or folder.

    Args:
        commit: commit on the Hub; None to resolve it.

    Raises:
        UserError: the model is not available or not a CLIP model.
        TransientError: the Hub cannot be reached.
    """
    folder = encoder_folder(CLIP, name, commit)
    model = _pretrained(CLIPModel, CLIP, name, folder, device)
    try:
        processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise unavailable(CLIP, name, "its tokenizer or its image processor cannot be loaded") from error
    return ClipEncoder(name, model, processor, tokenizer)


M = TypeVar("M", bound=PreTrainedModel)


def _pretrained(model_class: type[M], kind: EncoderKind, name: str, folder: Path, device: str, **options: object) -> M:
    """A model in float32 and evaluation mode, with all weights from the checkpoint."""
    try:
        # Cast: the annotation of from_pretrained does not cover output_loading_info.
        loaded: tuple[M, dict[str, Any]] = cast("Any", model_class).from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable(kind, name, f"cannot be loaded as a {kind.model_class}") from error
    model, info = loaded
    # transformers only warns about missing weights and initializes them randomly, which would make scores meaningless.
    if info["missing_keys"] or info["mismatched_keys"]:
        raise unavailable(kind, name, f"is not a checkpoint of a {kind.model_class}")
    return cast("Any", model).to(device).eval()


def _projected(output: object) -> Tensor:
    # transformers 5 returns an output object; its pooler_output is the projected feature.
    return cast("Any", output).pooler_output


def _pixels(processor: CLIPImageProcessorPil, images: Sequence[Image.Image], model: PreTrainedModel) -> Tensor:
    rgb = [image.convert("RGB") for image in images]
    pixels_N3HW: Tensor = processor(images=rgb, return_tensors="pt")["pixel_values"]
    return pixels_N3HW.to(model.device)
