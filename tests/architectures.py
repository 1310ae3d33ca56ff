"""Models of many architectures of transformers, so small that they are made in a moment.

folder = save(here / "gemma2", "gemma2")     # two layers, random weights, nano's tokenizer
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from replaykit.model import loading

# The same numbers under the names of most architectures.
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
SMALL_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 512,
}
EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# What is 0.1 in the older ones.
DROPOUTS = {"attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout", "dropout_rate"}
# By model_type: its configuration.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma2": SMALL | {"final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0},
    "gemma3_text": SMALL,
    # Its layers that see images are there, and no row has one.
    "gemma3": {
        "text_config": SMALL | {"vocab_size": 1024},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 1,
        "image_token_index": 1000,
    },
    "phi3": SMALL | {"pad_token_id": 0},
    "mistral": SMALL | {"sliding_window": 16},
    "mixtral": SMALL | EXPERTS,
    # Its router is a linear layer that gives more than a matrix.
    "phimoe": SMALL | EXPERTS | {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "granite": SMALL | {"logits_scaling": 8.0},
    "cohere": SMALL | {"logit_scale": 0.0625},
    "olmo2": SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": SMALL,
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
    },
    "lfm2": SMALL | {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": SMALL
    | EXPERTS
    | LINEAR
    | {"layer_types": ["linear_attention", "full_attention"]},
    "gpt_oss": SMALL | EXPERTS | {"sliding_window": 16},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "bart": SMALL_SEQ2SEQ,
}


# Others that are made on demand, with what is changed in them.
MORE: dict[str, dict[str, Any]] = {
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 512},
}


def make(kind: str, **changes: Any) -> Any:
    """A random model of an architecture, with nano's vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tokenizer = loading.load_tokenizer("nano")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.eos_token_id, **ends}
    if kind in ("t5", "bart"):
        options["decoder_start_token_id"] = tokenizer.eos_token_id
    config = AutoConfig.for_model(kind, **options | (CONFIGS | MORE)[kind] | changes)
    for name in DROPOUTS & config.to_dict().keys():
        setattr(config, name, 0.0)
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(0)
    return loader.from_config(config)


def save(folder: Path, kind: str, **changes: Any) -> str:
    """The same as a folder, with nano's tokenizer and chat template."""
    make(kind, **changes).save_pretrained(folder)
    loading.load_tokenizer("nano").save_pretrained(folder)
    return str(folder)
