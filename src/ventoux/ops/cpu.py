"""The native provider: operators of `csrc/`, for CPU tensors in bf16 or fp32 and weights in any stored format.

Here shapes and types are checked and addresses taken; the arithmetic is in csrc/. What has no native form (rope of
whole tensors, packed attention: training and vision) is the reference's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch

from ventoux.errors import ConfigError
from ventoux.ops.formats import FP8, Fp8Weight, Nvfp4Weight, Weight
from ventoux.ops.native import native
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import AttentionLayout, Operators, Positions, StackWeights
from ventoux.ops.threads import torch_threads

Tensor = torch.Tensor
_F32, _BF16, _FP8, _NVFP4 = range(4)
_TYPES = (torch.bfloat16, torch.float32)
_NO_WEIGHT = (0, 0, 0, 0, 0, _BF16)


def instruction_sets(emulated: bool = False) -> list[str]:
    """What this build can use on this machine, best first; empty when it was installed without native code.

    Args:
        emulated: For tests: with those whose bf16 and tile instructions are emulated, last. They run on any machine
            with AVX-512, slowly, and are taken only when named.
    """
    return native.instruction_sets(emulated) if native is not None else []


def _rows(x: Tensor) -> tuple[int, int, int, bool]:
    """Address, number of rows, columns and type of a contiguous tensor, its last axis being the columns."""
    if x.dtype not in _TYPES or not x.is_contiguous() or not x.is_cpu:
        raise ConfigError(f"native operators take contiguous bf16 or fp32 CPU tensors, not {x.dtype} {x.stride()}")
    cols = x.shape[-1]
    return x.data_ptr(), x.numel() // cols, cols, x.dtype is torch.bfloat16


def _address(t: Tensor, dtype: torch.dtype) -> int:
    """Of a contiguous CPU tensor of that type."""
    if t.dtype is not dtype or not t.is_contiguous() or not t.is_cpu:
        raise ConfigError(
            f"native operators need a contiguous {dtype} CPU tensor, not {t.dtype} {t.stride()} on {t.device}"
        )
    return t.data_ptr()


def _weight(w: Weight) -> tuple[int, int, int, int, int, int]:
    """Addresses of codes, group scales and row scales, rows and columns of one matrix, format."""
    rows, cols = w.shape[-2:]
    if isinstance(w, Fp8Weight):
        return _address(w.codes, FP8), 0, _address(w.row_scale, torch.float32), rows, cols, _FP8
    if isinstance(w, Nvfp4Weight):
        addresses = (_address(w.codes, torch.uint8), _address(w.group_scale, FP8), _address(w.row_scale, torch.float32))
        return *addresses, rows, cols, _NVFP4
    address, _, _, bf16 = _rows(w)
    return address, 0, 0, rows, cols, _BF16 if bf16 else _F32


def _mlp(x_TD: Tensor, gate: Weight, up: Weight, down: Weight) -> tuple[tuple, tuple, tuple]:
    F, D = gate.shape
    _require(x_TD.shape[-1] == D and up.shape == (F, D) and down.shape == (D, F), "an MLP's widths do not fit")
    return _weight(gate), _weight(up), _weight(down)


def _positions(positions: Positions, T: int) -> tuple[int, int, int]:
    fields = positions.cos_TR2, positions.sin_TR2, positions.query_scale_T
    _require(all(len(f) == T for f in fields), f"positions are not those of {T} tokens")
    cos, sin, scale = (_address(f, torch.float32) for f in fields)
    return cos, sin, scale


def _layout(layout: AttentionLayout, T: int, page_size: int) -> tuple[int, int]:
    """Addresses of page table and slots."""
    _require(sum(layout.lengths) == T == len(layout.slots_T), f"the layout is not one of {T} tokens")
    rows, width = layout.pages_NP.shape
    _require(rows == len(layout.lengths) == len(layout.context_lengths), "one row of pages per sequence")
    _require(max(layout.context_lengths, default=0) <= width * page_size, "a context is longer than its pages")
    return _address(layout.pages_NP, torch.int64), _address(layout.slots_T, torch.int64)


# Rows from which on attention within a sequence is worth torch's threads: an image of 900 patches was encoded in 64 ms
# without them and in 72 to 91 with two, one of 10,000 in 2.8 to 3.9 seconds and in 1.7 to 2.5.
SHARED_ROWS = 2048


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigError(f"native operators: {what}")


def native_operators(num_threads: int, instruction_set: str | None = None) -> Operators:
    """Operators with a pool of `num_threads` of their own (the calling thread is one of them).

    Args:
        instruction_set: One of `instruction_sets(emulated=True)`; None takes the best. Tests name them all.

    Raises:
        ConfigError: no native code is installed, or the machine cannot run that instruction set.
    """
    if native is None:
        raise ConfigError("Ventoux was installed without native operators; a C++ compiler was missing.")
    usable = instruction_sets()
    chosen = instruction_set or usable[0]
    _require(chosen in instruction_sets(emulated=True), f"this machine runs {', '.join(usable)}, not {chosen}")
    try:
        runtime = native.Runtime(num_threads, chosen)
    except RuntimeError as error:
        raise ConfigError(
            f"{num_threads} threads cannot be started ({error}); choose fewer with --num-threads."
        ) from error
    return _Native(runtime, chosen, num_threads).operators()


class _Native:
    def __init__(self, runtime, instruction_set: str, num_threads: int):
        self.runtime = runtime
        self.num_threads = num_threads
        self.instruction_set = instruction_set
        # Addresses of a model's weights, taken once; they go when the model does.
        self.stacks: WeakKeyDictionary[StackWeights, Any] = WeakKeyDictionary()

    def operators(self) -> Operators:
        return replace(
            REFERENCE,
            name=f"cpu ({self.instruction_set})",
            rms_norm=self.rms_norm,
            linear=self.linear,
            head=self.head,
            write_latent=self.write_latent,
            latent_attention=self.latent_attention,
            packed_attention=self.packed_attention,
            route=self.route,
            gated_mlp=self.gated_mlp,
            moe=self.moe,
            place=self.place,
            scan=self.scan,
            layers=self.layers,
        )

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_TD = x_TD.contiguous()
        _require(weight_D.shape == x_TD.shape[-1:], f"{x_TD.shape} does not fit {weight_D.shape}")
        out_TD = torch.empty_like(x_TD)
        self.runtime.rms_norm(_rows(x_TD), _rows(weight_D), eps, _rows(out_TD))
        return out_TD

    def linear(self, x_TD: Tensor, weight_FD: Weight) -> Tensor:
        return self._linear(x_TD, weight_FD, x_TD.dtype)

    def head(self, x_KD: Tensor, weight_VD: Weight) -> Tensor:
        return self._linear(x_KD, weight_VD, torch.float32)

    def _linear(self, x_TD: Tensor, weight_FD: Weight, out_dtype: torch.dtype) -> Tensor:
        x_TD = x_TD.contiguous()
        _require(x_TD.shape[-1] == weight_FD.shape[-1], f"{x_TD.shape} does not fit {weight_FD.shape}")
        out_TF = torch.empty((*x_TD.shape[:-1], weight_FD.shape[0]), dtype=out_dtype)
        self.runtime.linear(_rows(x_TD), _weight(weight_FD), _rows(out_TF))
        return out_TF

    def route(self, x_TD: Tensor, gate_ED: Tensor, top_k: int, scale: float) -> tuple[Tensor, Tensor]:
        _require(x_TD.shape[-1] == gate_ED.shape[-1], f"{x_TD.shape} does not fit {gate_ED.shape}")
        _require(top_k <= len(gate_ED), f"{top_k} of {len(gate_ED)} experts")
        weights_TK = torch.empty(len(x_TD), top_k)
        expert_ids_TK = torch.empty(len(x_TD), top_k, dtype=torch.int64)
        self.runtime.route(_rows(x_TD), _weight(gate_ED), top_k, scale, weights_TK.data_ptr(), expert_ids_TK.data_ptr())
        return weights_TK, expert_ids_TK

    def gated_mlp(self, x_TD: Tensor, gate_FD: Weight, up_FD: Weight, down_DF: Weight) -> Tensor:
        x_TD = x_TD.contiguous()
        out_TD = torch.empty_like(x_TD)
        shared = _mlp(x_TD, gate_FD, up_FD, down_DF)
        self.runtime.moe(_rows(x_TD), 0, 0, 0, 0, _NO_WEIGHT, _NO_WEIGHT, *shared, _rows(out_TD))
        return out_TD

    def moe(
        self,
        x_TD: Tensor,
        weights_TK: Tensor,
        expert_ids_TK: Tensor,
        gate_up_EGD: Weight,
        down_EDF: Weight,
        shared: tuple[Weight, Weight, Weight],
    ) -> Tensor:
        x_TD = x_TD.contiguous()
        weights_TK, expert_ids_TK = weights_TK.contiguous(), expert_ids_TK.contiguous()
        E, G, D = gate_up_EGD.shape
        _require(x_TD.shape[-1] == D and down_EDF.shape == (E, D, G // 2), "the experts' widths do not fit")
        _require(weights_TK.shape == expert_ids_TK.shape == (len(x_TD), weights_TK.shape[1]), "one choice per token")
        out_TD = torch.empty_like(x_TD)
        self.runtime.moe(
            _rows(x_TD),
            _address(weights_TK, torch.float32),
            _address(expert_ids_TK, torch.int64),
            weights_TK.shape[1],
            E,
            _weight(gate_up_EGD),
            _weight(down_EDF),
            *_mlp(x_TD, *shared),
            _rows(out_TD),
        )
        return out_TD

    def write_latent(
        self, kv_TX: Tensor, norm_C: Tensor, eps: float, positions: Positions, cache_PSX: Tensor, slots_T: Tensor
    ) -> None:
        kv_TX = kv_TX.contiguous()
        cos, sin, _ = _positions(positions, len(kv_TX))
        rope_width = 2 * positions.cos_TR2.shape[1]
        _require(len(slots_T) == len(kv_TX), "one slot per token")
        _require(
            kv_TX.shape[1] == len(norm_C) + rope_width == cache_PSX.shape[2], "latent, rope and cache widths differ"
        )
        self.runtime.write_latent(
            _rows(kv_TX),
            _rows(norm_C),
            eps,
            cos,
            sin,
            rope_width,
            _rows(cache_PSX),
            _address(slots_T, torch.int64),
        )

    def latent_attention(
        self,
        q_THX: Tensor,
        kv_b_GC: Tensor,
        positions: Positions,
        cache_PSX: Tensor,
        layout: AttentionLayout,
        scale: float,
    ) -> Tensor:
        _require(isinstance(kv_b_GC, Tensor), "kv_b is dense")
        T, H, _ = q_THX.shape
        q_TX = q_THX.flatten(1).contiguous()
        cos, sin, scales = _positions(positions, T)
        pages, _ = _layout(layout, T, cache_PSX.shape[1])
        R, C = 2 * positions.cos_TR2.shape[1], kv_b_GC.shape[1]
        N = q_THX.shape[2] - R
        O = kv_b_GC.shape[0] // H - N
        _require(cache_PSX.shape[2] == C + R, "latent, rope and cache widths differ")
        out_THO = q_THX.new_empty((T, H, O))
        self.runtime.attention(
            _rows(q_TX),
            _weight(kv_b_GC),
            _rows(cache_PSX),
            layout.lengths,
            layout.context_lengths,
            pages,
            layout.pages_NP.shape[1],
            cache_PSX.shape[1],
            (H, N, C, O),
            scale,
            cos,
            sin,
            R,
            scales,
            _rows(out_THO.flatten(1)),
        )
        return out_THO

    def place(self, positions_T: Tensor, inv_freq: Tensor, original: int, beta: float) -> Positions:
        shape = len(positions_T), len(inv_freq)
        placed = Positions(torch.empty(shape), torch.empty(shape), torch.empty(shape[0]))
        self.runtime.place(
            _address(positions_T, torch.int64),
            shape[0],
            _address(inv_freq, torch.float32),
            shape[1],
            original,
            beta,
            placed.cos_TR2.data_ptr(),
            placed.sin_TR2.data_ptr(),
            placed.query_scale_T.data_ptr(),
        )
        return placed

    def scan(self, x_KN: Tensor) -> tuple[list[bool], list[int]]:
        return self.runtime.scan(_rows(x_KN.contiguous()))

    def packed_attention(
        self, q_THN: Tensor, k_THN: Tensor, v_THO: Tensor, lengths: tuple[int, ...], scale: float, causal: bool
    ) -> Tensor:
        """torch's. Its threads and ours get into each other's way: more than one only where there is much to do."""
        with torch_threads(self.num_threads if max(lengths) >= SHARED_ROWS else 1):
            return REFERENCE.packed_attention(q_THN, k_THN, v_THO, lengths, scale, causal)

    def layers(
        self, x_TD: Tensor, stack: StackWeights, positions: Positions, cache: list[Tensor], layout: AttentionLayout
    ) -> Tensor:
        prepared = self.stacks.get(stack)
        if prepared is None:
            prepared = self.stacks[stack] = _prepare(stack)
        page_size, width = cache[0].shape[1:]
        _require(width == stack.kv_lora_rank + stack.qk_rope_head_dim, "latent and cache widths differ")
        cos, sin, scales = _positions(positions, len(x_TD))
        pages, slots = _layout(layout, len(x_TD), page_size)
        x_TD = x_TD.contiguous()
        out_TD = torch.empty_like(x_TD)
        self.runtime.run_stack(
            prepared[0],
            _rows(x_TD),
            cos,
            sin,
            scales,
            layout.lengths,
            layout.context_lengths,
            pages,
            layout.pages_NP.shape[1],
            page_size,
            slots,
            [_rows(layer) for layer in cache],
            _rows(out_TD),
        )
        return out_TD


def _prepare(stack: StackWeights) -> tuple[Any, list[Weight]]:
    """The native stack, and the tensors whose addresses it holds: detached, they keep their memory whatever becomes of
    the parameters."""
    assert native is not None
    first = next((layer for layer in stack.layers if layer.gate_up is not None), None)
    num_experts = 0 if first is None or first.gate_up is None else first.gate_up.shape[0]
    sizes = (
        *(stack.num_heads, stack.qk_nope_head_dim, stack.qk_rope_head_dim, stack.kv_lora_rank, stack.v_head_dim),
        *(stack.top_k, num_experts),
    )
    kept: list[Weight] = []

    def keep(weight: Weight) -> Weight:
        kept.append(weight.detach() if isinstance(weight, Tensor) else weight)
        return kept[-1]

    layers = []
    for w in stack.layers:
        norms = [_rows(cast(Tensor, keep(norm))) for norm in (w.input_norm, w.q_a_norm, w.kv_a_norm, w.post_norm)]
        weights = (w.q_a, w.q_b, w.kv_a, w.kv_b, w.o, w.router, w.gate_up, w.down, *w.mlp)
        layers.append((norms, [_NO_WEIGHT if weight is None else _weight(keep(weight)) for weight in weights]))
    norm = _rows(cast(Tensor, keep(stack.norm)))
    made = native.make_stack(sizes, stack.eps, stack.softmax_scale, stack.route_scale, norm, layers)
    return made, kept
