"""The figures of decision 002: round trips of one output between two processes. Run it from the repository's root."""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable

import msgspec

from ventoux.engine.client import receive_frame, send_frame
from ventoux.engine.request import EngineOutput, TokenOutput

ROUNDS = 3000
MESSAGE = EngineOutput(request_id="chatcmpl-" + "0" * 32, tokens=[TokenOutput(1234)])
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(EngineOutput).decode


def echo_frames(sock: socket.socket) -> None:
    while (frame := receive_frame(sock)) is not None:
        send_frame(sock, encode(decode(frame)))


def echo_queue(inbox, outbox) -> None:
    while True:
        outbox.put(inbox.get())


def report(name: str, trip: Callable[[], object]) -> None:
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        trip()
        seconds.append(time.perf_counter() - start)
    tail = sorted(seconds)[ROUNDS * 99 // 100]
    print(f"{name:<40} median {statistics.median(seconds) * 1e6:.0f} us, 99 % under {tail * 1e6:.0f} us")


def main() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = socket.socketpair()
    context.Process(target=echo_frames, args=(theirs,), daemon=True).start()

    def by_socket() -> object:
        send_frame(ours, encode(MESSAGE))
        frame = receive_frame(ours)
        return frame and decode(frame)

    report("socket pair, msgpack", by_socket)
    inbox, outbox = context.Queue(), context.Queue()
    context.Process(target=echo_queue, args=(inbox, outbox), daemon=True).start()

    def by_queue() -> object:
        inbox.put(MESSAGE)
        return outbox.get()

    report("multiprocessing.Queue, pickle", by_queue)


if __name__ == "__main__":
    main()
