"""Models of sound, as transformers has them."""

from __future__ import annotations

from typing import Any

import torch

from replay_zoo.data import sounds
from replay_zoo.settings import Setting
from replay_zoo.transformers_table import WIDE, architecture

_WAVES: dict[str, Any] = {
    **WIDE,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 4],
    "conv_stride": [10, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "mask_time_length": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "vocab_size": 50,
}


def _wav2vec_like(name: str, model: str, base: str, **more: Any) -> list[Setting]:
    return architecture(
        name,
        model,
        {**_WAVES, **more},
        sounds,
        head=("projector", "classifier"),
        stack=f"{base}.encoder.layers",
    )


SETTINGS: list[Setting] = [
    *_wav2vec_like("wav2vec2", "Wav2Vec2ForSequenceClassification", "wav2vec2"),
    *_wav2vec_like(
        "wav2vec2-stable",
        "Wav2Vec2ForSequenceClassification",
        "wav2vec2",
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    ),
    *_wav2vec_like(
        "wav2vec2-masked",
        "Wav2Vec2ForSequenceClassification",
        "wav2vec2",
        mask_time_prob=0.5,
        layerdrop=0.1,
    ),
    *_wav2vec_like(
        "wav2vec2-conformer",
        "Wav2Vec2ConformerForSequenceClassification",
        "wav2vec2_conformer",
        conv_depthwise_kernel_size=3,
        position_embeddings_type="relative",
    ),
    *_wav2vec_like("hubert", "HubertForSequenceClassification", "hubert"),
    *_wav2vec_like("unispeech", "UniSpeechForSequenceClassification", "unispeech"),
    *_wav2vec_like("unispeech-sat", "UniSpeechSatForSequenceClassification", "unispeech_sat"),
    *_wav2vec_like(
        "wavlm", "WavLMForSequenceClassification", "wavlm", num_buckets=16, max_bucket_distance=20
    ),
    *_wav2vec_like("sew", "SEWForSequenceClassification", "sew", squeeze_factor=2),
    *_wav2vec_like(
        "data2vec-audio",
        "Data2VecAudioForSequenceClassification",
        "data2vec_audio",
        conv_pos_kernel_size=3,
    ),
    *architecture(
        "sew-d",
        "SEWDForSequenceClassification",
        {**_WAVES, "squeeze_factor": 2, "position_buckets": 4, "max_position_embeddings": 16},
        sounds,
        head=("projector", "classifier"),
        stack="sew_d.encoder.encoder.layer",
    ),
    *architecture(
        "ast",
        "ASTForAudioClassification",
        {
            **WIDE,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            "max_length": 16,
            "num_mel_bins": 8,
            "num_labels": 2,
            "hidden_dropout_prob": 0.1,
        },
        lambda n: {"input_values": torch.randn(n, 16, 8), "labels": torch.randint(0, 2, (n,))},
        head="classifier",
        stack="audio_spectrogram_transformer.layers",
    ),
    *architecture(
        "whisper",
        "WhisperForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 50,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "max_target_positions": 12,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
            "dropout": 0.1,
        },
        lambda n: {"input_features": torch.randn(n, 8, 20), "labels": torch.randint(3, 50, (n, 6))},
        head="model.decoder.layer_norm",
        stack=("last:1:model.decoder.layers", "model.decoder.layers"),
    ),
    *architecture(
        "whisper-classifier",
        "WhisperForAudioClassification",
        {
            "d_model": 32,
            "encoder_layers": 4,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 50,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "max_target_positions": 12,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "classifier_proj_size": 16,
            "use_weighted_layer_sum": True,
            "dropout": 0.1,
        },
        lambda n: {"input_features": torch.randn(n, 8, 20), "labels": torch.randint(0, 2, (n,))},
        head=("projector", "classifier", "layer_weights"),
        stack="encoder.layers",
    ),
    *architecture(
        "speech-to-text",
        "Speech2TextForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 50,
            "input_feat_per_channel": 8,
            "conv_channels": 16,
            "num_conv_layers": 1,
            "conv_kernel_sizes": [3],
            "max_source_positions": 16,
            "max_target_positions": 12,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
        },
        lambda n: {"input_features": torch.randn(n, 16, 8), "labels": torch.randint(3, 50, (n, 6))},
        head="model.decoder.layer_norm",
        stack=("last:1:model.decoder.layers", "model.decoder.layers"),
    ),
]
