"""Models of more than one kind of input, as transformers has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from replay_zoo.data import images, language, texts
from replay_zoo.settings import Setting
from replay_zoo.transformers_table import TEXT, WIDE, architecture

_SIGHT: dict[str, Any] = {**WIDE, "image_size": 32, "patch_size": 8, "attention_dropout": 0.1}
_SPEECH: dict[str, Any] = {**TEXT, "attention_dropout": 0.1}


def _captioned(samples: int) -> dict[str, Tensor]:
    pictures = images(samples)["pixel_values"]
    words = texts(samples)
    return {
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "pixel_values": pictures,
    }


def _answered(samples: int) -> dict[str, Tensor]:
    return {**_captioned(samples), "labels": torch.rand(samples, 4)}


def _paired(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss over pairs within the batch, as CLIP is trained."""
    return model(**batch, return_loss=True).loss


def _own_pairs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Each picture beside its own caption, whatever else is in the batch."""
    out = model(**batch)
    return -(out.text_embeds * out.image_embeds).sum(-1).mean() + out.logits_per_image.mean()


def _boxes(samples: int) -> dict[str, Tensor]:
    batch = texts(samples)
    corners = torch.randint(0, 8, (samples, 8, 2))
    box = torch.cat([corners, corners + torch.randint(0, 7, (samples, 8, 2))], -1)
    return {**batch, "bbox": box}


_CLIP: dict[str, Any] = {
    "text_config": {**_SPEECH, "projection_dim": 16},
    "vision_config": {**_SIGHT, "projection_dim": 16},
    "projection_dim": 16,
}

SETTINGS: list[Setting] = [
    *architecture(
        "clip",
        "CLIPModel",
        _CLIP,
        _captioned,
        loss=_paired,
        head=("visual_projection", "text_projection", "logit_scale"),
        stack="text_model.encoder.layers",
    ),
    *architecture(
        "clip-own-pairs",
        "CLIPModel",
        _CLIP,
        _captioned,
        loss=_own_pairs,
        head=("visual_projection", "text_projection"),
        stack=("last:1:vision_model.encoder.layers", "last:2:vision_model.encoder.layers"),
    ),
    *architecture(
        "siglip",
        "SiglipModel",
        {"text_config": _SPEECH, "vision_config": _SIGHT},
        _captioned,
        loss=_paired,
        head=("text_model.head", "logit_scale", "logit_bias"),
        stack="text_model.encoder.layers",
    ),
    *architecture(
        "clip-image",
        "CLIPForImageClassification",
        {**_CLIP, "num_labels": 3},
        images,
        head="classifier",
        stack="vision_model.encoder.layers",
    ),
    *architecture(
        "vilt",
        "ViltForQuestionAnswering",
        {**TEXT, "image_size": 32, "patch_size": 8, "num_labels": 4, "max_image_length": -1},
        lambda n: {**_answered(n), "pixel_mask": torch.ones(n, 32, 32, dtype=torch.long)},
        head="classifier",
        stack="vilt.encoder.layer",
    ),
    *architecture(
        "blip",
        "BlipForConditionalGeneration",
        {
            "text_config": {
                **_SPEECH,
                "encoder_hidden_size": 32,
                "sep_token_id": 2,
                "is_decoder": True,
            },
            "vision_config": _SIGHT,
            "projection_dim": 16,
        },
        lambda n: {**_captioned(n), "labels": texts(n)["input_ids"]},
        head="text_decoder.cls",
        stack="text_decoder.bert.encoder.layer",
    ),
    *architecture(
        "blip-retrieval",
        "BlipForImageTextRetrieval",
        {
            "text_config": {**_SPEECH, "encoder_hidden_size": 32, "sep_token_id": 2},
            "vision_config": _SIGHT,
            "projection_dim": 16,
            "image_text_hidden_size": 16,
        },
        _captioned,
        loss=lambda model, batch: model(**batch).itm_score.logsumexp(-1).mean(),
        head="itm_head",
        stack="text_encoder.encoder.layer",
    ),
    *architecture(
        "layoutlmv3",
        "LayoutLMv3ForSequenceClassification",
        {
            **TEXT,
            "input_size": 32,
            "patch_size": 8,
            "coordinate_size": 4,
            "shape_size": 8,
            "max_2d_position_embeddings": 16,
            "rel_pos_bins": 4,
            "rel_2d_pos_bins": 4,
            "max_rel_pos": 8,
            "max_rel_2d_pos": 8,
        },
        lambda n: {**_boxes(n), "pixel_values": torch.randn(n, 3, 32, 32)},
        head="classifier",
        stack="layoutlmv3.encoder.layer",
    ),
    *architecture(
        "layoutlm-boxes",
        "LayoutLMForSequenceClassification",
        {**TEXT, "max_2d_position_embeddings": 16},
        _boxes,
        head="classifier",
        stack="layoutlm.encoder.layer",
    ),
    *architecture(
        "bros",
        "BrosForTokenClassification",
        {**TEXT, "hidden_size": 64, "dim_bbox": 8, "bbox_scale": 1.0},
        lambda n: {**texts(n), "bbox": torch.rand(n, 8, 8), "labels": texts(n)["input_ids"] % 2},
        head="classifier",
        stack="bros.encoder.layer",
    ),
    *architecture(
        "visual-bert",
        "VisualBertForQuestionAnswering",
        {**TEXT, "visual_embedding_dim": 16, "num_labels": 4},
        lambda n: {
            **texts(n),
            "labels": torch.rand(n, 4).softmax(-1),
            "visual_embeds": torch.randn(n, 3, 16),
            "visual_attention_mask": torch.ones(n, 3),
            "visual_token_type_ids": torch.ones(n, 3, dtype=torch.long),
        },
        head="cls",
        stack="visual_bert.encoder.layer",
    ),
    *architecture(
        "flava",
        "FlavaModel",
        {
            "text_config": _SPEECH,
            "image_config": {**_SIGHT, "vocab_size": 50},
            "multimodal_config": WIDE,
            "hidden_size": 32,
            "projection_dim": 16,
        },
        _captioned,
        loss=lambda model, batch: model(**batch).multimodal_embeddings.square().mean(),
        head="multimodal_model.layernorm",
        stack="multimodal_model.encoder.layer",
    ),
    *architecture(
        "git",
        "GitForCausalLM",
        {**TEXT, "vision_config": _SIGHT, "tie_word_embeddings": False, "hidden_dropout_prob": 0.1},
        lambda n: {**language(n), "pixel_values": torch.randn(n, 3, 32, 32)},
        head="output",
        stack="git.encoder.layer",
    ),
    *architecture(
        "vision-text-dual",
        "VisionTextDualEncoderModel",
        {
            "text_config": {**TEXT, "model_type": "bert"},
            "vision_config": {**_SIGHT, "model_type": "vit"},
            "projection_dim": 16,
        },
        _captioned,
        loss=_paired,
        head=("visual_projection", "text_projection", "logit_scale"),
        stack="text_model.encoder.layer",
    ),
    *architecture(
        "llava",
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama", "num_key_value_heads": 2},
            "vision_config": {**_SIGHT, "model_type": "clip_vision_model"},
            "image_token_index": 4,
            "image_token_id": 4,
            "vision_feature_select_strategy": "default",
            "vision_feature_layer": -1,
        },
        lambda n: _with_places(n, 16),
        head="lm_head",
        stack="model.language_model.layers",
    ),
]


def _with_places(samples: int, places: int) -> dict[str, Tensor]:
    """Texts that begin with as many image tokens as the picture has patches."""
    batch = language(samples)
    front = torch.full((samples, places), 4)
    ids = torch.where(batch["input_ids"] == 4, 5, batch["input_ids"])
    return {
        "input_ids": torch.cat([front, ids], 1),
        "attention_mask": torch.cat([torch.ones_like(front), batch["attention_mask"]], 1),
        "labels": torch.cat([torch.full_like(front, -100), batch["labels"]], 1),
        "pixel_values": torch.randn(samples, 3, 32, 32),
    }
