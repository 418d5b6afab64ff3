"""llama.cpp, built for this processor (see CMakeLists.txt), in bf16 and Q4_0."""

from __future__ import annotations

import argparse
import ctypes
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import protocol
from peers.llamacpp import gguf_file

LIBRARY = Path(__file__).parents[3] / "build/peers/llamacpp/objects/libbridge.so"
SOURCE = Path(__file__).parent / "source.txt"
# Contexts grow in steps of so many tokens.
CONTEXT_STEP = 256


class LlamaCpp:
    def __init__(self, models: Path, variant: str, args: argparse.Namespace) -> None:
        self._models, self._args = models, args
        self._file = models / f"{variant}.gguf"
        self._bridge = _bridge()
        # With its weights repacked, and so with AMX, this version aborts on quantized latent attention.
        self._repack = variant == "bf16"
        self._opened = self._bridge.bridge_open(os.fsencode(self._file), args.threads, self._repack)
        if not self._opened:
            raise RuntimeError(f"llama.cpp cannot load {self._file}")
        self._room = (0, 0)
        self.facts: dict[str, Any] = {
            "versions": {"source": SOURCE.read_text().strip(), "gguf": version("gguf")},
            "note": f"repacked weights: {self._repack}; {self._bridge.bridge_system_info().decode().strip()}",
        }

    def prefill(self, prompt: list[int]) -> float:
        return self._run([prompt], 0, len(prompt))[0]

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        steps = new_tokens - 1
        seconds = self._run(prompts, steps, protocol.DECODE_PROMPT + self._args.new_tokens)[1]
        return len(prompts) * steps / seconds

    def weight_bytes(self, sequences: int) -> float:
        share = protocol.expected_share(protocol.model_facts(self._models), sequences)
        return gguf_file.active_bytes(self._file, share)

    def _run(self, prompts: list[list[int]], steps: int, length: int) -> tuple[float, float]:
        """Seconds of the prompts and of the steps. Making room for `length` tokens per sequence is not counted."""
        room = (len(prompts), -(-length // CONTEXT_STEP) * CONTEXT_STEP)
        if room != self._room:
            if not self._bridge.bridge_make_room(self._opened, *room):
                raise RuntimeError(f"llama.cpp has no room for {room[0]} sequences of {room[1]} tokens")
            self._room = room
        flat = [token for prompt in prompts for token in prompt]
        ids = (ctypes.c_int32 * len(flat))(*flat)
        prefill, decode = ctypes.c_double(), ctypes.c_double()
        into = (ctypes.byref(prefill), ctypes.byref(decode))
        if not self._bridge.bridge_run(self._opened, ids, len(prompts), len(prompts[0]), steps, *into):
            raise RuntimeError("llama.cpp failed to decode")
        return prefill.value, decode.value


def _bridge() -> ctypes.CDLL:
    bridge = ctypes.CDLL(str(LIBRARY))
    int32, pointer, text = ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p
    bridge.bridge_open.argtypes, bridge.bridge_open.restype = [text, int32, ctypes.c_bool], pointer
    bridge.bridge_make_room.argtypes, bridge.bridge_make_room.restype = [pointer, int32, int32], ctypes.c_bool
    run_arguments = [pointer, pointer, int32, int32, int32, pointer, pointer]
    bridge.bridge_run.argtypes, bridge.bridge_run.restype = run_arguments, ctypes.c_bool
    bridge.bridge_quantize_q4_0.argtypes, bridge.bridge_quantize_q4_0.restype = [text, text], ctypes.c_bool
    bridge.bridge_system_info.restype = text
    return bridge


def prepare(models: Path) -> list[str]:
    plain, quantized = models / "bf16.gguf", models / "Q4_0.gguf"
    if not plain.exists():
        gguf_file.write(models / "hf", plain)
    if not quantized.exists():
        partial = quantized.with_suffix(".partial")
        if not _bridge().bridge_quantize_q4_0(os.fsencode(plain), os.fsencode(partial)):
            raise RuntimeError(f"llama.cpp cannot quantize {plain}")
        partial.rename(quantized)
    return ["bf16", "Q4_0"]


if __name__ == "__main__":
    protocol.run(prepare, LlamaCpp)
