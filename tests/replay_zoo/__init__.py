"""Models on which replay is tested: settings, and how to judge them."""

from __future__ import annotations

from replay_zoo import (
    convnets_attention,
    convnets_plain,
    convnets_residual,
    convnets_sequences,
    nasty_batch,
    nasty_calls,
    nasty_flow,
    nasty_layouts,
    nasty_live,
    nasty_loops,
    nasty_random,
    nasty_state,
    nasty_values,
    transformers_audio,
    transformers_decoders,
    transformers_encoders,
    transformers_experts,
    transformers_multimodal,
    transformers_patches,
    transformers_seq2seq,
    transformers_vision,
)
from replay_zoo.settings import Setting

TRANSFORMERS: list[Setting] = [
    *transformers_encoders.SETTINGS,
    *transformers_decoders.SETTINGS,
    *transformers_experts.SETTINGS,
    *transformers_seq2seq.SETTINGS,
    *transformers_vision.SETTINGS,
    *transformers_patches.SETTINGS,
    *transformers_audio.SETTINGS,
    *transformers_multimodal.SETTINGS,
]
CONVNETS: list[Setting] = [
    *convnets_residual.SETTINGS,
    *convnets_plain.SETTINGS,
    *convnets_attention.SETTINGS,
    *convnets_sequences.SETTINGS,
]
NASTY: list[Setting] = [
    *nasty_random.SETTINGS,
    *nasty_batch.SETTINGS,
    *nasty_values.SETTINGS,
    *nasty_layouts.SETTINGS,
    *nasty_state.SETTINGS,
    *nasty_loops.SETTINGS,
    *nasty_flow.SETTINGS,
    *nasty_calls.SETTINGS,
    *nasty_live.SETTINGS,
]
SETTINGS: list[Setting] = [*TRANSFORMERS, *CONVNETS, *NASTY]
