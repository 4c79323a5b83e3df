"""Public architectures from `transformers` in small configurations, and made-up tasks that each learns in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from edgedl.classes import Classes
from edgedl.core import Batch, Network, Split, Task, TensorSpec
from edgedl.own import networks
from edgedl.tasks.digits import Digits

SAMPLES: Mapping[Split, int] = {"train": 1024, "calibration": 128, "validation": 192, "test": 192}
NUM_TOKENS, LENGTH = 64, 24
"""Of the made-up language."""
NUM_MARKS = 8
"""Tokens that a text can be about: each text has some of one of them among others that mean nothing."""
NUM_TONES, NUM_VALUES = 8, 640
"""Of the made-up sounds."""


class Images(Classes):
    """Handwritten digits, enlarged and tinted: `pixel_values` (N, 3, S, S) float32, about zero mean and unit spread."""

    use: str = "benchmarks.architectures:Images"
    side: Literal[32, 64] = 32

    num_classes: ClassVar[int] = 10

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"pixel_values": TensorSpec((3, self.side, self.side))}

    def arrays(self, split: Split) -> Batch:
        return _images(split, self.side)


@lru_cache(maxsize=8)
def _images(split: Split, side: int) -> Batch:
    digits = Digits().arrays(split)
    small = digits["image"][: SAMPLES[split], 0, 1::3, 1::3]
    places = (np.arange(side) * small.shape[1]) // side
    large = 2 * small[:, places][:, :, places] - 0.5
    tints = np.random.default_rng(0).uniform(0.7, 1.3, (len(large), 3, 1, 1)).astype(np.float32)
    return {"pixel_values": np.ascontiguousarray(large[:, None] * tints), "label": digits["label"][: SAMPLES[split]]}


class Tokens(Classes):
    """Texts about one of eight things: `input_ids` (N, 24) int64."""

    use: str = "benchmarks.architectures:Tokens"

    num_classes: ClassVar[int] = NUM_MARKS

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"input_ids": TensorSpec((LENGTH,), "int64")}

    def arrays(self, split: Split) -> Batch:
        dice, num = _dice(split)
        labels = dice.integers(NUM_MARKS, size=num)
        # Tokens 0 to 3 are left to padding and the like; then come the marks, then words that mean nothing.
        words = dice.integers(4 + NUM_MARKS, NUM_TOKENS, (num, LENGTH))
        marked = dice.random((num, LENGTH)).argsort(axis=1) < dice.integers(2, 6, (num, 1))
        return _first({"input_ids": np.where(marked, 4 + labels[:, None], words), "label": labels}, split)


class Sounds(Classes):
    """Tones in noise, one of eight: `input_values` (N, 640) float32 or, as `features`, a picture (N, 16, 40) of it."""

    use: str = "benchmarks.architectures:Sounds"
    features: bool = False

    num_classes: ClassVar[int] = NUM_TONES

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        if self.features:
            return {"input_features": TensorSpec((16, NUM_VALUES // 16))}
        return {"input_values": TensorSpec((NUM_VALUES,))}

    def arrays(self, split: Split) -> Batch:
        dice, num = _dice(split)
        labels, times = dice.integers(NUM_TONES, size=num), np.arange(NUM_VALUES)
        phases = 2 * np.pi * (dice.random((num, 1)) + np.outer(0.02 * 1.3**labels, times))
        waves = (np.sin(phases) + 0.3 * dice.standard_normal((num, NUM_VALUES))).astype(np.float32)
        if not self.features:
            return _first({"input_values": waves, "label": labels}, split)
        frames = np.abs(np.fft.rfft(waves.reshape(num, NUM_VALUES // 16, 16 * 1), n=30))
        picture = np.log(frames + 0.1).astype(np.float32).transpose(0, 2, 1)
        return _first({"input_features": np.ascontiguousarray(picture), "label": labels}, split)


def _dice(split: Split) -> tuple[np.random.Generator, int]:
    """What samples are drawn with, and how many; calibration takes the first of those that train."""
    drawn: Split = "train" if split == "calibration" else split
    return np.random.default_rng({"train": 1, "validation": 2, "test": 3}[drawn]), SAMPLES[drawn]


def _first(arrays: Batch, split: Split) -> Batch:
    return {name: values[: SAMPLES[split]] for name, values in arrays.items()}


class Headed(nn.Module):
    """A network that answers each place of a sequence, and a dense layer on the mean of its answers."""

    def __init__(self, body: nn.Module, width: int, num_classes: int, name: str) -> None:
        super().__init__()
        self.body, self.head, self.name = body, nn.Linear(width, num_classes), name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The one input of the body, which takes it by name -> logits (N, classes)."""
        states = self.body(**{self.name: inputs}).last_hidden_state
        logits: torch.Tensor = self.head(states.mean(1))
        return logits


@dataclass(frozen=True)
class Architecture:
    """A class of `transformers` with its configuration, what it learns, and for how long."""

    name: str
    """The class."""
    config: Mapping[str, Any]
    task: Task
    kind: str
    epochs: int = 6
    lr: float = 2e-3
    width: int | None = None
    """Of what it answers at each place, where a dense layer is put on the mean of these."""
    build: Callable[[Any], Any] | None = field(default=None, repr=False)
    """What picks the part that is meant, such as an encoder."""

    def made(self) -> nn.Module:
        """The network with weights by chance."""
        import transformers

        kind = getattr(transformers, self.name)
        settings = {} if self.width else {"num_labels": self.task.num_classes}  # type: ignore[attr-defined]
        net: nn.Module = kind(kind.config_class(**self.config, **settings))
        net = self.build(net) if self.build else net
        for norm in net.modules():  # some keep the statistics of the last batch alone, or nearly
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.momentum = 0.1
        if self.width is None:
            return net
        (name,) = self.task.inputs
        return Headed(net, self.width, self.task.num_classes, name)  # type: ignore[attr-defined]


class Public(Network):
    """One of `ARCHITECTURES`, as a person would hand it over."""

    use: str = "benchmarks.architectures:Public"
    name: str

    def build(self, task: Task) -> nn.Module:
        """The network with weights by chance; a tuple of the task's outputs."""
        return networks.adapted(ARCHITECTURES[self.name].made(), task)


IMAGES, LARGE, TOKENS, WAVES, FEATURES = Images(), Images(side=64), Tokens(), Sounds(), Sounds(features=True)
VIT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512, "image_size": 32,
       "patch_size": 4}  # fmt: skip
BERT = {"vocab_size": NUM_TOKENS, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 512, "max_position_embeddings": 32}  # fmt: skip
LLAMA = BERT | {"num_key_value_heads": 2, "use_cache": False}


def _classifier(name: str, config: Mapping[str, Any], task: Task, kind: str, **others: Any) -> Architecture:
    return Architecture(f"{name}Classification", config, task, kind, **others)


ARCHITECTURES: dict[str, Architecture] = {
    # Convolutional.
    "resnet": _classifier(
        "ResNetForImage",
        {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"},
        IMAGES, "convolutions",
    ),
    "resnet-bottleneck": _classifier(
        "ResNetForImage",
        {"embedding_size": 32, "hidden_sizes": [64, 128, 256], "depths": [1, 1, 1], "layer_type": "bottleneck"},
        IMAGES, "convolutions",
    ),
    "regnet": _classifier(
        "RegNetForImage",
        {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], "groups_width": 16},
        IMAGES, "convolutions",
    ),
    "bit": _classifier(
        "BitForImage",
        {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 1], "num_groups": 8},
        IMAGES, "convolutions",
    ),
    "mobilenet-v1": _classifier(
        "MobileNetV1ForImage", {"image_size": 64, "depth_multiplier": 0.25, "min_depth": 16,
        "classifier_dropout_prob": 0.0, "initializer_range": 0.2}, LARGE, "depthwise", epochs=10, lr=5e-3,
    ),
    "mobilenet-v2": _classifier(
        "MobileNetV2ForImage",
        {
            "image_size": 64, "depth_multiplier": 0.5, "min_depth": 8, "finegrained_output": False,
            "classifier_dropout_prob": 0.0,
        },
        LARGE, "depthwise",
    ),
    "efficientnet": _classifier(
        "EfficientNetForImage",
        {
            "image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 1.0, "hidden_dim": 256,
            "in_channels": [32, 160, 240, 320], "out_channels": [160, 240, 320, 480], "kernel_sizes": [3, 3, 5, 3],
            "strides": [1, 2, 2, 1], "num_block_repeats": [1, 1, 1, 1], "expand_ratios": [1, 4, 4, 4],
            "depthwise_padding": [], "initializer_range": 0.2, "dropout_rate": 0.0,
        },
        LARGE, "depthwise",
    ),
    "convnext": _classifier(
        "ConvNextForImage", {"hidden_sizes": [32, 64, 96], "depths": [1, 1, 1], "num_stages": 3}, LARGE, "depthwise",
    ),
    "convnext-v2": _classifier(
        "ConvNextV2ForImage", {"hidden_sizes": [32, 64, 96], "depths": [1, 1, 1], "num_stages": 3}, LARGE, "depthwise",
    ),
    "poolformer": _classifier(
        "PoolFormerForImage",
        {
            "hidden_sizes": [32, 64], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3],
            "strides": [4, 2], "padding": [2, 1],
        },
        LARGE, "pooling",
    ),
    "focalnet": _classifier(
        "FocalNetForImage",
        {
            "image_size": 32, "patch_size": 4, "embed_dim": 48, "hidden_sizes": [48, 96], "depths": [1, 1],
            "focal_levels": [2, 2], "focal_windows": [3, 3],
        },
        IMAGES, "focal modulation", epochs=12,
    ),
    "hgnet-v2": _classifier(
        "HGNetV2ForImage",
        {
            "embedding_size": 32, "depths": [1, 1], "hidden_sizes": [64, 128], "stem_channels": [3, 32, 32],
            "stage_in_channels": [32, 64], "stage_mid_channels": [32, 32], "stage_out_channels": [64, 128],
            "stage_num_blocks": [1, 1], "stage_downsample": [False, True], "stage_light_block": [False, True],
            "stage_kernel_size": [3, 3], "stage_numb_of_layers": [2, 2],
        },
        IMAGES, "convolutions",
    ),
    # Images as tokens.
    "vit": _classifier("ViTForImage", VIT, IMAGES, "attention"),
    "deit": _classifier("DeiTForImage", VIT, IMAGES, "attention"),
    "beit": _classifier("BeitForImage", VIT | {"use_relative_position_bias": True}, IMAGES, "attention"),
    "dinov2": _classifier(
        "Dinov2ForImage", {key: value for key, value in VIT.items() if key != "intermediate_size"}, IMAGES, "attention",
    ),
    "swin": _classifier(
        "SwinForImage",
        {"image_size": 32, "patch_size": 4, "embed_dim": 48, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        IMAGES, "windows",
    ),
    "segformer": _classifier(
        "SegformerForImage",
        {
            "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [32, 64],
            "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [4, 4],
        },
        IMAGES, "attention", epochs=12,
    ),
    "pvt": _classifier(
        "PvtForImage",
        {
            "image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "sequence_reduction_ratios": [2, 1],
            "hidden_sizes": [32, 64], "patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2],
            "mlp_ratios": [4, 4],
        },
        IMAGES, "attention", epochs=12,
    ),
    "mobilevit": _classifier(
        "MobileViTForImage",
        {
            "image_size": 64, "patch_size": 2, "hidden_sizes": [48, 64, 80],
            "neck_hidden_sizes": [16, 16, 24, 24, 48, 64, 128],
            "num_attention_heads": 4, "expand_ratio": 2.0, "hidden_dropout_prob": 0.0, "initializer_range": 0.1,
        },
        LARGE, "convolutions and attention",
    ),
    "levit": _classifier(
        "LevitForImage",
        {
            "image_size": 64, "hidden_sizes": [64, 96], "num_attention_heads": [2, 3], "depths": [1, 1],
            "key_dim": [16, 16], "mlp_ratio": [2, 2], "attention_ratio": [2, 2],
            "down_ops": [["Subsample", 16, 4, 4, 2, 2], [""]],
        },
        LARGE, "convolutions and attention",
    ),
    "cvt": _classifier(
        "CvtForImage",
        {
            "patch_sizes": [7, 3], "patch_stride": [4, 2], "patch_padding": [2, 1], "embed_dim": [32, 64],
            "num_heads": [1, 2], "depth": [1, 2], "mlp_ratio": [4.0, 4.0], "attention_drop_rate": [0.0, 0.0],
            "drop_rate": [0.0, 0.0], "drop_path_rate": [0.0, 0.0], "qkv_bias": [True, True],
            "cls_token": [False, True], "qkv_projection_method": ["dw_bn", "dw_bn"], "kernel_qkv": [3, 3],
            "padding_kv": [1, 1], "stride_kv": [2, 2], "padding_q": [1, 1], "stride_q": [1, 1],
        },
        IMAGES, "convolutions and attention",
    ),
    # Texts.
    "bert": _classifier("BertForSequence", BERT, TOKENS, "encoder"),
    "distilbert": _classifier(
        "DistilBertForSequence",
        {
            "vocab_size": NUM_TOKENS, "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 512,
            "max_position_embeddings": 32,
        },
        TOKENS, "encoder",
    ),
    "roberta": _classifier(
        "RobertaForSequence", BERT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}, TOKENS, "encoder",
    ),
    "albert": _classifier("AlbertForSequence", BERT | {"embedding_size": 64}, TOKENS, "encoder"),
    "electra": _classifier("ElectraForSequence", BERT | {"embedding_size": 64}, TOKENS, "encoder"),
    "mobilebert": _classifier(
        "MobileBertForSequence",
        BERT | {"embedding_size": 64, "intra_bottleneck_size": 64, "num_feedforward_networks": 2,
        "initializer_range": 0.05},
        TOKENS, "encoder", epochs=12,
    ),
    "squeezebert": _classifier("SqueezeBertForSequence", BERT | {"embedding_size": 128}, TOKENS, "encoder"),
    "gpt2": Architecture(
        "GPT2Model",
        {
            "vocab_size": NUM_TOKENS, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False,
            "bos_token_id": 0, "eos_token_id": 0,
        },
        TOKENS, "decoder", width=128,
    ),
    "opt": Architecture(
        "OPTModel",
        {
            "vocab_size": NUM_TOKENS, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "ffn_dim": 512,
            "max_position_embeddings": 32, "word_embed_proj_dim": 128, "use_cache": False,
        },
        TOKENS, "decoder", width=128,
    ),
    "llama": Architecture("LlamaModel", LLAMA, TOKENS, "decoder", width=128),
    "qwen2": Architecture("Qwen2Model", LLAMA, TOKENS, "decoder", width=128),
    "t5-encoder": Architecture(
        "T5EncoderModel",
        {
            "vocab_size": NUM_TOKENS, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4,
            "use_cache": False,
        },
        TOKENS, "encoder", width=128,
    ),
    # Sounds.
    "wav2vec2": _classifier(
        "Wav2Vec2ForSequence",
        {
            "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512,
            "conv_dim": (32, 64, 64), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "classifier_proj_size": 64,
            "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0,
        },
        WAVES, "convolutions and attention",
    ),
    "whisper-encoder": Architecture(
        "WhisperModel",
        {
            "vocab_size": NUM_TOKENS, "num_mel_bins": 16, "max_source_positions": NUM_VALUES // 32, "d_model": 128,
            "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_layers": 1,
            "decoder_attention_heads": 4, "decoder_ffn_dim": 512, "pad_token_id": 0, "bos_token_id": 0,
            "eos_token_id": 0, "decoder_start_token_id": 0,
        },
        FEATURES, "convolutions and attention", width=128, build=lambda net: net.encoder,
    ),
}  # fmt: skip
