"""Images to pixel values: decoded safely, resized whole, normalised. NumPy and Pillow only.

Shapes: pixel_values [M, 3, S, S] float32, in [-1, 1] with the default mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from tessera.errors import UserError, unknown

_SETTINGS = ("size", "fit", "resample", "image_mean", "image_std")
# What transformers saves beside them and passes back.
_OF_TRANSFORMERS = ("image_processor_type", "processor_class", "auto_map", "data_format")


class TesseraImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What a call may override."""

    fit: Literal["squash", "pad"]


class TesseraImageProcessor(BaseImageProcessor):
    """Resizes every image to one size and normalises it.

    size        side in pixels, or {"height": h, "width": w}
    fit         "squash": the whole image is stretched to the size; "pad": its aspect is kept and grey fills
                the rest
    resample    a Pillow filter number (2 = bilinear), always with antialiasing
    image_mean, image_std   per channel, of values in [0, 1]

    Raises `UserError` for settings that make no sense.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    valid_kwargs = TesseraImageKwargs

    def __init__(
        self,
        size: int | dict[str, int] = 112,
        fit: str = "squash",
        resample: int = 2,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        for name in kwargs:
            if name not in _OF_TRANSFORMERS and not name.startswith("_"):
                raise unknown("setting of the image processor:", name, _SETTINGS)
        super().__init__(**kwargs)
        self.size = _size(size)
        self.fit = _fit(fit)
        self.resample = int(resample)
        self.image_mean = [float(x) for x in image_mean]
        self.image_std = [float(x) for x in image_std]
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise UserError("image_mean and image_std want three numbers each, the deviations above 0.")

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Paths and data: URLs opened (nested lists kept), everything else as it is.

        Nothing is downloaded.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, Path, bytes)):
            from tessera.data.images import open_image

            return open_image(image_url_or_urls)
        return image_url_or_urls

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """One image or a (nested) list of PIL images, arrays, tensors, paths or data: URLs -> pixel_values
        [M, 3, h, w].

        Arrays and tensors are [H, W], [H, W, C] or [C, H, W], uint8 or floats in [0, 1]; C is 1, 3 or 4.
        """
        size = _size(kwargs["size"]) if kwargs.get("size") is not None else self.size
        fit = _fit(kwargs["fit"]) if kwargs.get("fit") is not None else self.fit
        flat = flatten(images)
        if not flat:
            raise UserError("no image was given.")
        pixels = np.stack([self._one(image, size, fit) for image in flat])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _one(self, image: Any, size: dict[str, int], fit: str) -> np.ndarray:
        rgb = to_image(image)
        target = (size["width"], size["height"])
        if fit == "squash":
            resized = rgb if rgb.size == target else rgb.resize(target, Image.Resampling(self.resample))
        else:
            scale = min(target[0] / rgb.width, target[1] / rgb.height)
            inner = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
            resized = Image.new("RGB", target, (128, 128, 128))
            corner = ((target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2)
            resized.paste(rgb.resize(inner, Image.Resampling(self.resample)), corner)
        values = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255
        mean = np.asarray(self.image_mean, dtype=np.float32)[:, None, None]
        std = np.asarray(self.image_std, dtype=np.float32)[:, None, None]
        return (values - mean) / std


def to_image(image: Any) -> Image.Image:
    """A PIL image, path, data: URL, array or tensor as an upright RGB image.

    Raises `UserError` for anything else.
    """
    from tessera.data.images import open_image

    if isinstance(image, (Image.Image, str, Path, bytes)):
        return open_image(image)
    if hasattr(image, "detach"):
        image = image.detach().cpu().float().numpy() if image.is_floating_point() else image.cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image must be a PIL image, a path, an array or a tensor, not {type(image).__name__}.")
    return open_image(Image.fromarray(_bytes(image)))


def _bytes(array: np.ndarray) -> np.ndarray:
    """An image array as uint8 [H, W] or [H, W, 3 or 4]."""
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[-1] not in channels and array.shape[0] in channels:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in channels) or not array.size:
        raise UserError(f"an image array must be [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4, not {list(array.shape)}.")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = float(array.min()), float(array.max())
    if not np.issubdtype(array.dtype, np.floating) or not (low >= 0 and high <= 1):
        raise UserError(f"an image array must be uint8, or floats in [0, 1]; this one is {array.dtype} from {low:g} to {high:g}.")
    return np.ascontiguousarray((array * 255).round().astype(np.uint8))


def flatten(images: Any) -> list[Any]:
    """A (nested) list, a batch [M, ...] or one image as a flat list; nothing for None."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten(item)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [] if images is None else [images]


def _size(size: Any) -> dict[str, int]:
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size}
    try:
        found = {"height": int(size["height"]), "width": int(size["width"])}
    except (KeyError, TypeError, ValueError):
        found = {"height": 0, "width": 0}
    if min(found.values()) < 1:
        raise UserError(f'size must be a number of pixels or {{"height": h, "width": w}}, not {size!r}.')
    return found


def _fit(fit: Any) -> str:
    if fit not in ("squash", "pad"):
        raise UserError(f"fit must be 'squash' or 'pad', not {fit!r}.")
    return str(fit)
