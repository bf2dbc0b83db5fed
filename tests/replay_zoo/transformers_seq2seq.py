"""Encoder-decoders of texts, as transformers has them."""

from __future__ import annotations

from typing import Any

from replay_zoo.data import translations
from replay_zoo.settings import Setting
from replay_zoo.transformers_table import architecture

_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
_T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 16,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "d_ff": 64,
    "num_heads": 2,
    "vocab_size": 50,
    "decoder_start_token_id": 1,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


def _bart_like(
    name: str, model: str, head: str = "model.decoder.layers.2.final_layer_norm", **more: Any
) -> list[Setting]:
    return architecture(
        name,
        model,
        {**_BART, **more},
        translations,
        head=head,
        stack=("last:1:model.decoder.layers", "model.decoder.layers"),
    )


def _t5_like(name: str, model: str, **more: Any) -> list[Setting]:
    return architecture(
        name,
        model,
        {**_T5, **more},
        translations,
        head="decoder.final_layer_norm",
        stack=("last:1:decoder.block", "decoder.block"),
    )


SETTINGS: list[Setting] = [
    *_t5_like("t5", "T5ForConditionalGeneration"),
    *_t5_like(
        "t5-gated",
        "T5ForConditionalGeneration",
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    ),
    *_t5_like("mt5", "MT5ForConditionalGeneration"),
    *_t5_like("umt5", "UMT5ForConditionalGeneration"),
    *_t5_like(
        "longt5",
        "LongT5ForConditionalGeneration",
        local_radius=3,
        global_block_size=4,
        encoder_attention_type="transient-global",
    ),
    *_t5_like(
        "switch",
        "SwitchTransformersForConditionalGeneration",
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        router_jitter_noise=0.0,
    ),
    *_bart_like("bart", "BartForConditionalGeneration"),
    *_bart_like("mbart", "MBartForConditionalGeneration", "model.decoder.layer_norm"),
    *_bart_like("pegasus", "PegasusForConditionalGeneration"),
    *_bart_like("marian", "MarianMTModel"),
    *_bart_like(
        "m2m100",
        "M2M100ForConditionalGeneration",
        "model.decoder.layer_norm",
        decoder_layerdrop=0.3,
    ),
    *_bart_like("blenderbot", "BlenderbotForConditionalGeneration"),
    *_bart_like("blenderbot-small", "BlenderbotSmallForConditionalGeneration"),
    *_bart_like("plbart", "PLBartForConditionalGeneration"),
    *_bart_like("mvp", "MvpForConditionalGeneration"),
    *_bart_like("pegasus-x", "PegasusXForConditionalGeneration", block_size=4, num_global_tokens=2),
    *_bart_like(
        "nllb-moe",
        "NllbMoeForConditionalGeneration",
        "model.decoder.layer_norm",
        num_experts=4,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        expert_capacity=16,
    ),
    *architecture(
        "led",
        "LEDForConditionalGeneration",
        {
            **_BART,
            "attention_window": 4,
            "max_encoder_position_embeddings": 32,
            "max_decoder_position_embeddings": 32,
        },
        translations,
        head="led.decoder.layers.2.final_layer_norm",
        stack=("last:1:led.decoder.layers", "led.decoder.layers"),
    ),
    *architecture(
        "bart-classifier",
        "BartForSequenceClassification",
        {**_BART, "num_labels": 2, "classifier_dropout": 0.1},
        lambda n: _ending(translations(n)),
        head="classification_head",
        stack=("last:1:model.decoder.layers", "model.decoder.layers"),
    ),
    *architecture(
        "prophetnet",
        "ProphetNetForConditionalGeneration",
        {
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 3,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 50,
            "ngram": 2,
            "use_cache": False,
            "num_buckets": 4,
            "relative_max_distance": 8,
            "max_position_embeddings": 32,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        translations,
        head="prophetnet.decoder.layers.2.feed_forward_layer_norm",
        stack=("last:1:prophetnet.decoder.layers", "prophetnet.decoder.layers"),
    ),
]


def _ending(batch: dict[str, Any]) -> dict[str, Any]:
    """Every text ends with the token whose state is classified."""
    ids = batch["input_ids"].clone()
    ids[:, 0] = 2
    return {**batch, "input_ids": ids, "labels": batch["labels"][:, 0] % 2}
