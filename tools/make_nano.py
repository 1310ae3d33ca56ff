"""Makes the embedded model: a byte-level tokenizer, then a small Llama trained on six old skills.

    python tools/make_nano.py OUT_DIR

The same machine and library versions give the same bytes, because everything is drawn from SEED.
The loss covers the user's turn too, so the model can write questions of its own from the bare
pre-query, as a large chat model can. replaykit/nano/weights/MODEL.md says how long it took and how
the model scores.
"""

from __future__ import annotations

import math
import sys
import time
from itertools import chain, islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from replaykit.nano import world
from replaykit.nano.template import BOS, EOT, PAD, SPECIAL, SPLIT, TEMPLATE

SEED = 7
STEPS = 2800
ROWS = 64
WARMUP = 100
PEAK_LR = 3e-3
ANSWER_WEIGHT = 3.0  # an answer token's loss over a question token's
VOCABULARY = 1024
HIDDEN = 192
LAYERS = 4
HEADS = 6
INTERMEDIATE = 512
POSITIONS = 2048


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCABULARY tokens, trained on 21,000 tasks of all skills.

    Being byte-level, it can encode any text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    old = islice(world.stream(seed=SEED), 15_000)
    new = (task for skill in world.NEW_SKILLS for task in world.draw(skill, 3_000, seed=SEED))
    corpus = (f"{task.prompt}\n{task.answer}" for task in chain(old, new))
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained network, about 1.9 million parameters."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(tokenizer: PreTrainedTokenizerFast) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """STEPS batches of ROWS conversations: ids and loss weights, both [ROWS, length].

    Rows of similar length are batched together, within blocks of 32 batches that are shuffled.
    """
    tasks = list(islice(world.stream(seed=SEED + 1), STEPS * ROWS))
    heads = tokenizer(
        [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": task.prompt}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for task in tasks
        ],
        add_special_tokens=False,
    )["input_ids"]
    answers = tokenizer([task.answer + EOT for task in tasks], add_special_tokens=False)[
        "input_ids"
    ]
    rows = [
        (head + answer, [1.0] * len(head) + [ANSWER_WEIGHT] * len(answer))
        for head, answer in zip(heads, answers, strict=True)
    ]
    made = []
    # Sorted by length in blocks, so a batch needs little padding and the order stays random.
    block = ROWS * 32
    order = torch.Generator().manual_seed(SEED)
    for start in range(0, len(rows), block):
        part = sorted(rows[start : start + block], key=lambda row: len(row[0]))
        groups = [part[i : i + ROWS] for i in range(0, len(part), ROWS)]
        for k in torch.randperm(len(groups), generator=order).tolist():
            width = max(len(ids) for ids, _ in groups[k])
            ids = torch.tensor(
                [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in groups[k]]
            )
            weights = torch.tensor(
                [weights + [0.0] * (width - len(weights)) for _, weights in groups[k]]
            )
            made.append((ids, weights))
    return made


def train(model: LlamaForCausalLM, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """AdamW, linear warm-up, cosine to a tenth of the peak; prints the loss every 100 steps."""
    # As usual, matrices are decayed, and norms are not.
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))
    started = time.perf_counter()
    running = 0.0
    for step, (ids, weights) in enumerate(data):
        cosine = 0.5 * (1 + math.cos(math.pi * step / len(data)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min((step + 1) / WARMUP, 0.1 + 0.9 * cosine)
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, 1:], reduction="none"
        )
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.item()
        if step % 100 == 99:
            print(
                f"step {step + 1:5d}  loss {running / 100:.4f}  "
                f"{time.perf_counter() - started:5.0f} s",
                flush=True,
            )
            running = 0.0


def main(out: Path) -> None:
    """Makes the tokenizer and the model, and writes both to the folder, in float16."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters")
    train(model, batches(tokenizer))
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
