"""From an image file's bytes to uint8 pixels: whole, or no more of a JPEG than a crop needs."""

import functools
import io
import math
import re
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from googlenet_jax.data.bad_images import BadImage
from googlenet_jax.data.resampling import ANTIALIASED, scale, scale_part

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

# These may shrink in two steps; for the others the aliasing of the full picture is part of the
# name.
_MAY_DECODE_SMALLER = ("auto", "area", ANTIALIASED)

MAX_PIXELS = 178_956_970  # Pillow's limit, above which it takes a picture for a decompression bomb
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# How files of the formats that are read begin (`.` is any byte), by Pillow's names. No other
# decoder is let near a file: some of Pillow's start other programs.
_BEGINNINGS = {
    "JPEG": rb"\xff\xd8",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftyp(?:avif|avis|mif1|miaf)",
    "JPEG2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "PPM": rb"P[1-6]\s",
}
_FORMAT = re.compile(
    b"|".join(b"(?P<%s>%s)" % (name.encode(), each) for name, each in _BEGINNINGS.items()), re.S
)
_KNOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM"
_EXIF_ORIENTATION = 0x0112
_TURNED_BY_DECODER = ("TIFF",)  # whatever flag OpenCV is given
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


# What its decoders say of damaged files, BadImage says once, and names the file. (OpenCV 4 has the
# function here, OpenCV 5 there.)
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
_set_log_level(0)


def picture_format(encoded: bytes) -> str | None:
    """The format of an image file, as Pillow names it, by its first bytes; None for another."""
    match = _FORMAT.match(encoded[:16])
    return match.lastgroup if match else None


def exif_orientation(encoded: bytes) -> int:
    """How a picture is to be turned upright, from 1 (as it is) to 8; 1 where the file doesn't
    say."""
    name = picture_format(encoded)
    if name is None or name in _TURNED_BY_DECODER:
        return 1
    try:
        with Image.open(io.BytesIO(encoded), formats=_openers(name)) as image:
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow's, of a damaged file: anything. Its reading is judged elsewhere.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode(
    encoded: bytes, *, grey: bool = False, orientation: int = 1, dtype: str = "uint8"
) -> np.ndarray:
    """Decodes an image file whole.

    Palettes are resolved, CMYK is converted, 16 bits become their upper 8 (of uint8), alpha is dropped, and of
    an animation the first frame counts.

    Args:
        encoded: a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM file, whatever its name
            was.
        grey: whether to return one channel.
        orientation: EXIF's, from 1 to 8, by which the stored picture is turned upright; what the
            file itself says is ignored, but in a TIFF file, where that alone counts.
        dtype: of the result; uint16 and float32 take files of that depth alone.

    Returns:
        [H, W, 3] in RGB order, or [H, W, 1].

    Raises:
        BadImage: if the bytes are no whole image, one of another depth, or of more than MAX_PIXELS.
    """
    name = picture_format(encoded)
    if name is None:
        raise BadImage(
            f"expected an image file ({_KNOWN}), found {len(encoded)} bytes that begin with "
            f"{encoded[:8]!r}"
        )
    _check_size(encoded, name)
    if name == "PNG":
        _check_png(encoded)
    flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB)
    if dtype != "uint8":
        flags |= cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except Exception:  # a decoder's, of a damaged file: anything
        image = None
    if image is None or not image.size:
        raise BadImage(
            f"expected a whole image file (PNG, JPEG, …), found {len(encoded)} bytes that can't be "
            "decoded"
        )
    if image.dtype != dtype:
        raise BadImage(f"expected pixels of {dtype}, found {image.dtype}")
    turn = _TURNS[1 if name in _TURNED_BY_DECODER else orientation]
    return turn(image if image.ndim == 3 else image[..., None])


def decode_crop(
    encoded: bytes | np.ndarray,
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
        encoded, grey, orientation: as in `decode`; or pixels [H, W, C], taken as they are.
        choose: (height, width) of the upright picture -> the crop's box.
        output: (height, width) of the upright picture -> height and width of the result.
        interpolation: one of INTERPOLATIONS.
        exact: whether to decode every picture whole, to the pixels of `decode`.

    Returns:
        uint8 [H, W, 3] in RGB order, or [H, W, 1]; of pixels, their dtype and channels.

    Raises:
        BadImage: as `decode`.
    """
    if isinstance(encoded, np.ndarray):
        cut = _cut(encoded, choose(*encoded.shape[:2]))
        return scale(np.ascontiguousarray(cut), *output(*encoded.shape[:2]), interpolation)
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
    except Exception:  # a decoder's, of a damaged file: anything
        return None
    if colours in ("CMYK", "YCCK") or not 0 < full_height * full_width <= MAX_PIXELS:
        return None
    box, (height, width) = choose(full_height, full_width), output(full_height, full_width)
    factor = _factor(box, height, width) if interpolation in _MAY_DECODE_SMALLER else 1
    smallest = (
        {}
        if factor == 1
        else {"min_height": -(-full_height // factor), "min_width": -(-full_width // factor)}
    )
    try:
        image = simplejpeg.decode_jpeg(encoded, fastupsample=True, **smallest)
    except Exception:
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


def _check_png(encoded: bytes) -> None:
    """Raises BadImage for a PNG with a damaged chunk that counts: libpng would write its own lines
    to standard error."""
    place = len(_PNG)
    while place + 12 <= len(encoded):
        length, kind = struct.unpack(">I4s", encoded[place : place + 8])
        end = place + 8 + length
        if not kind[0] & 0x20:  # a small first letter is a chunk that may be passed over
            found = zlib.crc32(memoryview(encoded)[place + 4 : end])
            if encoded[end : end + 4] != struct.pack(">I", found):
                break
        if kind == b"IEND":
            return
        place = end + 4
    raise BadImage(
        f"expected a whole PNG file, found {len(encoded)} bytes that are cut off or damaged"
    )


def _check_size(encoded: bytes, name: str) -> None:
    """Raises BadImage for a picture too large to decode, judged by its header."""
    height, width = _size(encoded, name)
    if height * width > MAX_PIXELS:
        raise BadImage(
            f"expected an image of at most {MAX_PIXELS:,} pixels, found {width:,} × {height:,}"
        )


def _size(encoded: bytes, name: str) -> tuple[int, int]:
    """Height and width as the header states them; (0, 0) where it can't be read, so that the
    decoder says what is wrong."""
    if name == "PNG":  # by hand, because a small PNG decodes faster than Pillow opens it
        width, height = struct.unpack(">II", encoded[16:24]) if len(encoded) >= 24 else (0, 0)
        return height, width
    try:
        if name == "JPEG":
            return simplejpeg.decode_jpeg_header(encoded)[:2]
        with Image.open(io.BytesIO(encoded), formats=_openers(name)) as image:
            return image.size[1], image.size[0]
    except Image.DecompressionBombError as error:
        raise BadImage(f"expected an image of at most {MAX_PIXELS:,} pixels: {error}") from error
    except Exception:  # Pillow's, of a damaged file: anything
        return 0, 0


def picture_size(encoded: bytes) -> tuple[int, int]:
    """Height and width of an image file's picture in pixels, by its header alone.

    Raises:
        BadImage: where the header tells neither, or of more than MAX_PIXELS.
    """
    name = picture_format(encoded)
    size = (0, 0) if name is None else _size(encoded, name)
    if name is None or 0 in size:
        raise BadImage(f"expected an image file ({_KNOWN}), found one whose size can't be read")
    if size[0] * size[1] > MAX_PIXELS:
        raise BadImage(f"expected at most {MAX_PIXELS:,} pixels, found {size[1]:,} × {size[0]:,}")
    return size


@functools.cache
def _openers(name: str) -> list[str]:
    """The one format that Pillow may try; none where this Pillow doesn't know it."""
    Image.init()
    return [name] if name in Image.OPEN else []
