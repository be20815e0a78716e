"""The subject's images: from a folder, bucket or the built-in examples to square RGB pictures."""

from dreambooth_trainer.images.decode import prepare_image
from dreambooth_trainer.images.prepare import Prepared, PreparedImage, prepare_images
from dreambooth_trainer.images.sources import Found, RawImage, read_folder, read_images

__all__ = [
    "Found",
    "Prepared",
    "PreparedImage",
    "RawImage",
    "prepare_image",
    "prepare_images",
    "read_folder",
    "read_images",
]
