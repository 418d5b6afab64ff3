"""How the files hold one matrix: plain, FP8 or NVFP4, by the names, types and shapes of what is there. Each linear is
judged by itself, so that mixed checkpoints need no rule. No torch and no weights here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ventoux.checkpoint.keys import Layout, QuantFormat
from ventoux.checkpoint.shards import FLOAT_DTYPES, StoredTensor
from ventoux.model.tensors import Piece, TensorRow

Shape = tuple[int, ...]

# Spellings of FP8's multiplier: native, Hugging Face ("inv" is historical), compressed-tensors; and of the activation
# scale that may come with it.
FP8_SCALES: dict[str, str] = {
    "qscale_weight": "qscale_act",
    "weight_scale_inv": "activation_scale",
    "weight_scale": "input_scale",
}
# Columns that share one NVFP4 group scale.
GROUP = 16
_PER_TENSOR: list[Shape] = [(), (1,), (1, 1)]
ROLES = ("weights", "scale", "global_scale", "activation_scale")


@dataclass(frozen=True)
class Held:
    """One piece of a parameter, as the files hold it.

    `weights` names the tensor of values: plain, FP8 codes or packed NVFP4. `scale` is FP8's multiplier or NVFP4's
    group scales, `global_scale` NVFP4's divisor. `activation_scale` is known and read past: arithmetic is weight-only.
    """

    piece: Piece
    format: QuantFormat
    weights: str
    scale: str | None = None
    global_scale: str | None = None
    activation_scale: str | None = None

    @property
    def roles(self) -> list[tuple[str, str]]:
        """Which field names which stored tensor, for all of the piece, in the order in which we write them."""
        return [(role, name) for role in ROLES if (name := getattr(self, role)) is not None]

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.roles]

    @property
    def names_read(self) -> list[str]:
        """The stored tensors that make up the weights."""
        return [name for name in (self.weights, self.scale, self.global_scale) if name is not None]


def may_be_quantized(row: TensorRow) -> bool:
    """Published files quantize the linears of the text model; the head is our own extension. Embedding, router, norms
    and vision stay as they are."""
    return row.quantizable or row.part == "head"


def is_loaded_dense(row: TensorRow) -> bool:
    """Attention's absorbed form multiplies kv_b_proj from both sides, head by head, which codes with scales per row
    cannot do. It is small (57 million of 119 billion parameters), so it is always loaded in the compute type, however
    it is stored."""
    return row.path.endswith(".kv_b_proj.weight")


def piece_shape(row: TensorRow, piece: Piece) -> Shape:
    shape = row.shape if piece.expert is None else row.shape[1:]
    return shape if piece.rows is None else (piece.rows[1] - piece.rows[0], *shape[1:])


def named(row: TensorRow, piece: Piece, form: QuantFormat, layout: Layout, *, compressed: bool = False) -> Held:
    """The names under which a piece is written in a format.

    Args:
        compressed: FP8 beside NVFP4, spelled as compressed-tensors does.
    """
    if form == "bf16":
        return Held(piece, form, piece.name)
    if form == "nvfp4":
        return _nvfp4(piece)
    suffix = "weight_scale" if compressed else "qscale_weight" if layout == "native" else "weight_scale_inv"
    return _fp8(piece, suffix)


def find(
    row: TensorRow, piece: Piece, layout: Layout, stored: Mapping[str, StoredTensor], there: Collection[str]
) -> Held:
    """Decides by what is there. A piece that is not there at all comes back under the name it would have.

    Args:
        there: All names, those of broken shards included, whose types are not known.
    """
    if not may_be_quantized(row):
        return Held(piece, "bf16", piece.name)
    packed = _nvfp4(piece)
    # Fused experts are never packed: nobody publishes them so.
    if piece.name.endswith("weight") and (
        packed.weights in there or (piece.name not in there and packed.global_scale in there)
    ):
        has_activations = packed.activation_scale in there
        return packed if has_activations else replace(packed, activation_scale=None)
    tensor = stored.get(piece.name)
    if tensor is None or tensor.dtype != "F8_E4M3":
        return Held(piece, "bf16", piece.name)
    spelled = [held for suffix in FP8_SCALES if (held := _fp8(piece, suffix)).scale in there]
    held = spelled[0] if spelled else named(row, piece, "fp8", layout)
    return held if held.activation_scale in there else replace(held, activation_scale=None)


def _nvfp4(piece: Piece) -> Held:
    base = _base(piece)
    return Held(
        piece, "nvfp4", base + "weight_packed", base + "weight_scale", base + "weight_global_scale",
        base + "input_global_scale",
    )  # fmt: skip


def _fp8(piece: Piece, suffix: str) -> Held:
    base = _base(piece)
    if not piece.name.endswith("weight"):
        # Fused experts have no ".weight" to take the place of.
        return Held(piece, "fp8", piece.name, base + "scale_inv", None, base + "activation_scale")
    return Held(piece, "fp8", piece.name, base + suffix, None, base + FP8_SCALES[suffix])


def _base(piece: Piece) -> str:
    """`x.wo.weight` -> `x.wo.`; `x.experts.down_proj` -> `x.experts.down_proj_`."""
    return piece.name.removesuffix("weight") if piece.name.endswith("weight") else piece.name + "_"


# --------------------------------------------------------------------------------------------------------- validation


def check(row: TensorRow, held: Held, stored: Mapping[str, StoredTensor]) -> list[str]:
    """Problems of shapes and types of one piece; what is missing is not its concern."""
    shape = piece_shape(row, held.piece)
    problems = []
    for role, name in held.roles:
        tensor = stored.get(name)
        if tensor is None:
            continue
        shapes, dtypes = _expected(row, held.format, shape, role)
        if tensor.shape not in shapes:
            wanted = " or ".join(str(list(s)) for s in shapes)
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {wanted}")
        if tensor.dtype not in dtypes:
            problems.append(f"{name} is stored as {tensor.dtype}, expected {' or '.join(sorted(dtypes))}")
    if held.format == "nvfp4" and shape[-1] % GROUP:
        problems.append(f"{held.weights} is NVFP4, but its width {shape[-1]} is not divisible by {GROUP}")
    return problems


def _expected(row: TensorRow, form: QuantFormat, shape: Shape, role: str) -> tuple[list[Shape], set[str]]:
    """Shapes (the usual one first) and types that a stored tensor may have."""
    if form == "nvfp4":
        *rows, width = shape
        if role == "weights":
            return [(*rows, width // 2)], {"U8"}
        if role == "scale":
            return [(*rows, width // GROUP)], {"F8_E4M3"}
        return [(1,), ()], set(FLOAT_DTYPES)
    if role == "weights":
        return [shape], {"F8_E4M3"} if form == "fp8" else set(FLOAT_DTYPES)
    if role == "scale":
        return scale_shapes(row, shape), set(FLOAT_DTYPES)
    per_expert = [shape[:1], (shape[0], 1, 1)] if len(shape) == 3 else []
    return [*per_expert, *_PER_TENSOR], set(FLOAT_DTYPES)


def scale_shapes(row: TensorRow, shape: Shape) -> list[Shape]:
    """The shapes that FP8's multiplier may have: one for the matrix, one per row (compressed-tensors' "channel"), and
    for fused experts one per expert, or one for each half of gate-and-up."""
    if len(shape) == 2:
        return [*_PER_TENSOR, shape[:1], (shape[0], 1)]
    experts, rows, _ = shape
    halves = [(experts, 2, 1)] if row.path.endswith("gate_up_proj") else []
    return [(experts, 1, 1), *_PER_TENSOR, (experts,), (experts, 1), *halves, (experts, rows, 1)]


def weight_bytes(row: TensorRow, form: QuantFormat, item_bytes: int) -> int:
    """Bytes of a parameter in memory, `item_bytes` for each value of the compute type, row scales in fp32."""
    count = row.num_parameters
    if form == "bf16" or is_loaded_dense(row):
        return count * item_bytes
    codes = count if form == "fp8" else count // 2 + count // GROUP
    return codes + 4 * math.prod(row.shape[:-1])
