"""What each kind of picture looks like as RGB of 8 bits, whoever reads it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, features

from gift_shared import decoding
from gift_shared.decoding import FILE_FORMATS, FILE_SUFFIXES, decode, decode_rgb, is_turned
from gift_shared.errors import DataError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def read(content):
    decoded = decode(content, "own", formats=FILE_FORMATS)
    assert decoded.image.mode == "RGB"
    return np.asarray(decoded.image), decoded.done


def grey(pixels):
    """The one channel of a picture whose three are equal."""
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8_exactly(form):
    pixels, done = read(encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), form))
    assert np.array_equal(grey(pixels), RAMP)
    assert done == (decoding.SCALED_16_BITS,)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(np.uint16) * 257),
        Image.fromarray(RAMP.astype(np.float32) / 255),
    ],
    ids=["8 bits", "16 bits", "floats"],
)
def test_a_tiff_whose_zero_is_white_is_not_read_as_its_negative(image):
    content = encoded(image, "TIFF")
    black_is_zero = struct.pack("<HHII", 0x0106, 3, 1, 1)  # tag, kind SHORT, one value
    assert content.count(black_is_zero) == 1
    pixels, _ = read(content.replace(black_is_zero, struct.pack("<HHII", 0x0106, 3, 1, 0)))
    assert np.array_equal(grey(pixels), 255 - RAMP)


def test_every_value_of_16_bits_is_rounded_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels, _ = read(encoded(Image.fromarray(values), "PNG"))
    assert np.array_equal(grey(pixels), np.round(values / 257).astype(np.uint8))


def test_16_bits_of_a_pgm_are_read_by_its_own_greatest_value():
    content = b"P5 16 16 4095\n" + (RAMP.astype(np.uint32) * 4095 // 255).astype(">u2").tobytes()
    pixels, done = read(content)
    assert np.abs(grey(pixels).astype(int) - RAMP).max() <= 1
    assert done == (decoding.SCALED_16_BITS,)


def test_dark_pgm_of_16_bits_is_not_taken_for_8():
    pixels, _ = read(b"P5 2 1 65535\n" + np.array([0, 200], dtype=">u2").tobytes())
    assert grey(pixels).tolist() == [[0, 1]]


def test_12_bits_in_a_file_of_16_are_told():
    pixels, done = read(encoded(Image.fromarray(RAMP.astype(np.uint16) * 16), "PNG"))
    assert grey(pixels).max() == 16
    assert done == (decoding.SCALED_16_BITS, decoding.FEW_BITS)


@pytest.mark.parametrize(
    ("values", "expected", "done"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [[0, 128, 255]], (decoding.SCALED_UNIT,)),
        (np.array([[0.0, 100.4, 255.0]], dtype=np.float32), [[0, 100, 255]], ()),
        (np.array([[-1.0, 0.0, 1.0]], dtype=np.float32), [[0, 128, 255]], (decoding.SCALED_RANGE,)),
        (np.array([[200.0, 300.0, 1200.0]], dtype=np.float32), [[0, 26, 255]], (decoding.SCALED_RANGE,)),
        (np.array([[0, 17, 255]], dtype=np.int32), [[0, 17, 255]], ()),
        (np.array([[-2000, 0, 2000]], dtype=np.int32), [[0, 128, 255]], (decoding.SCALED_RANGE,)),
        (np.array([[0, 1, 1]], dtype=np.int32), [[0, 1, 1]], ()),
        (np.array([[7000, 7000]], dtype=np.int32), [[0, 0]], (decoding.SCALED_RANGE,)),
    ],
)
def test_floats_and_long_integers_are_scaled_only_where_they_do_not_fit(values, expected, done):
    pixels, found = read(encoded(Image.fromarray(values), "TIFF"))
    assert grey(pixels).tolist() == expected
    assert found == done


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_told(value):
    content = encoded(Image.fromarray(np.array([[0, value]], dtype=np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"own does not decode as an image .*: it holds values that are no numbers"):
        read(content)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_a_shape_drawn_in_the_alpha_channel_alone_is_seen(form):
    drawn = np.zeros((16, 16, 4), dtype=np.uint8)  # all black, and transparent but for a square
    drawn[4:8, 4:8, 3] = 255
    pixels, done = read(encoded(Image.fromarray(drawn), form, **({"lossless": True, "exact": True} if form == "WEBP" else {})))
    expected = np.full((16, 16), 255, dtype=np.uint8)
    expected[4:8, 4:8] = 0
    assert np.array_equal(grey(pixels), expected)
    assert done == (decoding.ON_WHITE,)


def test_half_transparent_colours_are_mixed_with_white():
    image = Image.new("RGBA", (1, 1), (100, 0, 200, 128))
    pixels, _ = read(encoded(image, "PNG"))
    assert np.abs(pixels[0, 0].astype(int) - np.array([100 * 128 + 255 * 127, 255 * 127, 200 * 128 + 255 * 127]) / 255).max() <= 1


def test_grey_with_alpha_lies_on_white():
    pixels, done = read(encoded(Image.fromarray(np.dstack([RAMP, np.where(RAMP < 128, 0, 255).astype(np.uint8)]), "LA"), "PNG"))
    assert np.array_equal(grey(pixels), np.where(RAMP < 128, 255, RAMP))
    assert done == (decoding.ON_WHITE,)


def test_alpha_that_hides_nothing_changes_nothing():
    image = Image.fromarray(np.dstack([NOISE, np.full(NOISE.shape[:2], 255, dtype=np.uint8)]))
    pixels, done = read(encoded(image, "PNG"))
    assert np.array_equal(pixels, NOISE)
    assert done == ()


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(form):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 200, 30, 30])
    image.putpixel((1, 1), 1)
    pixels, done = read(encoded(image, form, transparency=0))
    assert pixels[1, 1].tolist() == [200, 30, 30]
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert done == (decoding.ON_WHITE,)


def test_the_transparent_value_of_grey_and_of_colour_is_white():
    for image, hidden in (
        (Image.fromarray(RAMP), 0),
        (Image.fromarray(RAMP.astype(np.uint16) * 257), 0),
        (Image.fromarray(np.dstack([RAMP] * 3)), (0, 0, 0)),
    ):
        pixels, done = read(encoded(image, "PNG", transparency=hidden))
        assert np.array_equal(grey(pixels), np.where(RAMP == 0, 255, RAMP))
        assert decoding.ON_WHITE in done


@pytest.mark.parametrize(("mode", "form"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("RGB", "JPEG"), ("RGB", "PNG")])
def test_what_has_8_bits_and_no_transparency_is_what_pillow_makes_of_it(mode, form):
    content = encoded(Image.fromarray(NOISE).convert(mode), form)
    pixels, done = read(content)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert done == ()


def test_the_orientation_of_exif_is_not_applied_and_can_be_told():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright, turned = encoded(Image.fromarray(NOISE), "JPEG"), encoded(Image.fromarray(NOISE), "JPEG", exif=exif)
    assert np.array_equal(read(turned)[0], read(upright)[0])
    assert is_turned(turned)
    assert not is_turned(upright)
    assert not is_turned(b"no image")


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    pixels, _ = read(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_suffixes_are_those_pillow_knows_for_the_formats_we_read():
    known = {suffix: form for suffix, form in Image.registered_extensions().items() if form in FILE_FORMATS or form == "MPO"}
    assert set(FILE_SUFFIXES) == known.keys()
    assert ("AVIF" in FILE_FORMATS) == features.check("avif")


def test_what_is_no_image_is_told_with_the_formats_that_are_read():
    with pytest.raises(DataError, match=r"x\.png does not decode as an image \(JPEG, PNG, WEBP\): .*Replace the file"):
        decode_rgb(b"\x00\x00\x00\x18ftypheic", "x.png")
