import struct
import zlib
from base64 import b64encode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ventoux.errors import InvalidImageError
from ventoux.text.images import decode_data_url, decode_image

LIMITS = {"max_bytes": 1_000_000, "max_pixels": 1_000_000, "param": "messages[0].content[1].image_url"}
PICTURE = Image.new("RGB", (40, 30), (200, 100, 50))


def encoded(image, kind, **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(data, **limits):
    with pytest.raises(InvalidImageError) as caught:
        decode_image(data, **{**LIMITS, **limits})
    assert caught.value.code == "invalid_image" and caught.value.param == LIMITS["param"]
    # Pillow's own words name its classes and buffers; they help nobody who sent a picture.
    assert not any(word in str(caught.value) for word in ("PIL", "BytesIO", "Truncated File", "cannot identify"))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats(kind):
    image = decode_image(encoded(PICTURE, kind), **LIMITS)
    assert image.mode == "RGB" and image.size == (40, 30)
    assert np.abs(np.array(image.getpixel((20, 15))) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused(kind):
    """Pillow opens some fifty formats, and bombs live in the rare ones."""
    assert "neither PNG" in refused(encoded(PICTURE, kind))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8])
def test_cut_short(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert "damaged" in refused(data[: max(13, int(len(data) * share))])


@pytest.mark.parametrize(
    "data", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"hello", b"\x00" * 100, b"SIMPLE  =", b"\x89PNG"]
)
def test_no_images(data):
    assert "neither PNG" in refused(data)


def test_empty():
    assert "empty" in refused(b"")


def test_signature_alone():
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBP", b"GIF89a"):
        for rest in (b"", b"\x00" * 64, b"\xff" * 64, bytes(range(256))):
            assert "damaged" in refused(start + rest)


def png(width, height, compressed):
    """A grey PNG whose header says whatever we like."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", compressed),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_bomb_is_refused_by_its_header():
    """30,000 x 30,000 pixels fit in some 100 KB and take 3.6 GB decoded; nothing of that may be decoded."""
    assert "30000 x 30000" in refused(png(30_000, 30_000, zlib.compress(b"\0" * 1000)))
    assert "damaged" in refused(png(300, 300, zlib.compress(b"\0" * 1000)))
    assert decode_image(png(9, 9, zlib.compress(b"\0" * 90)), **LIMITS).size == (9, 9)


def test_large_canvas_around_a_small_frame():
    data = bytearray(encoded(PICTURE, "GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    assert "65535 x 65535" in refused(bytes(data))


def test_limits():
    data = encoded(PICTURE, "PNG")
    assert "at most 10 are taken" in refused(data, max_bytes=10)
    assert "40 x 30" in refused(data, max_pixels=1199)
    assert decode_image(data, **{**LIMITS, "max_pixels": 1200}).size == (40, 30)


def test_aspect_ratio():
    assert "times the other" in refused(encoded(Image.new("1", (2010, 10)), "PNG"))
    assert decode_image(encoded(Image.new("1", (2000, 10)), "PNG"), **LIMITS).size == (2000, 10)
    assert decode_image(encoded(Image.new("1", (1, 1)), "PNG"), **LIMITS).size == (1, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_orientation(kind):
    """A phone stores portraits lying down; orientation 6 means: turn clockwise by 90 degrees."""
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(encoded(image, kind, exif=exif), **LIMITS)
    assert upright.size == (30, 40)
    assert upright.getpixel((15, 5))[0] > 200 and upright.getpixel((15, 35))[0] < 50


def test_broken_exif_is_no_reason_to_refuse():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(PICTURE, "JPEG", exif=exif))
    at = data.index(b"II*\x00") if b"II*\x00" in data else data.index(b"MM\x00*")
    data[at + 8 : at + 20] = b"\xff" * 12
    assert decode_image(bytes(data), **LIMITS).size == (40, 30)


def test_grey_of_16_bits_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((30, 40), 0x8000, dtype=np.uint16))
    assert decode_image(encoded(grey, "PNG"), **LIMITS).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("L", "PNG", "RGB"),
        ("LA", "PNG", "RGBA"),
        ("1", "PNG", "RGB"),
        ("P", "PNG", "RGB"),
        ("P", "GIF", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("CMYK", "JPEG", "RGB"),
        ("L", "JPEG", "RGB"),
    ],
)
def test_modes(mode, kind, expected):
    image = decode_image(encoded(PICTURE.convert(mode), kind), **LIMITS)
    assert image.mode == expected and image.size == (40, 30)


def test_transparent_palette():
    image = decode_image(encoded(PICTURE.convert("P"), "PNG", transparency=bytes(256)), **LIMITS)
    assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = decode_image(data, **LIMITS).convert("RGB").getpixel((10, 10))
        assert red > 200 and blue < 50


def test_data_url():
    payload = b64encode(encoded(PICTURE, "PNG")).decode()
    assert decode_data_url(f"data:image/png;base64,{payload}", **LIMITS).size == (40, 30)
    # What the picture is, its bytes say, not its declared type.
    assert decode_data_url(f"DATA:image/jpeg;BASE64,{payload}", **LIMITS).size == (40, 30)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png;base64,iVBORw0KG", "base64"),
        ("data:image/png;base64,äää", "base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64", "data URL"),
        ("data:image/png,abc", "data URL"),
        ("data:text/html;base64,aGVsbG8=", "data URL"),
        ("data:image/png;base64," + "A" * 1_400_000, "bytes"),
        ("data:image/png;base64,aGVsbG8=", "neither PNG"),
    ],
)
def test_bad_data_urls(url, why):
    with pytest.raises(InvalidImageError, match=why) as caught:
        decode_data_url(url, **LIMITS)
    assert caught.value.param == LIMITS["param"] and len(str(caught.value)) < 200
