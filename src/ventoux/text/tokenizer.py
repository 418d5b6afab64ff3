"""Text and chats -> token ids, and back: one small module around mistral-common's v15 tokenizer.

Every prompt rule is mistral-common's. This file adds what a server needs around it: errors that name the field, images
as plain records, bytes of single tokens. No torch.
"""

from __future__ import annotations

import bisect
import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from mistral_common.exceptions import InvalidToolException, InvalidToolSchemaException, MistralCommonException
from mistral_common.protocol.instruct.messages import ChatMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest, ReasoningEffort
from mistral_common.protocol.instruct.tool_calls import Tool
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import is_tekken, is_tekkenizer

from ventoux.engine.request import ImageInput
from ventoux.errors import CheckpointError, ContextLengthError, InvalidRequestError
from ventoux.text.limit import LimitedTekkenizer, PromptLimit
from ventoux.text.messages import (
    blame,
    check_text,
    is_empty_answer,
    refusal,
    refusing,
    to_messages,
    to_tools,
)

REASONING_EFFORTS = ("none", "high")


@dataclass(frozen=True)
class ControlTokens:
    """Ids of the control tokens that prompts and answers are built of."""

    bos: int = field(metadata={"name": "<s>"})
    eos: int = field(metadata={"name": "</s>"})
    pad: int = field(metadata={"name": "<pad>"})
    begin_inst: int = field(metadata={"name": "[INST]"})
    end_inst: int = field(metadata={"name": "[/INST]"})
    tool_calls: int = field(metadata={"name": "[TOOL_CALLS]"})
    args: int = field(metadata={"name": "[ARGS]"})
    begin_think: int = field(metadata={"name": "[THINK]"})
    end_think: int = field(metadata={"name": "[/THINK]"})
    image: int = field(metadata={"name": "[IMG]"})
    image_break: int = field(metadata={"name": "[IMG_BREAK]"})
    image_end: int = field(metadata={"name": "[IMG_END]"})


@dataclass(frozen=True)
class Prompt:
    """A rendered chat. The i-th image's rows replace its run of [IMG] tokens, in order of appearance.

    `in_reasoning`: the prompt ends inside an open think block, so the answer goes on with reasoning.
    """

    token_ids: list[int]
    images: list[ImageInput] = field(default_factory=list)
    in_reasoning: bool = False


class Tokenizer:
    """The tokenizer of one checkpoint; thread-safe, immutable. Make it with `from_file`."""

    def __init__(self, mistral: MistralTokenizer, control: ControlTokens, path: Path):
        self.mistral = mistral
        self.control = control
        self.path = path
        tekken = mistral.instruct_tokenizer.tokenizer
        assert is_tekkenizer(tekken)
        self._tekken = tekken
        self._num_special_tokens = self._tekken.num_special_tokens
        self._longest_token = max(map(len, self._tekken._tekken_token2id_nospecial))
        self._validator = get_validator(self._tekken.version, ValidationMode.test)
        # Without the rule about the last message, so that any beginning of a conversation can be judged.
        self._prefix_validator = get_validator(self._tekken.version, ValidationMode.agnostic)

    @classmethod
    def from_file(cls, path: Path | str) -> Tokenizer:
        """Loads a `tekken.json`, or the one in a folder.

        Raises:
            CheckpointError: there is none, it is not readable, or it is not a v15 tekken with the control tokens of
                Mistral Small 4.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "tekken.json"
        if not path.is_file():
            raise CheckpointError(str(path), ["there is no such tokenizer file"])
        if not is_tekken(path):
            raise CheckpointError(str(path), ['a tokenizer file must have "tekken" in its name and end in .json'])
        try:
            mistral = MistralTokenizer.from_file(path)
        except (
            MistralCommonException,
            ValueError,
            AssertionError,
            LookupError,
            TypeError,
            AttributeError,
            OSError,
        ) as e:
            raise CheckpointError(str(path), [f"this is no tekken tokenizer: {type(e).__name__} {e}"[:400]]) from e
        tekken = mistral.instruct_tokenizer.tokenizer
        version = tekken.version
        problems = []
        if not version.supports_model_settings:
            problems.append(f"tokenizer version {version.value} is too old; Mistral Small 4 needs v15")
        elif tekken.model_settings_builder is None:
            problems.append("model_settings_builder is missing, which says how reasoning_effort is written")
        names = {f.name: f.metadata["name"] for f in fields(ControlTokens)}
        problems += [f"control token {name} is missing" for name in names.values() if not tekken.is_special(name)]
        if problems:
            raise CheckpointError(str(path), problems)
        control = ControlTokens(**{key: tekken.get_special_token(name) for key, name in names.items()})
        return cls(mistral, control, path)

    @property
    def vocab_size(self) -> int:
        return self._tekken.n_words

    def require_vocabulary(self, model_vocab_size: int) -> None:
        """Raises CheckpointError if a model of this vocabulary size cannot belong to this tokenizer."""
        if self.vocab_size != model_vocab_size:
            problem = (
                f"the tokenizer has {self.vocab_size} ids, the model {model_vocab_size}: they do not belong together"
            )
            raise CheckpointError(str(self.path), [problem])

    @property
    def num_special_tokens(self) -> int:
        """Ids below this are control tokens; regular token r has id num_special_tokens + r."""
        return self._num_special_tokens

    @property
    def bos_id(self) -> int:
        return self.control.bos

    @property
    def eos_id(self) -> int:
        return self.control.eos

    @property
    def takes_images(self) -> bool:
        return self._tekken.image is not None

    def is_control(self, token_id: int) -> bool:
        return token_id < self._num_special_tokens

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of a regular token, which need not be whole characters; b"" for a control token."""
        return self._tekken.id_to_byte_piece(token_id, SpecialTokenPolicy.IGNORE)

    def token_text(self, token_id: int) -> str:
        """One token as readable text: a control token's name, else its bytes with U+FFFD for broken characters."""
        if self.is_control(token_id):
            return self._tekken.id_to_piece(token_id)
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def encode_text(
        self, text: str, bos: bool = False, *, param: str = "prompt", limit: PromptLimit | None = None
    ) -> list[int]:
        """Plain text to ids: text that spells a control token stays text.

        Raises:
            ContextLengthError: more tokens than `limit` allows; long texts are not read to their end then.
            InvalidRequestError: about `param`: NUL, lone surrogates, or text that the splitter gives up on (runs of
                about a million blanks).
        """
        check_text(text, param)
        tekken = self._tekken if limit is None else self._limited(limit, param)
        with refusing(param):
            ids = tekken.encode(text, bos=bos, eos=False)
        if limit is not None:
            limit.check(len(ids), param)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text. Control tokens give nothing; bytes that form no character give U+FFFD.

        Raises:
            InvalidRequestError: an id is not in the vocabulary.
        """
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise refusal("tokens", f"token id {token_id} is not in [0, {self.vocab_size - 1}].")
        return self._tekken.decode(list(ids), SpecialTokenPolicy.IGNORE)

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        continue_final_message: bool = False,
        limit: PromptLimit | None = None,
    ) -> Prompt:
        """Renders a conversation as a prompt.

        Args:
            messages: OpenAI-shaped dicts. Images are parts {"type": "image", "image": PIL.Image.Image}, already
                decoded. Reasoning in history may be `reasoning`, `reasoning_content` or Mistral's thinking chunks.
            tools: OpenAI-shaped tool definitions.
            reasoning_effort: "none" or "high"; None means "none".
            continue_final_message: Leave the last message, an assistant's, open; `prefix: true` in it does the same.
            limit: Of the whole prompt; what is longer is not tokenized to its end.

        Raises:
            ContextLengthError: more tokens than `limit` allows.
            InvalidRequestError: with `param` naming the field, such as `messages[3].tool_call_id`.
        """
        if reasoning_effort not in (None, *REASONING_EFFORTS):
            raise refusal(
                "reasoning_effort", f'must be "none" or "high", got {reasoning_effort!r}.', "unsupported_value"
            )
        converted = to_messages(messages, continue_final_message=continue_final_message)
        self._check_conversation(converted)
        request = ChatCompletionRequest(
            messages=[message for message in converted if not is_empty_answer(message)],
            tools=to_tools(tools) if tools else None,
            reasoning_effort=ReasoningEffort(reasoning_effort or "none"),
        )
        if not self.takes_images and _has_images(messages):
            raise refusal("messages", "this model takes no images.", "unsupported_value")
        mistral = self.mistral if limit is None else self._limited_mistral(limit)
        try:
            with refusing("messages"):
                encoded = mistral.encode_chat_completion(request)
        except ContextLengthError:
            raise
        except InvalidRequestError as e:
            self._check_tools(request.tools or [])
            raise e
        if limit is not None:
            limit.check(len(encoded.tokens), "messages")
        images = [_image_input(image) for image in encoded.images]
        return Prompt(encoded.tokens, images, in_reasoning=self._ends_in_reasoning(encoded.tokens))

    def _limited(self, limit: PromptLimit, param: str) -> LimitedTekkenizer:
        return LimitedTekkenizer(self._tekken, limit, self._longest_token, param)

    def _limited_mistral(self, limit: PromptLimit) -> MistralTokenizer:
        """mistral-common's tokenizer with every text counted that it puts into a prompt."""
        instruct = copy.copy(self.mistral.instruct_tokenizer)
        instruct.tokenizer = self._limited(limit, "messages")
        # Copying the outer object would load the file again.
        return MistralTokenizer(
            instruct,
            self.mistral._chat_completion_request_validator,
            self.mistral._instruct_request_normalizer,
        )

    def _check_conversation(self, messages: list[ChatMessage]) -> None:
        """Has mistral-common judge the conversation; a refusal names the first message that makes it wrong."""
        if isinstance(messages[0], ToolMessage):
            # mistral-common lets a conversation begin with a tool result.
            raise refusal(
                "messages[0].role", "a tool result must follow the call that it answers.", "invalid_message_order"
            )
        try:
            self._validator.validate_messages(messages)
        except MistralCommonException as e:
            # A conversation that is wrong stays wrong however it goes on: so the first bad beginning can be bisected.
            lengths = range(2, len(messages) + 1)
            first = bisect.bisect_left(lengths, True, key=lambda length: not self._begins_well(messages[:length]))
            bad = lengths[first] if first < len(lengths) else len(messages)
            raise blame(e, messages, bad - 1) from e

    def _begins_well(self, messages: list[ChatMessage]) -> bool:
        try:
            self._prefix_validator.validate_messages(messages)
        except MistralCommonException:
            return False
        return True

    def _check_tools(self, tools: list[Tool]) -> None:
        """Refuses the first tool that mistral-common refuses, naming it."""
        for i, tool in enumerate(tools):
            try:
                self._validator.validate_request(
                    ChatCompletionRequest(messages=[UserMessage(content="")], tools=[tool])
                )
            except InvalidToolException as e:
                raise refusal(f"tools[{i}].function.name", e.message) from e
            except InvalidToolSchemaException as e:
                raise refusal(f"tools[{i}].function.parameters", e.message, "invalid_json_schema") from e
            except RecursionError as e:
                raise refusal(f"tools[{i}].function.parameters", "nested too deeply.", "invalid_json_schema") from e

    def _ends_in_reasoning(self, token_ids: list[int]) -> bool:
        for token_id in reversed(token_ids):
            if self.is_control(token_id):
                return token_id == self.control.begin_think
        return False


def _has_images(messages: Sequence[dict[str, Any]]) -> bool:
    parts = (part for m in messages if isinstance(m.get("content"), list) for part in m["content"])
    return any(part.get("type") == "image" for part in parts)


def _image_input(image: np.ndarray) -> ImageInput:
    pixels = np.ascontiguousarray(image, dtype="<f4")
    _, height, width = pixels.shape
    content = pixels.tobytes()
    digest = hashlib.sha256(repr(pixels.shape).encode() + content).digest()
    return ImageInput(pixels=content, height=height, width=width, content_hash=digest)
