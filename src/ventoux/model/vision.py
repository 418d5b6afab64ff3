"""The Pixtral vision tower, the patch merger and the projector into the decoder's width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ventoux.config import VisionConfig
from ventoux.model.layers import GatedMLP, Linear, RMSNorm
from ventoux.model.rope import image_angles
from ventoux.ops.spec import Operators

Tensor = torch.Tensor


class VisionAttention(nn.Module):
    """Bidirectional attention within each image; q and k rows rotate in pairs (2k, 2k+1), as in native files."""

    def __init__(self, config: VisionConfig, ops: Operators):
        super().__init__()
        self.ops = ops
        self.heads = (config.num_attention_heads, config.head_dim)
        inner = config.num_attention_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, inner, ops)
        self.k_proj = Linear(config.hidden_size, inner, ops)
        self.v_proj = Linear(config.hidden_size, inner, ops)
        self.o_proj = Linear(inner, config.hidden_size, ops)

    def forward(self, x_TD: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, lengths: tuple[int, ...]) -> Tensor:
        q_THR = self.ops.rope(self.q_proj(x_TD).unflatten(-1, self.heads), cos_TR2, sin_TR2)
        k_THR = self.ops.rope(self.k_proj(x_TD).unflatten(-1, self.heads), cos_TR2, sin_TR2)
        v_THR = self.v_proj(x_TD).unflatten(-1, self.heads)
        out_THR = self.ops.packed_attention(q_THR, k_THR, v_THR, lengths, self.heads[1] ** -0.5, False)
        return self.o_proj(out_THR.flatten(1))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig, ops: Operators):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.attention = VisionAttention(config, ops)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.feed_forward = GatedMLP(config.hidden_size, config.intermediate_size, ops)

    def forward(self, x_TD: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, lengths: tuple[int, ...]) -> Tensor:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), cos_TR2, sin_TR2, lengths)
        return x_TD + self.feed_forward(self.ffn_norm(x_TD))


class PatchConv(nn.Module):
    """A convolution whose kernel equals its stride, as one product over unfolded patches."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        size = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.num_channels, size, size))

    def forward(self, pixels_CHW: Tensor) -> Tensor:
        size = self.weight.shape[-1]
        patches_XT = F.unfold(pixels_CHW.unsqueeze(0), size, stride=size).squeeze(0)
        return F.linear(patches_XT.T, self.weight.flatten(1))


class VisionTransformer(nn.Module):
    def __init__(self, config: VisionConfig, ops: Operators):
        super().__init__()
        self.layers = nn.ModuleList(VisionBlock(config, ops) for _ in range(config.num_hidden_layers))


class VisionTower(nn.Module):
    """Images in (each [3, H, W], sides multiples of the patch size), patch states out, raster order, images packed.

    Norms: one before the blocks, none after the last.
    """

    def __init__(self, config: VisionConfig, ops: Operators):
        super().__init__()
        self.config = config
        self.patch_conv = PatchConv(config)
        self.ln_pre = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.transformer = VisionTransformer(config, ops)

    def grid(self, pixels_CHW: Tensor) -> tuple[int, int]:
        return pixels_CHW.shape[1] // self.config.patch_size, pixels_CHW.shape[2] // self.config.patch_size

    def forward(self, images: list[Tensor]) -> Tensor:
        cfg = self.config
        x_TD = self.ln_pre(torch.cat([self.patch_conv(image) for image in images]))
        grids = [self.grid(image) for image in images]
        angles = torch.cat([image_angles(*grid, cfg.head_dim, cfg.rope_theta) for grid in grids]).to(x_TD.device)
        lengths = tuple(rows * cols for rows, cols in grids)
        cos_TR2, sin_TR2 = angles.cos(), angles.sin()
        for layer in self.transformer.layers:
            x_TD = layer(x_TD, cos_TR2, sin_TR2, lengths)
        return x_TD


class PatchMerger(nn.Module):
    """Each 2 x 2 group of patches becomes one row; within a row channels come first: channel * 4 + dy * 2 + dx."""

    def __init__(self, config: VisionConfig, ops: Operators):
        super().__init__()
        self.merge = config.spatial_merge_size
        self.merging_layer = Linear(config.hidden_size * self.merge**2, config.hidden_size, ops)

    def forward(self, x_TD: Tensor, rows: int, cols: int) -> Tensor:
        m = self.merge
        x = x_TD.unflatten(0, (rows // m, m, cols // m, m))
        merged_TX = x.permute(0, 2, 4, 1, 3).flatten(2).flatten(0, 1)
        return self.merging_layer(merged_TX)


class Projector(nn.Module):
    """norm -> merge -> linear -> GELU (erf) -> linear. The norm's eps follows the native stack (1e-5)."""

    def __init__(self, config: VisionConfig, text_hidden_size: int, ops: Operators):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.patch_merger = PatchMerger(config, ops)
        self.linear_1 = Linear(config.hidden_size, text_hidden_size, ops)
        self.linear_2 = Linear(text_hidden_size, text_hidden_size, ops)

    def forward(self, x_TD: Tensor, grids: list[tuple[int, int]]) -> Tensor:
        lengths = [rows * cols for rows, cols in grids]
        images = self.norm(x_TD).split(lengths)
        merged = torch.cat([self.patch_merger(x, *grid) for x, grid in zip(images, grids, strict=True)])
        return self.linear_2(F.gelu(self.linear_1(merged)))
