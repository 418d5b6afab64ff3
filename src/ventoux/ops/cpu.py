"""The native provider: operators of `csrc/`, for CPU tensors in bf16 or fp32 and weights in any stored format.

Here shapes and types are checked and addresses taken; the arithmetic is in csrc/. What has no native form (rope of
whole tensors, packed attention: training and vision) is the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ventoux.errors import ConfigError
from ventoux.ops.formats import Fp8Weight, Nvfp4Weight, Weight
from ventoux.ops.reference import REFERENCE
from ventoux.ops.spec import AttentionLayout, LayerWeights, Operators, Positions, StackWeights

try:
    from ventoux.ops import _native
except ImportError:  # installed without a compiler
    _native = None

Tensor = torch.Tensor
_F32, _BF16, _FP8, _NVFP4 = range(4)
_TYPES = (torch.bfloat16, torch.float32)
_NO_WEIGHT = (0, 0, 0, 0, 0, _BF16)


def instruction_sets() -> list[str]:
    """What this build can use on this machine, best first; empty when it was installed without native code."""
    return _native.instruction_sets() if _native is not None else []


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Memory for weights: as torch.empty, but asking for huge pages, without which a product that streams through
    gigabytes waits for the TLB. Does nothing special where there are none."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if _native is not None and tensor.device.type == "cpu":
        _native.use_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _rows(x: Tensor) -> tuple[int, int, int, bool]:
    """Address, number of rows, columns and type of a contiguous tensor, its last axis being the columns."""
    if x.dtype not in _TYPES or not x.is_contiguous() or not x.is_cpu:
        raise ConfigError(f"native operators take contiguous bf16 or fp32 CPU tensors, not {x.dtype} {x.stride()}")
    cols = x.shape[-1]
    return x.data_ptr(), x.numel() // cols, cols, x.dtype is torch.bfloat16


def _weight(w: Weight) -> tuple[int, int, int, int, int, int]:
    """Addresses of codes, group scales and row scales, rows and columns of one matrix, format."""
    rows, cols = w.shape[-2:]
    if isinstance(w, Fp8Weight):
        return w.codes.data_ptr(), 0, w.row_scale.data_ptr(), rows, cols, _FP8
    if isinstance(w, Nvfp4Weight):
        return w.codes.data_ptr(), w.group_scale.data_ptr(), w.row_scale.data_ptr(), rows, cols, _NVFP4
    address, _, _, bf16 = _rows(w)
    return address, 0, 0, rows, cols, _BF16 if bf16 else _F32


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigError(f"native operators: {what}")


def native_operators(num_threads: int, instruction_set: str | None = None) -> Operators:
    """Operators with a pool of `num_threads` of their own (the calling thread is one of them).

    Args:
        instruction_set: One of `instruction_sets()`; None takes the best. Tests name them all.

    Raises:
        ConfigError: no native code is installed, or the machine cannot run that instruction set.
    """
    if _native is None:
        raise ConfigError("Ventoux was installed without native operators; a C++ compiler was missing.")
    usable = _native.instruction_sets()
    chosen = instruction_set or usable[0]
    _require(chosen in usable, f"this machine runs {', '.join(usable)}, not {chosen}")
    return _Native(_native.Runtime(num_threads, chosen), chosen).operators()


class _Native:
    def __init__(self, runtime, instruction_set: str):
        self.runtime = runtime
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
            route=self.route,
            gated_mlp=self.gated_mlp,
            moe=self.moe,
            layers=self.layers,
        )

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_TD = x_TD.contiguous()
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
        weights_TK = torch.empty(len(x_TD), top_k)
        expert_ids_TK = torch.empty(len(x_TD), top_k, dtype=torch.int64)
        self.runtime.route(_rows(x_TD), _weight(gate_ED), top_k, scale, weights_TK.data_ptr(), expert_ids_TK.data_ptr())
        return weights_TK, expert_ids_TK

    def gated_mlp(self, x_TD: Tensor, gate_FD: Weight, up_FD: Weight, down_DF: Weight) -> Tensor:
        x_TD = x_TD.contiguous()
        out_TD = torch.empty_like(x_TD)
        shared = _weight(gate_FD), _weight(up_FD), _weight(down_DF)
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
        out_TD = torch.empty_like(x_TD)
        self.runtime.moe(
            _rows(x_TD),
            weights_TK.data_ptr(),
            expert_ids_TK.data_ptr(),
            weights_TK.shape[1],
            gate_up_EGD.shape[0],
            _weight(gate_up_EGD),
            _weight(down_EDF),
            *(_weight(w) for w in shared),
            _rows(out_TD),
        )
        return out_TD

    def write_latent(
        self, kv_TX: Tensor, norm_C: Tensor, eps: float, positions: Positions, cache_PSX: Tensor, slots_T: Tensor
    ) -> None:
        cos_TR2, sin_TR2 = positions.cos_TR2, positions.sin_TR2
        rope_width = 2 * cos_TR2.shape[1]
        _require(
            kv_TX.shape[1] == len(norm_C) + rope_width == cache_PSX.shape[2], "latent, rope and cache widths differ"
        )
        self.runtime.write_latent(
            _rows(kv_TX),
            _rows(norm_C),
            eps,
            cos_TR2.data_ptr(),
            sin_TR2.data_ptr(),
            rope_width,
            _rows(cache_PSX),
            slots_T.data_ptr(),
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
        T, H, _ = q_THX.shape
        R, C = 2 * positions.cos_TR2.shape[1], kv_b_GC.shape[1]
        N = q_THX.shape[2] - R
        O = kv_b_GC.shape[0] // H - N
        _require(cache_PSX.shape[2] == C + R, "latent, rope and cache widths differ")
        out_THO = q_THX.new_empty((T, H, O))
        self.runtime.attention(
            _rows(q_THX.flatten(1)),
            _weight(kv_b_GC),
            _rows(cache_PSX),
            layout.lengths,
            layout.context_lengths,
            layout.pages_NP.data_ptr(),
            layout.pages_NP.shape[1],
            cache_PSX.shape[1],
            (H, N, C, O),
            scale,
            positions.cos_TR2.data_ptr(),
            positions.sin_TR2.data_ptr(),
            R,
            positions.query_scale_T.data_ptr(),
            _rows(out_THO.flatten(1)),
        )
        return out_THO

    def layers(
        self, x_TD: Tensor, stack: StackWeights, positions: Positions, cache: list[Tensor], layout: AttentionLayout
    ) -> Tensor:
        prepared = self.stacks.get(stack)
        if prepared is None:
            prepared = self.stacks[stack] = _prepare(stack)
        _require(cache[0].shape[2] == stack.kv_lora_rank + stack.qk_rope_head_dim, "latent and cache widths differ")
        out_TD = x_TD.clone(memory_format=torch.contiguous_format)
        self.runtime.run_stack(
            prepared,
            _rows(out_TD),
            positions.cos_TR2.data_ptr(),
            positions.sin_TR2.data_ptr(),
            positions.query_scale_T.data_ptr(),
            layout.lengths,
            layout.context_lengths,
            layout.pages_NP.data_ptr(),
            layout.pages_NP.shape[1],
            cache[0].shape[1],
            layout.slots_T.data_ptr(),
            [_rows(layer) for layer in cache],
        )
        return out_TD


def _prepare(stack: StackWeights) -> Any:
    assert _native is not None
    first = next((layer for layer in stack.layers if layer.gate_up is not None), None)
    num_experts = 0 if first is None or first.gate_up is None else first.gate_up.shape[0]
    sizes = (
        *(stack.num_heads, stack.qk_nope_head_dim, stack.qk_rope_head_dim, stack.kv_lora_rank, stack.v_head_dim),
        *(stack.top_k, num_experts),
    )
    layers = [_layer(layer) for layer in stack.layers]
    return _native.make_stack(sizes, stack.eps, stack.softmax_scale, stack.route_scale, layers)


def _layer(w: LayerWeights) -> tuple[list, list]:
    norms = [_rows(norm) for norm in (w.input_norm, w.q_a_norm, w.kv_a_norm, w.post_norm)]
    weights = (w.q_a, w.q_b, w.kv_a, w.kv_b, w.o, w.router, w.gate_up, w.down, *w.mlp)
    return norms, [_NO_WEIGHT if weight is None else _weight(weight) for weight in weights]
