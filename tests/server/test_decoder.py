"""Image decoding in processes of its own: the same pictures, and what a decoder that fails takes with it."""

from __future__ import annotations

import base64
import io
import logging
import os
import signal
import threading
import time

import pytest
from PIL import Image

from tests.server.conftest import assert_error
from tests.server.test_media import PARAM, png
from tests.server.test_security import scans
from ventoux.config import ServerConfig
from ventoux.errors import InvalidImageError
from ventoux.server import decoder as decoder_module
from ventoux.server.decode_worker import Job
from ventoux.server.decoder import ImageDecoder, _Worker
from ventoux.text.images import decode_image

LIMITS = {"max_bytes": 10**6, "max_pixels": 10**6}


@pytest.fixture
def decoder():
    decoder = ImageDecoder(1)
    yield decoder
    decoder.close()


def picture(mode, kind="PNG") -> bytes:
    out = io.BytesIO()
    Image.effect_noise((61, 47), 90).convert(mode).save(out, kind)
    return out.getvalue()


def pid(decoder) -> int:
    worker = decoder._idle.queue[-1]
    assert worker is not None
    return worker._process.pid


def test_pictures_are_those_of_this_process_and_the_process_stays(decoder):
    """Another mode or another row order would be another picture to the model, and no error."""
    pids = set()
    for mode, kind in (("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("RGB", "WEBP")):
        data = picture(mode, kind)
        here, there = decode_image(data, **LIMITS), decoder.decode(data, param=PARAM, **LIMITS)
        assert (here.mode, here.size, here.tobytes()) == (there.mode, there.size, there.tobytes())
        pids.add(pid(decoder))
    for bad in (b"nothing", png((3000, 3000)), scans(1000)):
        with pytest.raises(InvalidImageError) as there:
            decoder.decode(bad, param=PARAM, **LIMITS)
        with pytest.raises(InvalidImageError) as here:
            decode_image(bad, param=PARAM, **LIMITS)
        assert str(there.value) == str(here.value) and there.value.param == PARAM
    assert pids == {pid(decoder)} != {os.getpid()}


def test_a_decoder_that_dies_costs_one_image(decoder, caplog):
    decoder.decode(png(), param=PARAM, **LIMITS)
    worker = decoder._idle.queue[-1]
    # Stopped, it takes the image and answers nothing; then it dies as a crash would make it.
    os.kill(worker._process.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (worker._process.pid, signal.SIGKILL)).start()
    with pytest.raises(InvalidImageError, match="damaged"):
        decoder.decode(png(), param=PARAM, **LIMITS)
    assert "ended with status -9" in caplog.text
    assert decoder.decode(png(), param=PARAM, **LIMITS).size == (30, 20)
    assert worker._process.returncode == -9


def test_one_that_was_killed_while_idle_costs_nothing(decoder):
    decoder.decode(png(), param=PARAM, **LIMITS)
    os.kill(pid(decoder), signal.SIGKILL)
    decoder._idle.queue[-1]._process.wait()
    assert decoder.decode(png(), param=PARAM, **LIMITS).size == (30, 20)


def test_one_that_takes_too_long_is_killed(decoder, monkeypatch):
    decoder.decode(png(), param=PARAM, **LIMITS)
    monkeypatch.setattr(decoder_module, "DECODE_SECONDS", 0.2)
    os.kill(pid(decoder), signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(InvalidImageError):
        decoder.decode(png(), param=PARAM, **LIMITS)
    assert time.monotonic() - start < 5


def test_memory_is_bounded():
    """A file that fools the look at its header must not take the server's memory."""
    worker = _Worker(10**8, 800 * 2**20)
    out = io.BytesIO()
    Image.new("L", (7000, 7000)).save(out, "PNG")
    try:
        assert worker.decode(Job(png(), 10**6, 10**6), PARAM).size == (30, 20)
        with pytest.raises(InvalidImageError):
            worker.decode(Job(out.getvalue(), 10**6, 10**8), PARAM)
    finally:
        worker.close()


def test_a_server_decodes_elsewhere_and_leaves_no_process(make_server):
    server = make_server(image_workers=ServerConfig().image_workers)
    server.says("ok")
    decoder = server.app.state.service.media.decoder
    try:
        for data, status in ((png(), 200), (b"nothing", 400)):
            url = "data:image/png;base64," + base64.b64encode(data).decode()
            part = {"type": "image_url", "image_url": {"url": url}}
            response = server.chat([{"role": "user", "content": [part]}])
            assert response.status_code == status
        assert_error(response, 400, param="messages[0].content[0].image_url", code="invalid_image")
        worker = next(w for w in decoder._idle.queue if w is not None)
    finally:
        decoder.close()
    assert worker._process.returncode is not None


def test_the_process_ends_with_its_server():
    worker = _Worker(10**6, 2**32)
    worker._connection.close()
    assert worker._process.wait(20) == 0
    worker.close()


def test_a_decoder_says_nothing_of_pictures_in_the_log(decoder, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidImageError):
        decoder.decode(b"GIF87a secret", param=PARAM, **LIMITS)
    assert "secret" not in caplog.text


def test_one_that_is_busy_when_the_server_ends_ends_after_its_image(monkeypatch):
    """It was put back among the idle ones, where nobody looked any more."""
    decoder, workers, begun, go_on = ImageDecoder(1), [], threading.Event(), threading.Event()
    decode = _Worker.decode

    def slowly(self, job, param):
        workers.append(self)
        begun.set()
        go_on.wait()
        return decode(self, job, param)

    monkeypatch.setattr(_Worker, "decode", slowly)
    data = picture("RGB")
    thread = threading.Thread(target=lambda: decoder.decode(data, max_bytes=2**20, max_pixels=10**6, param=PARAM))
    thread.start()
    begun.wait()
    decoder.close()
    go_on.set()
    thread.join()
    assert not workers[0].is_alive
