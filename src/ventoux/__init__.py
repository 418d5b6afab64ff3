"""Ventoux: an inference engine and OpenAI-compatible server for Mistral Small 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from ventoux.engine.request import SamplingParams
    from ventoux.llm import LLM


def __getattr__(name: str):
    """Imports the public names when they are first used: `import ventoux` costs no torch."""
    if name == "LLM":
        from ventoux.llm import LLM

        return LLM
    if name == "SamplingParams":
        from ventoux.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'ventoux' has no attribute {name!r}")
