"""The embedded model's special tokens, chat template and word split.

Its conversations have the shape of Meta-Llama-3-Instruct's: a header for each turn, two line
breaks, the trimmed text, and <|eot_id|>. The models of benchmarks/gpu use the same ones.
"""

from __future__ import annotations

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"
EOT = "<|eot_id|>"
PAD = "<|pad|>"
HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
SPECIAL = (BOS, EOS, EOT, PAD, HEADER, END_HEADER)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | "
    "trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# Words with their leading space, single digits, punctuation, line breaks. A number is read digit
# by digit, so that a small model can learn sums.
SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
