"""Ops for CUDA: Triton kernels, and the reference for the ops that have none."""

from headspan_kernels.attention import attention_emit
from headspan_kernels.linear import linear_act
from headspan_kernels.moments import add_moments
from headspan_kernels.norm import add_layer_norm, layer_norm
from headspan_kernels.pooled import pooled_attention
from headspan_kernels.preprocess import preprocess
from headspan_kernels.reference import add_linear, attention_weights, linear

__all__ = [
    "add_layer_norm",
    "add_linear",
    "add_moments",
    "attention_emit",
    "attention_weights",
    "layer_norm",
    "linear",
    "linear_act",
    "pooled_attention",
    "preprocess",
]
