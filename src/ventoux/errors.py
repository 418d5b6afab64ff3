"""Every error that Ventoux raises on purpose, drawn as one tree.

VentouxError
├── UserError (also ValueError)      the caller can mend it            -> HTTP 4xx
│   ├── InvalidRequestError          a request field is wrong          -> 400
│   │   ├── ContextLengthError       prompt does not fit               -> 400
│   │   └── InvalidImageError        bytes or URL are no usable image  -> 400
│   ├── ModelNotFoundError           no such model is served           -> 404
│   └── ConfigError                  flags, plan or machine            -> exit 2
│       └── CheckpointError          files; `problems` lists them all  -> exit 2
└── EngineError                      ours to mend                      -> HTTP 5xx
    ├── NumericalError               a request's logits are not finite -> 500
    ├── EngineDeadError              the engine process is gone        -> 503
    └── SlowReaderError              its outputs were not taken        -> the stream is cut
"""

from __future__ import annotations

from collections.abc import Sequence


class VentouxError(Exception):
    """Root of all deliberate errors."""


class UserError(VentouxError, ValueError):
    """The caller can mend it."""


class InvalidRequestError(UserError):
    """A field of a request is wrong; `param` names it the way OpenAI clients expect."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt leaves no room for a single new token."""

    def __init__(self, num_prompt_tokens: int, max_model_len: int, *, param: str = "messages", at_least: bool = False):
        """`at_least`: counting has stopped there."""
        count = f"at least {num_prompt_tokens}" if at_least else num_prompt_tokens
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens, and at least one is kept for the"
            f" answer, but the prompt has {count}. Shorten the prompt.",
            param=param,
            code="context_length_exceeded",
        )


class InvalidImageError(InvalidRequestError):
    """An image could not be fetched, decoded or accepted."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_image"):
        super().__init__(message, param=param, code=code)


class ModelNotFoundError(UserError):
    """The request names a model that is not served here."""

    def __init__(self, model: str, served: Sequence[str]):
        super().__init__(f"The model {model!r} is not served here. Served: {', '.join(served)}.")
        self.param = "model"
        self.code = "model_not_found"


class ConfigError(UserError):
    """A flag, a configuration file or the machine makes the plan impossible."""


class CheckpointError(ConfigError):
    """A checkpoint cannot be used. All problems found are listed, not only the first."""

    def __init__(self, where: str, problems: Sequence[str]):
        self.where = where
        self.problems = list(problems)
        shown = self.problems[:20]
        more = len(self.problems) - len(shown)
        lines = [f"{where}: {len(self.problems)} problem(s) in this checkpoint", *(f"  - {p}" for p in shown)]
        if more:
            lines.append(f"  - and {more} more")
        super().__init__("\n".join(lines))


class EngineError(VentouxError):
    """Something on our side failed."""


class NumericalError(EngineError):
    """The model produced NaN or infinity for one request."""


class EngineDeadError(EngineError):
    """The engine process has ended; nothing can be generated."""


class SlowReaderError(EngineError):
    """The outputs of a request came faster than they were read, and too many waited."""
