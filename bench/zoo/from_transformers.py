"""transformers: tiny random configurations of text, vision, audio and multimodal architectures."""

import functools
from collections.abc import Iterator
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig

from zoo import Specimen, feeds
from zoo.feeds import IMAGE_TOKEN, SIDE, WORDS

_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_TEXT = _TINY | {"vocab_size": WORDS, "max_position_embeddings": 48, "pad_token_id": 0, "bos_token_id": 1}
_TEXT |= {"eos_token_id": 2, "tie_word_embeddings": False}
_DECODER = _TEXT | {"num_key_value_heads": 2, "head_dim": 8}
_MIXED = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_PAIR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": WORDS, "max_position_embeddings": 48,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "vocab_size": WORDS, "decoder_start_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_IMAGE = _TINY | {"image_size": SIDE, "patch_size": 8, "num_channels": 3}
_STAGES = {
    "image_size": SIDE, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [2, 2, 4], "window_size": 2, "patch_size": 4
}  # fmt: skip
_SOUND = _TINY | {
    "conv_dim": (16, 16), "conv_kernel": (8, 4), "conv_stride": (4, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "vocab_size": 20,
}  # fmt: skip
_CLIP_TEXT = _TEXT | {"projection_dim": 16}
_CLIP_IMAGE = _IMAGE | {"projection_dim": 16}

# (task, feed): {model type: configuration}
# fmt: off
_TABLE: dict[tuple[str, feeds.Feed], dict[str, dict[str, Any]]] = {
    # Text encoders
    ("SequenceClassification", feeds.masked_words): {
        "bert": _TEXT,
        "roberta": _TEXT,
        "distilbert": _TEXT | {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4},
        "albert": _TEXT | {"embedding_size": 16},
        "electra": _TEXT | {"embedding_size": 16},
        "deberta": _TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "deberta-v2": _TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "mpnet": _TEXT,
        "mobilebert": _TEXT | {"embedding_size": 16, "intra_bottleneck_size": 16},
        "squeezebert": _TEXT | {"embedding_size": 32},
        "convbert": _TEXT | {"embedding_size": 16},
        "funnel":
            {"vocab_size": WORDS, "block_sizes": [1, 2], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
        "nystromformer": _TEXT | {"segment_means_seq_len": 7, "num_landmarks": 7},
        "rembert": _TEXT | {"input_embedding_size": 16},
        "roformer": _TEXT,
        "esm": _TEXT | {"mask_token_id": 3, "position_embedding_type": "rotary"},
        "longformer": _TEXT | {"attention_window": 4},
        "big_bird": _TEXT | {"attention_type": "original_full"},
        "modernbert": _TEXT,
        "xlnet": {"vocab_size": WORDS, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48},
        "xlm": {"vocab_size": WORDS, "emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 48},
        "layoutlm": _TEXT,
        "nomic_bert": _TEXT,
        "llama": _DECODER,
    },
    ("MaskedLM", feeds.words): {
        "bert": _TEXT,
    },
    ("SequenceClassification", feeds.words): {
        "fnet": _TEXT,
    },
    ("SequenceClassification", feeds.long_words): {
        "canine": _TINY | {"max_position_embeddings": 64, "local_transformer_stride": 8},
    },
    # Text decoders
    ("CausalLM", feeds.masked_words): {
        "gpt2":
            {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": WORDS, "n_positions": 48, "tie_word_embeddings":
            False},
        "gpt_neo":
            {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS, "max_position_embeddings": 48,
            "attention_types": [[["global", "local"], 1]], "window_size": 4, "tie_word_embeddings": False},
        "gpt_neox": _TEXT,
        "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": WORDS, "n_positions": 48, "rotary_dim": 4},
        "opt": _TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": WORDS, "tie_word_embeddings": False},
        "falcon": _TEXT,
        "mpt":
            {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": WORDS, "max_seq_len": 48,
            "tie_word_embeddings": False},
        "llama": _DECODER,
        "mistral": _DECODER | {"sliding_window": 4},
        "mixtral": _DECODER | _MIXED,
        "qwen2": _DECODER,
        "gemma": _DECODER,
        "gemma2": _DECODER | {"sliding_window": 4},
        "gemma3_text": _DECODER | {"sliding_window": 4},
        "phi": _DECODER,
        "phi3": _DECODER,
        "cohere": _DECODER,
        "olmo2": _DECODER,
        "stablelm": _DECODER,
    },
    ("CausalLM", feeds.words): {
        "gpt2+tied": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": WORDS, "n_positions": 48},
        "qwen3": _DECODER,
        "qwen3_moe": _DECODER | _MIXED,
        "mamba":
            {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": WORDS, "tie_word_embeddings":
            False},
        "mamba2":
            {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2,
            "chunk_size": 4, "vocab_size": WORDS, "tie_word_embeddings": False},
        "recurrent_gemma":
            _DECODER | {"lru_width": 32, "attention_window_size": 4, "block_types": ["recurrent", "recurrent",
            "attention"]},
        "rwkv":
            {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
            "vocab_size": WORDS, "context_length": 32},
    },
    # Text to text
    ("Seq2SeqLM", feeds.pairs): {
        "t5": _T5,
        "mt5": _T5,
        "bart": _PAIR,
        "mbart": _PAIR,
        "marian": _PAIR,
        "pegasus": _PAIR,
        "m2m_100": _PAIR,
        "blenderbot": _PAIR,
        "led":
            _PAIR | {"attention_window": 4, "max_encoder_position_embeddings": 48, "max_decoder_position_embeddings":
            48},
        "prophetnet":
            {"hidden_size": 32, "vocab_size": WORDS, "num_encoder_layers": 2, "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "max_position_embeddings": 48, "tie_word_embeddings": False},
        "switch_transformers":
            _T5 | {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    },
    # Images
    ("ImageClassification", feeds.images): {
        "vit": _IMAGE,
        "beit": _IMAGE | {"use_relative_position_bias": True},
        "dinov2": _IMAGE,
        "swin": _STAGES,
        "swinv2": _STAGES,
        "convnext": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 2, 1]},
        "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic"},
        "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8},
        "mobilenet_v2": {"image_size": SIDE, "depth_multiplier": 0.35},
        "mobilevit":
            {"image_size": SIDE, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]},
        "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
        "segformer":
            {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16},
        "pvt":
            {"image_size": SIDE, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1,
            2, 2, 4]},
    },
    ("DeiTForImageClassification", feeds.images): {
        "deit": _IMAGE,
    },
    ("SemanticSegmentation", feeds.images): {
        "segformer":
            {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16},
    },
    ("LevitForImageClassification", feeds.large_images): {
        "levit":
            {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8]},
    },
    ("DepthEstimation", feeds.images): {
        "dpt":
            _IMAGE | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16,
            16], "fusion_hidden_size": 16, "is_hybrid": False},
    },
    ("ObjectDetection", feeds.images): {
        "yolos": _IMAGE | {"image_size": [SIDE, SIDE], "num_detection_tokens": 5},
        "detr":
            {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "backbone_config":
            {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "out_features":
            ["stage2"]}, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 5},
    },
    ("PreTraining", feeds.images): {
        "vit_mae":
            _IMAGE | {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 48},
    },
    # Sound
    ("AudioClassification", feeds.waves): {
        "wav2vec2": _SOUND,
        "hubert": _SOUND,
        "wavlm": _SOUND,
        "unispeech": _SOUND,
        "sew": _SOUND | {"squeeze_factor": 2},
        "data2vec-audio": _SOUND | {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2},
    },
    ("CTC", feeds.waves): {
        "wav2vec2": _SOUND,
    },
    ("AudioClassification", feeds.turned_spectra): {
        "audio-spectrogram-transformer":
            _TINY | {"patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 24, "num_mel_bins": 16},
    },
    ("SpeechSeq2Seq", feeds.spectra_and_targets): {
        "whisper": _PAIR | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20},
    },
    ("AudioClassification", feeds.spectra): {
        "whisper": _PAIR | {"num_mel_bins": 16, "max_source_positions": 20, "classifier_proj_size": 16},
    },
    # Several kinds at once
    ("ZeroShotImageClassification", feeds.images_and_words): {
        "clip": {"text_config": _CLIP_TEXT, "vision_config": _CLIP_IMAGE, "projection_dim": 16},
        "siglip": {"text_config": _TEXT | {"projection_size": 32}, "vision_config": _IMAGE},
    },
    ("VisualQuestionAnswering", feeds.images_and_pairs): {
        "blip":
            {"text_config": _TEXT | {"encoder_hidden_size": 32}, "vision_config": _IMAGE, "projection_dim": 16,
            "image_text_hidden_size": 16},
    },
    ("VisualQuestionAnswering", feeds.images_and_words): {
        "vilt": _TEXT | _IMAGE | {"num_labels": 5, "max_image_length": -1},
    },
    ("CausalLM", feeds.images_and_words): {
        "git": _TEXT | {"vision_config": _IMAGE},
    },
    ("ImageTextToText", feeds.dialogues): {
        "llava":
            {"text_config": _DECODER | {"model_type": "llama"}, "vision_config": _CLIP_IMAGE | {"model_type":
            "clip_vision_model"}, "image_token_index": IMAGE_TOKEN, "image_token_id": IMAGE_TOKEN,
            "vision_feature_layer": -1},
    },
    ("ImageTextToText", feeds.typed_dialogues): {
        "paligemma":
            {"text_config": _DECODER | {"model_type": "gemma"}, "vision_config": _IMAGE | {"model_type":
            "siglip_vision_model", "vision_use_head": False}, "projection_dim": 32, "image_token_index": IMAGE_TOKEN,
            "image_token_id": IMAGE_TOKEN},
    },
    ("ImageTextToText", feeds.images_and_targets): {
        "vision-encoder-decoder":
            {"encoder": _IMAGE | {"model_type": "vit"}, "decoder": _TEXT | {"model_type": "bert", "is_decoder": True,
            "add_cross_attention": True}},
    },
    ("Model", feeds.sounds_and_words): {
        "clap":
            {"text_config": _TEXT | {"projection_dim": 16}, "audio_config": {"spec_size": 32, "num_mel_bins": 8,
            "patch_size": 4, "patch_stride": 4, "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1],
            "num_attention_heads": [2, 2], "num_hidden_layers": 2, "window_size": 2, "projection_dim": 16,
            "enable_fusion": False}, "projection_dim": 16},
    },
}
# fmt: on


def specimens() -> Iterator[Specimen]:
    """List every entry of the table, as `transformers/bert.MaskedLM`."""
    for (task, feed), entries in _TABLE.items():
        for name, options in entries.items():
            make = functools.partial(_build, task, name.partition("+")[0], options)
            yield Specimen(f"transformers/{name}.{task}", make, feed)


def _build(task: str, kind: str, options: dict[str, Any]) -> nn.Module:
    transformers.logging.set_verbosity_error()
    config = AutoConfig.for_model(kind, **{"num_labels": 5} | options)
    if "For" in task:  # a class of its own
        return getattr(transformers, task)(config)
    return getattr(transformers, "AutoModel" if task == "Model" else f"AutoModelFor{task}").from_config(config)
