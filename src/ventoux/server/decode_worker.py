"""A process that decodes images and nothing else: `python -m ventoux.server.decode_worker FD PIXELS_FD MEMORY`.

Decoders are native code that reads bytes from strangers. Here a crash, a leak or an endless loop costs one image: the
process has a limit on memory, writes no files, and is killed by the server when it takes too long (server/decoder.py).
"""

from __future__ import annotations

import mmap
import resource
import socket
import sys

import msgspec

from ventoux.engine.client import receive_frame, send_frame
from ventoux.errors import InvalidImageError
from ventoux.text.images import decode_image


class Job(msgspec.Struct):
    data: bytes
    max_bytes: int
    max_pixels: int


class Decoded(msgspec.Struct, tag=True):
    """Its pixels lie in the shared memory, row by row."""

    mode: str
    width: int
    height: int


class Refused(msgspec.Struct, tag=True):
    message: str


def main(fd: int, pixels_fd: int, memory_bytes: int) -> None:
    """Decodes job after job until the server closes the socket. Pixels go into the memory behind `pixels_fd`."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    with socket.socket(fileno=fd) as connection, mmap.mmap(pixels_fd, 0) as shared:
        while (frame := receive_frame(connection)) is not None:
            job = msgspec.msgpack.decode(frame, type=Job)
            try:
                image = decode_image(job.data, max_bytes=job.max_bytes, max_pixels=job.max_pixels)
            except InvalidImageError as e:
                send_frame(connection, msgspec.msgpack.encode(Refused(str(e))))
                continue
            pixels = image.tobytes()
            shared[: len(pixels)] = pixels
            send_frame(connection, msgspec.msgpack.encode(Decoded(image.mode, image.width, image.height)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
