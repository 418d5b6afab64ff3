"""The model card's OpenAI-client programs, run as they stand: `pytest tests/e2e/test_card.py --card FILE`.

The card is not part of this repository, so the programs are cut out of the file that is named. They ask port 8000, take
the model's id for a Hub repository and read SYSTEM_PROMPT.txt from it; here the Hub's cache holds that file. Their
pictures lie on other people's servers: the addresses, and nothing else, are pointed at a picture on the loopback.
"""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.e2e.conftest import REPOSITORY_ID, serving
from ventoux.checkpoint.hub import bundled_model

FLAGS = (
    "--max-model-len 262144 --tensor-parallel-size 2 --attention-backend FLASH_ATTN_MLA --tool-call-parser mistral"
    " --enable-auto-tool-choice --reasoning-parser mistral --max_num_batched_tokens 16384 --max_num_seqs 128"
    " --gpu_memory_utilization 0.8"
)


def programs(card: str) -> list[str]:
    """Every stretch from a `from datetime import` line to a closing `print(...)` that makes an OpenAI client."""
    found = re.findall(r"(?:^import json\n)?^from datetime import.*?^print\([^\n]*?\)(?=\D|$)", card, re.M | re.S)
    return [code for code in found if "OpenAI(" in code]


@pytest.fixture(scope="module")
def cards_programs(request) -> list[str]:
    path = request.config.getoption("--card")
    if not path:
        pytest.skip("no --card FILE given")
    return programs(Path(path).read_text())


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory) -> Path:
    """A Hub cache in which the repository has its SYSTEM_PROMPT.txt."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / ("models--" + REPOSITORY_ID.replace("/", "--"))
    revision = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "SYSTEM_PROMPT.txt").write_text((bundled_model() / "SYSTEM_PROMPT.txt").read_text())
    return home


@pytest.fixture(scope="module")
def pictures():
    image = Image.new("RGB", (168, 56), "white")
    draw = ImageDraw.Draw(image)
    for y, text in ((4, "12 + 34"), (32, "7 * 8")):
        draw.text((6, y), text, fill="black", font=ImageFont.load_default(size=18))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "image/png")
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *_):
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def test_the_cards_programs_run_to_their_end(cards_programs, hub_cache, pictures, tmp_path):
    with socket.socket() as sock:
        if sock.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000, which the programs ask, is taken")
    flags = [*FLAGS.split(), "--served-model-name", REPOSITORY_ID, "--allowed-media-domains", "127.0.0.1"]
    assert len(cards_programs) == 3
    with serving(*flags, port=8000, log=tmp_path / "log"):
        for number, code in enumerate(cards_programs):
            code = re.sub(r'(image_url = ")https://[^/"]+', rf"\g<1>{pictures}", code)
            script = tmp_path / f"program_{number}.py"
            script.write_text(code)
            environment = {**os.environ, "HF_HOME": str(hub_cache), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}\n{(tmp_path / 'log').read_text()}"
            assert done.stdout.strip(), "the program printed nothing"
            print(done.stdout)
