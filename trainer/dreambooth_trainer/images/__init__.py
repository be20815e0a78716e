"""Reads the subject's images from a folder, a bucket or the built-in subjects, and converts them to square RGB."""

from dreambooth_trainer.images.decode import prepare_image, prepare_photo
from dreambooth_trainer.images.prepare import PreparedImage, PreparedImages, prepare_images
from dreambooth_trainer.images.sources import RawImage, RawImages, read_folder, read_images

__all__ = [
    "PreparedImage",
    "PreparedImages",
    "RawImage",
    "RawImages",
    "prepare_image",
    "prepare_images",
    "prepare_photo",
    "read_folder",
    "read_images",
]
