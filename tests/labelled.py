"""Tiny text classifiers, random but reproducible, and small texts with labels.

folder = classifier(tmp_path, "Bert", ["World", "Sports"])
write(tmp_path / "news.jsonl", NEWS)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TOPICS = {
    "World": "the minister of the country met the president for peace talks after the war",
    "Sports": "the team won the match and the coach praised the player for the goal",
    "Business": "the company said its profit and its shares rose on the market this quarter",
    "Tech": "the software of the new computer is updated on the internet by its chip maker",
}
FINDINGS = {
    "yes": "the drug does help these patients and the trial shows a clear benefit of therapy",
    "no": "no effect of any dose was found and all who took pills felt worse than before",
    "maybe": "it could work but results remain unclear and more studies are needed on this",
}
PLACES = "Oslo Lima Rome Cairo Delhi Quito Accra Tunis Paris Seoul Doha Bern Riga Baku".split()
WORDS = sorted(
    {w for text in (*TOPICS.values(), *FINDINGS.values()) for w in text.split()} | {*PLACES, "in"}
)
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
HIDDEN: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SIZES: dict[str, dict[str, Any]] = {
    "Bert": HIDDEN,
    "Roberta": HIDDEN | {"max_position_embeddings": 66, "type_vocab_size": 1},
    "DebertaV2": HIDDEN
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "ModernBert": HIDDEN | {"cls_token_id": 1, "sep_token_id": 2},
    "Llama": HIDDEN | {"num_key_value_heads": 2},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}


def texts(of: dict[str, str], count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Rows of each label in turns: its sentence, a part of it left out, in a place."""
    rows = []
    for k in range(first, first + count):
        label = list(of)[k % len(of)]
        words = of[label].split()
        del words[k * 7 % len(words)]
        rows.append({"text": f"{' '.join(words)} in {PLACES[k % len(PLACES)]}", "label": label})
        # No two rows are alike.
        rows[-1]["text"] += " " + " ".join(PLACES[int(digit)] for digit in str(k))
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tokenizer(*, pad: bool = True) -> PreTrainedTokenizerFast:
    """Words as tokens, with [CLS] before and [SEP] behind a text."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    if pad:
        names["pad_token"] = "[PAD]"
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **names)


def config(kind: str, **more: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    # So small a model learns nothing in a few steps from the weights that large ones begin with.
    sizes["initializer_range"] = 0.2
    return getattr(transformers, f"{kind}Config")(
        **({"pad_token_id": 0} | sizes | SIZES[kind] | more)
    )


def network(
    kind: str, labels: Sequence[str], head: str = "ForSequenceClassification", **more: Any
) -> Any:
    torch.manual_seed(3)
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: k for k, n in enumerate(labels)}}
    made = getattr(transformers, kind + head)(config(kind, **(named if labels else {}), **more))
    return made.eval()


def classifier(folder: Path, kind: str, labels: Sequence[str], **options: Any) -> str:
    """The folder of a model with a trained head for the labels."""
    path = folder / kind
    network(kind, labels, **options).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)
