"""From an image file's bytes to uint8 pixels: whole, or no more of a JPEG than a crop needs."""

import io
import math
import struct
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from googlenet_jax.data.resampling import ANTIALIASED, scale, scale_part

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

# These may shrink in two steps; for the others the aliasing of the full picture is part of the
# name.
_MAY_DECODE_SMALLER = ("auto", "area", ANTIALIASED)

MAX_PIXELS = 178_956_970  # Pillow's limit, above which it takes a picture for a decompression bomb
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_TURNS: dict[
    int, Callable[[np.ndarray], np.ndarray]
] = {  # EXIF's orientations: what makes the stored picture upright
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image.swapaxes(0, 1)[::-1],
}


class BadImage(ValueError):
    """Bytes that are no whole image; the message says what was found."""


def decode(encoded: bytes, *, grey: bool = False, orientation: int = 1) -> np.ndarray:
    """Decodes an image file whole.

    Palettes are resolved, CMYK is converted, 16 bits become their upper 8, alpha is dropped, and of
    an animation the first frame counts.

    Args:
        encoded: a PNG, JPEG, WebP, GIF, BMP or TIFF file, whatever its name was.
        grey: whether to return one channel.
        orientation: EXIF's, from 1 to 8, by which the stored picture is turned upright; what the
            file itself says is ignored.

    Returns:
        uint8 [H, W, 3] in RGB order, or [H, W, 1].

    Raises:
        BadImage: if the bytes are no whole image, or one of more than MAX_PIXELS.
    """
    _check_size(encoded)
    flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB)
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
    except cv2.error:
        image = None
    if image is None:
        raise BadImage(
            f"expected a whole image file (PNG, JPEG, …), found {len(encoded)} bytes that can't be "
            "decoded"
        )
    return _TURNS[orientation](image if image.ndim == 3 else image[..., None])


def decode_crop(
    encoded: bytes,
    choose: Callable[[int, int], Box],
    output: Callable[[int, int], tuple[int, int]],
    interpolation: str,
    *,
    exact: bool,
    grey: bool = False,
    orientation: int = 1,
) -> np.ndarray:
    """Decodes what a crop needs of an image file, and scales it.

    Unless `exact`, a JPEG's colours are upsampled without smoothing, and where the crop is at least
    twice (four, eight times) the size asked for, and the interpolation doesn't alias, it is decoded
    at half (a quarter, an eighth) of its size: the transform of an 8×8 block then yields 4×4 (2×2,
    1) pixels.

    Args:
        encoded, grey, orientation: as in `decode`.
        choose: (height, width) of the upright picture -> the crop's box.
        output: (height, width) of the upright picture -> height and width of the result.
        interpolation: one of INTERPOLATIONS.
        exact: whether to decode every picture whole, to the pixels of `decode`.

    Returns:
        uint8 [H, W, 3] in RGB order, or [H, W, 1].

    Raises:
        BadImage: as `decode`.
    """
    if not (exact or grey or orientation != 1) and encoded.startswith(_JPEG):
        image = _decode_jpeg_crop(encoded, choose, output, interpolation)
        if image is not None:
            return image
    image = decode(encoded, grey=grey, orientation=orientation)
    return scale(_cut(image, choose(*image.shape[:2])), *output(*image.shape[:2]), interpolation)


def _decode_jpeg_crop(
    encoded: bytes,
    choose: Callable[[int, int], Box],
    output: Callable[[int, int], tuple[int, int]],
    interpolation: str,
) -> np.ndarray | None:
    """The scaled crop, perhaps from a half, a quarter or an eighth; None where this decoder won't
    do and `decode` is to judge."""
    try:
        full_height, full_width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours in ("CMYK", "YCCK") or full_height * full_width > MAX_PIXELS:
            return None
        box, (height, width) = choose(full_height, full_width), output(full_height, full_width)
        factor = _factor(box, height, width) if interpolation in _MAY_DECODE_SMALLER else 1
        smallest = (
            {}
            if factor == 1
            else {"min_height": -(-full_height // factor), "min_width": -(-full_width // factor)}
        )
        image = simplejpeg.decode_jpeg(encoded, fastupsample=True, **smallest)
    except ValueError:
        return None
    if factor > 1:
        edges = [edge / factor for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
        if interpolation == ANTIALIASED:
            return scale_part(image, edges, height, width)
        # The nearest pixels; half up, so that the box keeps at least the size asked for.
        top, left, bottom, right = (math.floor(edge + 0.5) for edge in edges)
        box = top, left, bottom - top, right - left
    return scale(_cut(image, box), height, width, interpolation)


def _factor(box: Box, height: int, width: int) -> int:
    return max(
        factor
        for factor in (1, 2, 4, 8)
        if factor == 1 or (box[2] >= factor * height and box[3] >= factor * width)
    )


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def _check_size(encoded: bytes) -> None:
    """Raises BadImage for a picture too large to decode, judged by its header."""
    height, width = _size(encoded)
    if height * width > MAX_PIXELS:
        raise BadImage(
            f"expected an image of at most {MAX_PIXELS:,} pixels, found {width:,} × {height:,}"
        )


def _size(encoded: bytes) -> tuple[int, int]:
    """Height and width as the header states them; (0, 0) where it can't be read, so that the
    decoder says what is wrong."""
    if encoded.startswith(
        _PNG
    ):  # told apart by hand, because a small PNG decodes faster than Pillow opens it
        width, height = struct.unpack(">II", encoded[16:24]) if len(encoded) >= 24 else (0, 0)
        return height, width
    try:
        if encoded.startswith(_JPEG):
            return simplejpeg.decode_jpeg_header(encoded)[:2]
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size[1], image.size[0]
    except Image.DecompressionBombError as error:
        raise BadImage(f"expected an image of at most {MAX_PIXELS:,} pixels: {error}") from error
    except (ValueError, OSError, SyntaxError, UnidentifiedImageError):
        return 0, 0
