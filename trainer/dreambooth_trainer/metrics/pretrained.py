"""DINO and CLIP through transformers: safetensors only, and no code of a model repository is ever run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, PreTrainedModel, ViTModel

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.metrics.batches import unit_rows
from dreambooth_trainer.models.files import local_weights, model_files
from dreambooth_trainer.models.hub import Repository, converted_revision, fetch

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class DinoEncoder:
    """DINO ViT-S/16: the class token of the last hidden state, after the final layer norm.

    As the authors' snippet does it (google/dreambooth issue 3): shorter side to 256 pixels bicubic, middle 224 x 224,
    ImageNet's mean and deviation. The hub's preprocessor_config.json resizes straight to 224 x 224: not used.
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
        """float32 [N, D]; D is 384 for ViT-S."""
        return unit_rows(images, self._class_token, self._width)

    def _class_token(self, images: Sequence[Image.Image]) -> Tensor:
        pixels_N3HW = _pixels(self._processor, images, self._model)
        return self._model(pixel_values=pixels_N3HW).last_hidden_state[:, 0]


class ClipEncoder:
    """CLIP ViT-B/32: projected image and text features, preprocessed as the checkpoint says."""

    def __init__(self, name: str, model: CLIPModel, processor: CLIPImageProcessorPil, tokenizer: CLIPTokenizer) -> None:
        self.name = name
        self._model = model
        config: Any = model.config
        self._width: int = config.projection_dim
        self._most_tokens: int = config.text_config.max_position_embeddings
        self._processor = processor
        self._tokenizer = tokenizer

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, D]; D is 512 for ViT-B/32."""
        return unit_rows(images, self._image_features, self._width)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, D]; a text longer than CLIP's 77 tokens is cut."""
        return unit_rows(texts, self._text_features, self._width)

    def _image_features(self, images: Sequence[Image.Image]) -> Tensor:
        pixels_N3HW = _pixels(self._processor, images, self._model)
        return _projected(self._model.get_image_features(cast("Any", pixels_N3HW)))

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        tokens: Any = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._most_tokens,
            return_tensors="pt",
        ).to(self._model.device)
        return _projected(self._model.get_text_features(**tokens))


def load_dino(name: str, device: str) -> DinoEncoder:
    """Load a ViT that was trained as DINO, by hub id or folder; raises UserError or TransientError."""
    path = "spec.evaluation.encoders.dino"
    folder = _folder(path, name)
    return DinoEncoder(name, _pretrained(ViTModel, path, name, folder, device, add_pooling_layer=False))


def load_clip(name: str, device: str) -> ClipEncoder:
    """Load a CLIP with its tokenizer and image processor, by hub id or folder; raises UserError."""
    path = "spec.evaluation.encoders.clip"
    folder = _folder(path, name)
    model = _pretrained(CLIPModel, path, name, folder, device)
    try:
        processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _unavailable(path, name, "this CLIP model lacks its tokenizer or image processor") from error
    return ClipEncoder(name, model, processor, tokenizer)


M = TypeVar("M", bound=PreTrainedModel)


def _folder(path: str, name: str) -> Path:
    """Where an encoder is on this machine, fetched from the hub where it is not there."""
    if Path(name).is_dir():
        return Path(name)
    if name.startswith(("/", "./", "../")):
        raise _unavailable(path, name, "there is no such folder")
    folder = fetch(name, None, path, "config.json", _files)
    if not local_weights(folder) and (revision := converted_revision(name, path)):
        return fetch(name, revision, path, "config.json", _files)
    return folder


def _files(repository: Repository) -> list[str]:
    return model_files(repository.names, repository.read)


def _pretrained(kind: type[M], path: str, name: str, folder: Path, device: str, **options: object) -> M:
    """A model with all its weights read from the checkpoint, float32, in evaluation mode."""
    try:
        # Annotated: transformers' own annotation knows nothing of output_loading_info.
        loaded: tuple[M, dict[str, Any]] = cast("Any", kind).from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        rule = f"no {kind.__name__} with safetensors weights can be had under this name"
        raise _unavailable(path, name, rule) from error
    model, info = loaded
    # transformers fills what a checkpoint lacks with random numbers and only warns: scores would be noise.
    if info["missing_keys"] or info["mismatched_keys"]:
        raise _unavailable(path, name, f"the checkpoint is not that of a {kind.__name__}")
    return cast("Any", model).to(device).eval()


def _unavailable(path: str, name: str, rule: str) -> UserError:
    remedy = "write a local folder with the model, builtin:sprites for drawn subjects, or evaluation.enabled: false"
    return UserError(ValidationIssue(path, name, rule, remedy))


def _projected(output: object) -> Tensor:
    # transformers 5 returns an output object, not a tensor; its pooler_output is the projected feature.
    return cast("Any", output).pooler_output


def _pixels(processor: CLIPImageProcessorPil, images: Sequence[Image.Image], model: PreTrainedModel) -> Tensor:
    rgb = [image.convert("RGB") for image in images]
    pixels_N3HW: Tensor = processor(images=rgb, return_tensors="pt")["pixel_values"]
    return pixels_N3HW.to(model.device)
