"""`spec.training.imagePrompt`: the image-prompt adapter of method None."""

from __future__ import annotations

from pydantic import Field

from dreambooth_api.fields import Strict
from dreambooth_api.model import ModelSource
from dreambooth_api.uris import BUILTIN_SPRITES

# Of a file in a repository. No part starts with a dot, so none is "..".
SAFETENSORS_PATH = r"^([^/.\\:\x00-\x1f][^/\\:\x00-\x1f]*/)*[^/.\\:\x00-\x1f][^/\\:\x00-\x1f]*[.]safetensors$"
WEIGHTS_FILE = "ip_adapter.safetensors"


class IpAdapter(ModelSource):
    """IP-Adapter with the layout of diffusers, on the Hugging Face Hub or in a folder."""

    id: str = Field(min_length=1, description="Hugging Face Hub ID, or path of a folder.")
    weights: str = Field(
        default=WEIGHTS_FILE,
        pattern=SAFETENSORS_PATH,
        max_length=200,
        description="Weights of the adapter: path of a safetensors file in the repository. The folder image_encoder "
        "beside it is the image encoder.",
    )


class ImagePrompt(Strict):
    """Image-prompt adapter and its scale."""

    adapter: IpAdapter | None = Field(
        default=None,
        description=f"Adapter that was trained for the base model. Defaults to the adapter of {BUILTIN_SPRITES} for "
        "that model; other models require one, for example {id: h94/IP-Adapter, weights: "
        "models/ip-adapter_sd15.safetensors}.",
    )
    scale: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Weight of the attention to the images. With lower values, images follow the text more.",
    )
