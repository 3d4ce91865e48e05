import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from googlenet_jax.data.decoding import (
    MAX_PIXELS,
    BadImage,
    decode,
    decode_crop,
    exif_orientation,
    picture_size,
)
from googlenet_jax.data.resampling import INTERPOLATIONS, scale
from tests.data.photographs import difference, encode, opened, photograph

BOX = (31, 57, 290, 411)  # top, left, height, width of a crop of the photographs


def crop(encoded, box=BOX, size=(224, 224), interpolation="auto", exact=False, **options):
    return decode_crop(
        encoded,
        lambda height, width: box,
        lambda height, width: size,
        interpolation,
        exact=exact,
        **options,
    )


def cut(image, box=BOX):
    top, left, height, width = box
    return image[top : top + height, left : left + width]


# ----------------------------------------------------------------------------------- interpolations


def weights(out, size, kernel, support, widens):
    """[out, size]: what each pixel of a line gives to each pixel of the scaled line, pixel centres
    at a half, edges repeated."""
    step = size / out
    stretch = max(step, 1.0) if widens else 1.0
    matrix = np.zeros((out, size))
    for i in range(out):
        centre = (i + 0.5) * step - 0.5
        places = np.arange(
            np.floor(centre - support * stretch), np.ceil(centre + support * stretch) + 1
        ).astype(int)
        given = kernel((places - centre) / stretch)
        inside = (places >= 0) & (places < size)
        if widens:  # the kernel is cut at the edge and divided by its sum
            places, given = places[inside], given[inside]
        np.add.at(matrix[i], places.clip(0, size - 1), given)
    return matrix / matrix.sum(1, keepdims=True)


def coverage(out, size):
    """The share of each pixel that lies in each output pixel's interval."""
    edges = np.arange(out + 1) * size / out
    lower, upper = (
        np.maximum(edges[:-1, None], np.arange(size)),
        np.minimum(edges[1:, None], np.arange(size) + 1),
    )
    return np.maximum(upper - lower, 0) / (size / out)


def triangle(x):
    return np.maximum(1 - np.abs(x), 0)


def keys(a):
    def kernel(x):
        x = np.abs(x)
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    return kernel


REFERENCES = {
    "area": coverage,
    "bilinear": lambda out, size: weights(out, size, triangle, 1, widens=False),
    "bicubic": lambda out, size: weights(out, size, keys(-0.75), 2, widens=False),
    "bilinear_antialiased": lambda out, size: weights(out, size, triangle, 1, widens=True),
}


@pytest.mark.parametrize("interpolation", REFERENCES)
@pytest.mark.parametrize("height, width", [(224, 224), (97, 300), (290, 411)])
def test_each_interpolation_is_its_formula(interpolation, height, width):
    image = cut(photograph())
    rows, columns = (
        REFERENCES[interpolation](out, size)
        for out, size in zip((height, width), image.shape, strict=False)
    )
    expected = np.einsum("hy,yxc,wx->hwc", rows, image, columns, optimize=True).clip(0, 255)
    # OpenCV's weights have 11 bits, and two passes round once each.
    assert np.abs(scale(image, height, width, interpolation) - expected).max() <= 1.5


def test_nearest_takes_the_pixel_whose_centre_is_nearest():
    numbers = np.arange(411, dtype=np.uint16)
    image = (
        np.stack([numbers & 255, numbers >> 8, 0 * numbers], -1)
        .astype(np.uint8)[None]
        .repeat(290, 0)
    )
    for width in (224, 300, 97, 500):
        taken = scale(image, 100, width, "nearest").astype(int)[0]
        wanted = (np.arange(width) + 0.5) * 411 / width - 0.5
        assert np.abs(taken[:, 0] + 256 * taken[:, 1] - wanted).max() <= 0.51


@pytest.mark.parametrize("size", [(97, 150), (224, 224), (600, 700)])
def test_the_antialiased_one_is_pillow_s(size):
    expected = np.asarray(Image.fromarray(cut(photograph())).resize(size[::-1], Image.BILINEAR))
    assert difference(scale(cut(photograph()), *size, "bilinear_antialiased"), expected).max() <= 1


def test_every_interpolation_keeps_one_channel():
    grey = photograph()[..., :1]
    for interpolation in INTERPOLATIONS:
        assert scale(grey, 100, 90, interpolation).shape == (100, 90, 1)


# ---------------------------------------------------------------------- no more than the crop needs


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_exact_crop_is_cut_from_the_whole_picture(interpolation):
    jpeg = encode(photograph(), quality=92)
    np.testing.assert_array_equal(
        crop(jpeg, interpolation=interpolation, exact=True),
        scale(cut(opened(jpeg)), 224, 224, interpolation),
    )


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [224, 100, 50, 36])
def test_a_fast_crop_of_a_photograph_is_near_the_exact_one(name, size):
    jpeg = encode(photograph(name), quality=92)
    for interpolation in ("auto", "bilinear_antialiased"):
        fast, exact = (
            crop(jpeg, (32, 56, 288, 416), (size, size), interpolation, exact=exact)
            for exact in (False, True)
        )
        assert 0 < difference(fast, exact).mean() < 2.5


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("top, left", [(0, 0), (101, 53), (160, 240)])
def test_a_fast_crop_lies_where_the_exact_one_does(factor, top, left):
    rows, columns = np.mgrid[:480, :720]
    ramp = np.stack([rows / 2, columns / 3, 128 + 0 * rows], -1).astype(np.uint8)
    box = (top, left, 40 * factor, 44 * factor) if factor < 8 else (top, left, 320, 352)
    fast, exact = (
        crop(encode(ramp, quality=98), box, (40, 44), exact=exact) for exact in (False, True)
    )
    # A pixel of the picture decoded at 1/f is f pixels; the edges are off by half of one at most:
    # f/4 in the first channel.
    assert abs(np.mean(fast.astype(float) - exact, (0, 1))).max() <= factor / 4 + 0.5


def test_what_aliases_by_its_name_is_never_decoded_smaller():
    stripes = np.repeat(
        np.repeat(np.array([[0, 255]], np.uint8), 300, 1).reshape(1, 600), 600, 0
    )  # halves; a smaller decode blurs the edge
    jpeg = encode(Image.fromarray(np.dstack([stripes] * 3)), quality=100)
    for interpolation in ("nearest", "bilinear", "bicubic"):
        fast, exact = (
            crop(jpeg, (0, 0, 600, 600), (75, 75), interpolation, exact=exact)
            for exact in (False, True)
        )
        assert difference(fast, exact).max() <= 1


# --------------------------------------------------------------------------------------- odd images

RGB = photograph()[:120, :160]


def deep() -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 2**16, (40, 50, 3), np.uint16)
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes(), (pixels >> 8).astype(np.uint8)


def animation(form, **options):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return encode(
        frames[0], form, save_all=True, append_images=frames[1:], duration=50, loop=0, **options
    )


def readable() -> dict[str, tuple[bytes, np.ndarray]]:
    """A file and what is right, by kind. For what only loses in encoding, Pillow's decoder says
    what is right."""
    picture = Image.fromarray(RGB)
    kinds = {
        "CMYK JPEG": encode(picture.convert("CMYK")),
        "greyscale JPEG": encode(picture.convert("L")),
        "progressive JPEG": encode(picture, progressive=True),
        "JPEG without subsampling": encode(picture, subsampling=0),
        "JPEG with bytes behind its end": encode(picture) + b"\0" * 100,
        "palette PNG": encode(picture.quantize(64), "PNG"),
        "PNG named .jpg": encode(picture, "PNG"),
        "PNG with alpha": encode(
            Image.merge("RGBA", (*picture.split(), Image.new("L", picture.size, 99))), "PNG"
        ),
        "animated GIF": animation("GIF"),
        "animated WebP": animation("WEBP", lossless=True),
        "animated PNG": animation("PNG"),
    }
    return {kind: (encoded, opened(encoded)) for kind, encoded in kinds.items()} | {
        "16-bit PNG": deep()
    }


@pytest.mark.parametrize("kind", readable())
def test_an_odd_image_is_read_right(kind):
    encoded, expected = readable()[kind]
    assert difference(decode(encoded), expected).max() <= 1
    height, width = expected.shape[:2]
    for exact, bound in ((True, 1), (False, 3)):
        image = crop(encoded, (0, 0, height, width), (height, width), exact=exact)
        assert difference(image, expected).mean() <= bound
    assert crop(encoded, (0, 0, height, width), (height, width), grey=True).shape == (
        height,
        width,
        1,
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_comes_out_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(RGB, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    np.testing.assert_array_equal(decode(encoded, orientation=orientation), expected)
    box = (10, 20, 60, 70)
    np.testing.assert_array_equal(
        crop(encoded, box, (60, 70), exact=True, orientation=orientation), cut(expected, box)
    )
    assert (
        difference(crop(encoded, box, (60, 70), orientation=orientation), cut(expected, box)).mean()
        < 1.5
    )
    np.testing.assert_array_equal(
        decode(encoded), opened(encoded)
    )  # what the file itself says is ignored


def huge_png(side: int) -> bytes:
    """A picture of one byte's bits, whose header says that it is this large."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def unreadable() -> dict[str, bytes]:
    png, jpeg = encode(RGB, "PNG"), encode(RGB)
    size = jpeg.index(b"\xff\xc0") + 5
    return {
        "zero bytes": b"",
        "text": b"not an image",
        "JPEG's first bytes": jpeg[:2],
        "PNG's first bytes": png[:9],
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "truncated PNG": png[:-20],
        "huge PNG": huge_png(40_000),
        "huge JPEG": jpeg[:size] + struct.pack(">HH", 65_000, 65_000) + jpeg[size + 4 :],
    }


@pytest.mark.parametrize("kind", unreadable())
@pytest.mark.parametrize("exact", [True, False])
def test_what_is_no_whole_image_is_said(kind, exact):
    with pytest.raises(
        BadImage,
        match=r"at most 178,956,970 pixels" if "huge" in kind else r"expected .* found .* bytes",
    ) as error:
        crop(unreadable()[kind], exact=exact)
    assert "\n" not in str(error.value)


def test_a_large_picture_below_the_limit_is_read():
    large = np.zeros((3_000, 16_000, 3), np.uint8)
    large[:1_500, :8_000] = 200
    assert MAX_PIXELS // 4 < large.size // 3 < MAX_PIXELS
    image = crop(encode(large), (0, 0, 3_000, 16_000), (8, 8))
    np.testing.assert_allclose(image[..., 0], np.kron([[200, 0], [0, 0]], np.ones((4, 4))), atol=3)


# ------------------------------------------------------------------ what is no picture, and what is

BAD_PICTURES = sorted((Path(__file__).parent / "bad_pictures").glob("*.jpg"))
SMALL = photograph()[100:340:8, 100:420:8]


@pytest.mark.parametrize("file", BAD_PICTURES, ids=lambda file: file.name)
def test_whatever_a_decoder_raises_is_a_bad_image(file):
    encoded = file.read_bytes()
    for call in (decode, lambda encoded: crop(encoded, size=(8, 8))):
        with pytest.raises(BadImage, match=r"expected .* found"):
            call(encoded)
    with contextlib.suppress(BadImage):  # the header of one is whole
        picture_size(encoded)
    assert exif_orientation(encoded) == 1


@pytest.mark.parametrize("raised", [RuntimeError, AttributeError, NotImplementedError, KeyError])
def test_what_the_libraries_raise_of_a_damaged_file_is_a_bad_image(monkeypatch, raised):
    def fail(*args, **kwargs):
        raise raised("of a decoder")

    webp, jpeg = encode(SMALL, "WEBP"), encode(SMALL)
    for name in ("Image.open", "cv2.imdecode", "simplejpeg.decode_jpeg_header"):
        monkeypatch.setattr(f"googlenet_jax.data.decoding.{name}", fail)
    for encoded in (webp, jpeg):
        with pytest.raises(BadImage):
            decode(encoded)
        with pytest.raises(BadImage):
            crop(encoded)


def test_only_the_formats_of_pictures_reach_a_decoder(monkeypatch):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    reached = []
    for name in ("Image.open", "cv2.imdecode"):
        monkeypatch.setattr(
            f"googlenet_jax.data.decoding.{name}", lambda *args, **kwargs: reached.append(args)
        )
    for encoded in (eps, b"", b"SIMPLE  =", encode(SMALL, "DDS"), encode(SMALL, "TGA")):
        for call in (decode, picture_size, lambda encoded: crop(encoded)):
            with pytest.raises(BadImage):
                call(encoded)
    assert not reached


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "JPEG"])
def test_every_format_is_read_whole_and_its_size_by_the_header(form):
    encoded = encode(SMALL, form)
    assert picture_size(encoded) == SMALL.shape[:2]
    assert difference(decode(encoded), opened(encoded)).mean() < 2
    with pytest.raises(BadImage):
        decode(encoded[: len(encoded) * 9 // 10])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_upright_once(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(SMALL, form, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))
    for orientation in (exif_orientation(encoded), 6):  # sets made before hold 6 for a TIFF too
        assert difference(decode(encoded, orientation=orientation), upright).mean() < 2


def test_a_png_with_a_wrong_check_sum_is_refused_without_a_line_of_libpng_s(capfd):
    encoded = bytearray(encode(SMALL, "PNG"))
    encoded[len(encoded) // 2] ^= 1
    with pytest.raises(BadImage, match="damaged"):
        decode(bytes(encoded))
    jpeg, tiff = encode(SMALL, "JPEG"), encode(SMALL, "TIFF")
    for cut_off in (jpeg[: len(jpeg) // 2], tiff[: len(tiff) // 2]):
        with pytest.raises(BadImage):
            decode(cut_off)
    assert capfd.readouterr() == ("", "")


def test_a_picture_too_narrow_to_scale_is_a_bad_image():
    encoded = encode(np.zeros((1, 3000, 3), np.uint8), "PNG")
    with pytest.raises(BadImage, match="3,000 × 1 pixels"):
        decode_crop(
            encoded, lambda h, w: (0, 0, h, w), lambda h, w: (256, 256 * w), "auto", exact=True
        )
