"""The server's side of image decoding: a few processes, started when images come, each with one image at a time."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import queue
import socket
import subprocess
import sys
import threading

import msgspec
from PIL import Image

from ventoux.engine.client import receive_frame, send_frame
from ventoux.errors import InvalidImageError
from ventoux.server.decode_worker import Decoded, Job, Refused
from ventoux.text.images import decode_image

logger = logging.getLogger(__name__)
# The slowest good image of 50 megapixels takes one.
DECODE_SECONDS = 20.0
# The interpreter and its libraries, and per pixel a few copies of four bytes.
_BASE_BYTES, _BYTES_PER_PIXEL = 2 * 2**30, 40
_BANDS = {"RGB": 3, "RGBA": 4}


class ImageDecoder:
    """Decodes in `num_workers` processes, or in the calling thread if that is 0. Any thread may call `decode`."""

    def __init__(self, num_workers: int):
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._is_local = num_workers == 0
        self._is_closed = False
        for _ in range(num_workers):
            self._idle.put(None)

    def decode(self, data: bytes, *, max_bytes: int, max_pixels: int, param: str) -> Image.Image:
        """As `decode_image`; an image that makes its process end or takes too long is damaged too."""
        if self._is_local:
            return decode_image(data, max_bytes=max_bytes, max_pixels=max_pixels, param=param)
        worker = self._idle.get()
        try:
            if worker is not None and not worker.is_alive:
                worker.close()
                worker = None
            if worker is None:
                worker = _Worker(max_pixels, _BASE_BYTES + _BYTES_PER_PIXEL * max_pixels)
            return worker.decode(Job(data, max_bytes, max_pixels), param)
        finally:
            if worker is not None and not worker.is_alive:
                worker.close()
                worker = None
            self._idle.put(worker)
            if self._is_closed:
                self.close()

    def close(self) -> None:
        """Ends the processes that are idle; the others end after their image."""
        self._is_closed = True
        idle: list[_Worker | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._idle.get_nowait())
        for worker in idle:
            if worker is not None:
                worker.close()
            self._idle.put(None)


class _Worker:
    """One process. After a failure it is not alive any more."""

    def __init__(self, max_pixels: int, memory_bytes: int):
        self._max_pixels = max_pixels
        # 150 MB through a socket take longer than their decoding.
        self._pixels = os.fdopen(os.memfd_create("ventoux-pixels"), "w+b")
        self._empty()
        self._connection, theirs = socket.socketpair()
        with theirs:
            fds = [theirs.fileno(), self._pixels.fileno()]
            command = [sys.executable, "-m", "ventoux.server.decode_worker", *map(str, fds), str(memory_bytes)]
            # A session of its own: Ctrl-C is for the server, which drains.
            self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, start_new_session=True)

    def _empty(self) -> None:
        """The memory's pages are given back; new ones come as they are written."""
        self._pixels.truncate(0)
        self._pixels.truncate(max(_BANDS.values()) * self._max_pixels)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, job: Job, param: str) -> Image.Image:
        """Raises InvalidImageError, also when the process ended over it."""
        timer = threading.Timer(DECODE_SECONDS, self._process.kill)
        timer.start()
        try:
            send_frame(self._connection, msgspec.msgpack.encode(job))
            answer = self._receive()
            image = None if isinstance(answer, Refused) else self._image(answer)
        except (OSError, EOFError, KeyError, ValueError, MemoryError, msgspec.MsgspecError) as e:
            self._process.kill()
            status = self._process.wait()
            logger.error("an image decoder ended with status %d over an image of %d bytes", status, len(job.data))
            raise InvalidImageError("The image is damaged: it cannot be decoded.", param=param) from e
        finally:
            timer.cancel()
        if isinstance(answer, Refused):
            raise InvalidImageError(answer.message, param=param)
        assert image is not None
        return image

    def _receive(self) -> Decoded | Refused:
        frame = receive_frame(self._connection)
        if frame is None:
            raise EOFError
        return msgspec.msgpack.decode(frame, type=Decoded | Refused)

    def _image(self, decoded: Decoded) -> Image.Image:
        """Raises KeyError or ValueError for a picture that cannot be."""
        if not 0 < decoded.width * decoded.height <= self._max_pixels:
            raise ValueError
        size = (decoded.width, decoded.height)
        with mmap.mmap(self._pixels.fileno(), size[0] * size[1] * _BANDS[decoded.mode], prot=mmap.PROT_READ) as shared:
            image = Image.frombytes(decoded.mode, size, shared)  # type: ignore[arg-type]
        self._empty()
        return image

    def close(self) -> None:
        # It reads end-of-file; it has nothing to finish.
        self._connection.close()
        self._pixels.close()
        self._process.kill()
        self._process.wait()
