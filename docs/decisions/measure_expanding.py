"""The figures of decision 017: multiplications of a layer, attention absorbed and expanded, for first prompts and for
turns of a chat. Nothing is timed.

    python measure_expanding.py
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    heads: int
    nope: int
    rope: int
    latent: int
    value: int
    q_lora: int
    expert: int
    experts_met: int  # by a token, the shared one among them

    def weights(self) -> int:
        """Multiplications of a token with the weights of a layer, but for W_UK and W_UV."""
        attention = self.hidden * (self.q_lora + self.latent + self.rope)
        attention += self.heads * (self.q_lora * (self.nope + self.rope) + self.value * self.hidden)
        return attention + self.experts_met * 3 * self.hidden * self.expert

    def expansion(self) -> int:
        """Of one position with W_UK and W_UV: of a query in absorbed form, of a key in expanded form."""
        return self.heads * self.latent * (self.nope + self.value)

    def absorbed(self, tokens: int, context: int) -> int:
        return tokens * self.expansion() + pairs(tokens, context) * self.heads * (2 * self.latent + self.rope)

    def expanded(self, tokens: int, context: int) -> int:
        return context * self.expansion() + pairs(tokens, context) * self.heads * (self.nope + self.rope + self.value)


def pairs(tokens: int, context: int) -> int:
    """Of the last `tokens` of `context` positions with those that they see."""
    return tokens * context - tokens * (tokens - 1) // 2


SHAPES = (
    Shape("1.55 billion parameters", 1024, 16, 64, 64, 256, 128, 512, 512, 5),
    Shape("Mistral Small 4", 4096, 32, 64, 64, 256, 128, 1024, 2048, 5),
)


def main() -> None:
    for shape in SHAPES:
        print(f"{shape.name}: share of attention in a prompt absorbed; prompt absorbed : expanded")
        for tokens in (512, 2048, 8192, 32768, 131072):
            weights = tokens * shape.weights()
            absorbed, expanded = shape.absorbed(tokens, tokens), shape.expanded(tokens, tokens)
            share, ratio = absorbed / (weights + absorbed), (weights + absorbed) / (weights + expanded)
            print(f"  {tokens:7}: {share:4.0%}  {ratio:.2f}")
        print("  a turn of a chat behind a cached context; its chunk absorbed : expanded")
        for question, answer, context in ((50, 300, 2048), (50, 300, 8192), (50, 300, 32768), (500, 300, 32768)):
            weights = shape.weights()
            now = question * weights + shape.absorbed(question, context + answer + question)
            # The answer before it was decoded in absorbed form: its latents cannot be what this prompt goes on from.
            then = (question + answer) * weights + shape.expanded(question + answer, context + answer + question)
            gained = shape.absorbed(context, context) - shape.expanded(context, context)
            turns = f"; {gained / (then - now):.1f} such turns cost what it gained" if then > now else ""
            print(f"  {question:4} tokens after an answer of {answer} and {context:6} more: {now / then:.2f}{turns}")
        even = shape.expansion() / (shape.heads * (2 * shape.latent - shape.nope - shape.value))
        print(f"  expanding pays for itself from {even:.0f} tokens of a prompt in one chunk on\n")


if __name__ == "__main__":
    main()
