"""From an image file's bytes to uint8 pixels: whole, or no more of a JPEG than a crop needs; and
the interpolations that scale them."""

import functools
import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence

import cv2
import cykooz_resizer
import numpy as np
import simplejpeg
from PIL import Image

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

# What scales a crop. "auto" averages areas where no side grows and is bilinear otherwise.
# "bilinear", "area", "nearest" and "bicubic" are OpenCV's, and the paper's four (1409.4842, section
# 6); of these only "area" doesn't alias where it shrinks. The last widens its kernel with the
# scale, as Pillow, torchvision and tf.image.resize(antialias=True) do.
_OPENCV = {
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bicubic": cv2.INTER_CUBIC,
}
ANTIALIASED = "bilinear_antialiased"
INTERPOLATIONS = ("auto", *_OPENCV, ANTIALIASED)
PAPER_INTERPOLATIONS = tuple(_OPENCV)

# These may shrink in two steps; for the others the aliasing of the full picture is part of the
# name.
_MAY_DECODE_SMALLER = ("auto", "area", ANTIALIASED)

MAX_PIXELS = 178_956_970  # Pillow's limit, above which it takes a picture for a decompression bomb
MAX_SIDE = 32_767  # pixels of a scaled picture: OpenCV's limit
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


cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # what its decoders say of damaged files; BadImage says it once, and names it


class BadImage(ValueError):
    """Bytes that are no whole image; the message says what was found."""


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


def decode(encoded: bytes, *, grey: bool = False, orientation: int = 1) -> np.ndarray:
    """Decodes an image file whole.

    Palettes are resolved, CMYK is converted, 16 bits become their upper 8, alpha is dropped, and of
    an animation the first frame counts.

    Args:
        encoded: a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM file, whatever its name
            was.
        grey: whether to return one channel.
        orientation: EXIF's, from 1 to 8, by which the stored picture is turned upright; what the
            file itself says is ignored, but in a TIFF file, where that alone counts.

    Returns:
        uint8 [H, W, 3] in RGB order, or [H, W, 1].

    Raises:
        BadImage: if the bytes are no whole image, or one of more than MAX_PIXELS.
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
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except Exception:  # a decoder's, of a damaged file: anything
        image = None
    if image is None or not image.size:
        raise BadImage(
            f"expected a whole image file (PNG, JPEG, …), found {len(encoded)} bytes that can't be "
            "decoded"
        )
    turn = _TURNS[1 if name in _TURNED_BY_DECODER else orientation]
    return turn(image if image.ndim == 3 else image[..., None])


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
            return _antialiased(image, edges, height, width)
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


def scale(image: np.ndarray, height: int, width: int, interpolation: str = "auto") -> np.ndarray:
    """Scales uint8 [H, W, C] to height × width with one of INTERPOLATIONS; an image of that size
    comes back as it is.

    Raises BadImage for a picture so narrow that a side would have more than MAX_SIDE pixels.
    """
    if image.shape[:2] == (height, width):
        return image
    if max(height, width) > MAX_SIDE:
        raise BadImage(
            f"expected a picture less narrow: {image.shape[1]:,} × {image.shape[0]:,} pixels, scaled "
            f"to {width:,} × {height:,}"
        )
    if interpolation == ANTIALIASED:
        return _antialiased(image, (0, 0, *image.shape[:2]), height, width)
    if interpolation == "auto":
        interpolation = (
            "area" if height <= image.shape[0] and width <= image.shape[1] else "bilinear"
        )
    scaled = cv2.resize(image, (width, height), interpolation=_OPENCV[interpolation])
    return scaled if scaled.ndim == 3 else scaled[..., None]


def _antialiased(image: np.ndarray, edges: Sequence[float], height: int, width: int) -> np.ndarray:
    """Scales what lies between the edges (top, left, bottom, right), which may be fractions of
    pixels."""
    top, left, bottom, right = edges
    image = image[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
    pixels = cykooz_resizer.PixelType.U8x3 if image.shape[2] == 3 else cykooz_resizer.PixelType.U8
    source = cykooz_resizer.ImageData(image.shape[1], image.shape[0], pixels, image.tobytes())
    target = cykooz_resizer.ImageData(width, height, pixels)
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
        crop_box=cykooz_resizer.CropBox(
            left - math.floor(left), top - math.floor(top), right - left, bottom - top
        ),
    )
    cykooz_resizer.Resizer().resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, image.shape[2])


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
