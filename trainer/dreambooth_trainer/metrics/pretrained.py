"""DINO and CLIP from transformers. Only safetensors are read; code in model repositories is never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, PreTrainedModel, ViTModel

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.metrics.batching import encode_normalized
from dreambooth_trainer.models.files import local_weights, model_files
from dreambooth_trainer.models.hub import Repository, converted_revision, fetch

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


def load_dino(name: str, device: str) -> DinoEncoder:
    """Load a DINO ViT by Hub ID or folder.

    Raises:
        UserError: the model is not available or not a ViT.
        TransientError: the Hub cannot be reached.
    """
    path = "spec.evaluation.encoders.dino"
    folder = _folder(path, name)
    return DinoEncoder(name, _pretrained(ViTModel, path, name, folder, device, add_pooling_layer=False))


def load_clip(name: str, device: str) -> ClipEncoder:
    """Load a CLIP model with its tokenizer and image processor, by Hub ID or folder.

    Raises:
        UserError: the model is not available or not a CLIP model.
        TransientError: the Hub cannot be reached.
    """
    path = "spec.evaluation.encoders.clip"
    folder = _folder(path, name)
    model = _pretrained(CLIPModel, path, name, folder, device)
    try:
        processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _unavailable(path, name, "the CLIP model has no tokenizer or no image processor") from error
    return ClipEncoder(name, model, processor, tokenizer)


M = TypeVar("M", bound=PreTrainedModel)


def _folder(path: str, name: str) -> Path:
    """The local folder of an encoder, downloaded from the Hub if needed."""
    if Path(name).is_dir():
        return Path(name)
    if name.startswith(("/", "./", "../")):
        raise _unavailable(path, name, "the folder does not exist")
    folder = fetch(name, None, path, "config.json", _files)
    if not local_weights(folder) and (revision := converted_revision(name, path)):
        return fetch(name, revision, path, "config.json", _files)
    return folder


def _files(repository: Repository) -> list[str]:
    return model_files(repository.names, repository.read)


def _pretrained(kind: type[M], path: str, name: str, folder: Path, device: str, **options: object) -> M:
    """A model in float32 and evaluation mode, with all weights from the checkpoint."""
    try:
        # Cast: the annotation of from_pretrained does not cover output_loading_info.
        loaded: tuple[M, dict[str, Any]] = cast("Any", kind).from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        rule = f"no {kind.__name__} with safetensors weights was found under this name"
        raise _unavailable(path, name, rule) from error
    model, info = loaded
    # transformers only warns about missing weights and initializes them randomly, which would make scores meaningless.
    if info["missing_keys"] or info["mismatched_keys"]:
        raise _unavailable(path, name, f"is not a checkpoint of a {kind.__name__}")
    return cast("Any", model).to(device).eval()


def _unavailable(path: str, name: str, rule: str) -> UserError:
    remedy = f"set a local folder with the model, {BUILTIN_SPRITES} for sprite subjects, or evaluation.enabled: false"
    return UserError(ValidationIssue(path, name, rule, remedy))


def _projected(output: object) -> Tensor:
    # transformers 5 returns an output object; its pooler_output is the projected feature.
    return cast("Any", output).pooler_output


def _pixels(processor: CLIPImageProcessorPil, images: Sequence[Image.Image], model: PreTrainedModel) -> Tensor:
    rgb = [image.convert("RGB") for image in images]
    pixels_N3HW: Tensor = processor(images=rgb, return_tensors="pt")["pixel_values"]
    return pixels_N3HW.to(model.device)
