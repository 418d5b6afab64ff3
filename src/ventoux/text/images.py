"""Bytes from strangers -> a decoded picture. Four formats, judged by their headers before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ventoux.errors import InvalidImageError

# Longer side over shorter side. The encoder scales the longer side to 1540 pixels: beyond this nothing is left to see.
MAX_ASPECT_RATIO = 200
# A progressive JPEG is decoded scan by scan, ten or so of them. A scan that changes nothing takes 64 bytes, and 32 ms
# for 40 megapixels: a file of 20 MB kept a thread busy for hours.
MAX_JPEG_SCANS = 100

# Python's warning filters belong to the whole process, so only one thread at a time may change them.
_WARNINGS_LOCK = threading.Lock()


def decode_image(data: bytes, *, max_bytes: int, max_pixels: int, param: str | None = None) -> Image.Image:
    """Decodes PNG, JPEG, WebP or GIF (its first frame); the size is read from the header before anything is decoded.

    Args:
        data: The file's bytes. Its content says what it is, not a name or a declared type.
        max_bytes: Largest file.
        max_pixels: Largest width times height.
        param: The request field to blame.

    Returns:
        The picture in mode RGB or RGBA, upright (EXIF orientation applied).

    Raises:
        InvalidImageError: the bytes are no such picture, are cut short, or are too large.
    """
    if not data:
        raise InvalidImageError("The image is empty.", param=param)
    if len(data) > max_bytes:
        raise InvalidImageError(f"The image has {len(data)} bytes; at most {max_bytes} are taken.", param=param)
    reader = _reader(data)
    if reader is None:
        raise InvalidImageError("The image is neither PNG, JPEG, WebP nor GIF.", param=param)
    # Within a scan these two bytes cannot stand: each 0xff there is followed by a zero or a restart mark.
    if reader is JpegImageFile and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise InvalidImageError(f"The image has more than the {MAX_JPEG_SCANS} scans that are decoded.", param=param)
    try:
        with _no_warnings():
            # The format's own class, not Image.open, which follows JPEGs into other formats and warns of sizes.
            image = reader(BytesIO(data))
            width, height = image.size
            if width * height <= max_pixels and max(image.size) <= MAX_ASPECT_RATIO * min(image.size):
                return _to_rgb(_upright(image))
    except Image.DecompressionBombError as e:
        raise InvalidImageError(f"The image has more than {max_pixels} pixels.", param=param) from e
    # Hostile bytes make decoders raise nearly anything: OSError, struct.error, ZeroDivisionError, MemoryError, ...
    except Exception as e:
        raise InvalidImageError("The image is damaged or cut short: it cannot be decoded.", param=param) from e
    if width * height > max_pixels:
        raise InvalidImageError(
            f"The image has {width} x {height} pixels; at most {max_pixels} pixels are taken.", param=param
        )
    raise InvalidImageError(
        f"The image is {width} x {height}: one side may be at most {MAX_ASPECT_RATIO} times the other.", param=param
    )


def decode_data_url(url: str, *, max_bytes: int, max_pixels: int, param: str | None = None) -> Image.Image:
    """Decodes `data:image/...;base64,...`; arguments, result and errors are those of `decode_image`."""
    data = data_url_bytes(url, max_bytes=max_bytes, param=param)
    return decode_image(data, max_bytes=max_bytes, max_pixels=max_pixels, param=param)


def data_url_bytes(url: str, *, max_bytes: int, param: str | None = None) -> bytes:
    """The file in `data:image/...;base64,...`. Raises InvalidImageError if there is none, or it is too large."""
    header, comma, payload = url.partition(",")
    kind = header.lower()
    if not comma or not kind.startswith("data:image/") or not kind.endswith(";base64"):
        raise InvalidImageError("An image's data URL must begin with data:image/...;base64,", param=param)
    if len(payload) // 4 * 3 > max_bytes + 2:
        raise InvalidImageError(f"The image has more than the {max_bytes} bytes that are taken.", param=param)
    try:
        return base64.b64decode(payload.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as e:
        raise InvalidImageError("The image's data URL holds no valid base64.", param=param) from e


def _reader(data: bytes) -> type[ImageFile.ImageFile] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    return None


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns of odd metadata that we do not use: neither the user's nor the operator's concern."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # The pixels are whole; only the note about their orientation is unreadable, and most pictures have none.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB, or to RGBA where something may be transparent."""
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow would clip it at 255 instead of scaling it.
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8), mode="L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("RGB")
