"""Models of pictures as patches of one size, as transformers has them."""

from __future__ import annotations

from typing import Any

from replay_zoo.data import images
from replay_zoo.settings import Setting
from replay_zoo.transformers_table import WIDE, architecture, logits_loss

_PATCHES: dict[str, Any] = {
    **WIDE,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
    "hidden_dropout_prob": 0.1,
}


def _vit_like(name: str, model: str, stack: str, **more: Any) -> list[Setting]:
    return architecture(name, model, {**_PATCHES, **more}, images, head="classifier", stack=stack)


SETTINGS: list[Setting] = [
    *_vit_like("vit", "ViTForImageClassification", "vit.layers"),
    *_vit_like("deit", "DeiTForImageClassification", "deit.layers"),
    *architecture(
        "deit-distilled",
        "DeiTForImageClassificationWithTeacher",
        _PATCHES,
        images,
        head=("cls_classifier", "distillation_classifier"),
        stack="deit.layers",
        loss=logits_loss,
    ),
    *_vit_like(
        "beit",
        "BeitForImageClassification",
        "beit.layers",
        use_relative_position_bias=True,
        drop_path_rate=0.2,
    ),
    *_vit_like(
        "data2vec-vision",
        "Data2VecVisionForImageClassification",
        "data2vec_vision.encoder.layer",
        use_shared_relative_position_bias=True,
    ),
    *_vit_like(
        "dinov2", "Dinov2ForImageClassification", "dinov2.encoder.layer", drop_path_rate=0.2
    ),
    *_vit_like(
        "dinov2-registers",
        "Dinov2WithRegistersForImageClassification",
        "dinov2_with_registers.encoder.layer",
    ),
    *_vit_like("vit-msn", "ViTMSNForImageClassification", "vit.layers"),
    *_vit_like("ijepa", "IJepaForImageClassification", "ijepa.layers"),
    *architecture(
        "swin",
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 2, 1],
            "num_heads": [1, 2, 2],
            "window_size": 4,
            "num_labels": 3,
        },
        images,
        head="classifier",
        stack="swin.encoder.layers",
    ),
    *architecture(
        "swinv2",
        "Swinv2ForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 2, 1],
            "num_heads": [1, 2, 2],
            "window_size": 4,
            "num_labels": 3,
        },
        images,
        head="classifier",
        stack="swinv2.encoder.layers",
    ),
    *architecture(
        "donut-swin",
        "DonutSwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [2, 2],
            "num_heads": [1, 2],
            "window_size": 4,
            "num_labels": 3,
        },
        images,
        head="classifier",
        stack=("last:1:donut.encoder.layers.1.blocks", "donut.encoder.layers.1"),
    ),
    *architecture(
        "focalnet",
        "FocalNetForImageClassification",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 2],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
            "num_labels": 3,
        },
        images,
        head="classifier",
        stack=("last:1:focalnet.encoder.stages.1.layers", "focalnet.encoder.stages.1"),
    ),
    *architecture(
        "hiera",
        "HieraForImageClassification",
        {
            "image_size": [32, 32],
            "patch_kernel": [7, 7],
            "patch_stride": [4, 4],
            "patch_padding": [3, 3],
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "query_stride": [2, 2],
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
            "num_query_pool": 1,
            "num_labels": 3,
        },
        images,
        head="classifier",
        stack=("last:1:hiera.encoder.stages", "hiera.encoder.stages"),
    ),
    *architecture(
        "imagegpt",
        "ImageGPTForImageClassification",
        {
            "n_embd": 32,
            "n_layer": 4,
            "n_head": 2,
            "vocab_size": 51,
            "n_positions": 16,
            "num_labels": 3,
        },
        lambda n: _pixels(n),
        head="score",
        stack="transformer.h",
    ),
    *architecture(
        "siglip-image",
        "SiglipForImageClassification",
        {
            "vision_config": {**WIDE, "image_size": 32, "patch_size": 8, "attention_dropout": 0.1},
            "num_labels": 3,
        },
        images,
        head="classifier",
        stack="vision_model.encoder.layers",
    ),
    *architecture(
        "dpt",
        "DPTForSemanticSegmentation",
        {
            **_PATCHES,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "use_batch_norm_in_fusion_residual": True,
            "reassemble_factors": [4, 2, 1, 0.5],
            "auxiliary_loss_weight": 0.4,
        },
        lambda n: _masked(images(n)),
        head="head",
        stack=("neck", "last:2:dpt.encoder.layer"),
    ),
]


def _masked(batch: dict[str, Any]) -> dict[str, Any]:
    """A class for every point of the picture instead of one for all."""
    labels = (batch["pixel_values"].sum(1) > 0).long()
    return {**batch, "labels": labels}


def _pixels(samples: int) -> dict[str, Any]:
    import torch

    return {
        "input_ids": torch.randint(0, 50, (samples, 16)),
        "labels": torch.randint(0, 3, (samples,)),
    }
