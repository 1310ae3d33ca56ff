"""Hashes and seeds: the same value gives the same number on every machine and in every process.

fingerprint({"ratio": 0.05})       ->  "1760335f5a6dbb6d"
derive_seed(1, "question", 0)      ->  3706324251759496827
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

# Made once: json.dumps would make one for each value.
ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str)


def fingerprint(value: object) -> str:
    """16 hexadecimal digits that depend on the JSON form of the value and on nothing else."""
    text = ENCODER.encode(value)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def file_fingerprint(path: str | Path) -> str:
    """16 hexadecimal digits of a file's bytes; of a folder, of its files' names and bytes."""
    path = Path(path)
    digest = hashlib.blake2b(digest_size=8)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        # Of a folder the names count too; a file alone keeps its hash under another name.
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def derive_seed(*address: object) -> int:
    """A seed of 63 bits for an address such as ``(run seed, "question", row)``.

    Different addresses have different seeds, so no two rows draw from the same stream.
    """
    # 63 bits make a positive signed 64-bit number, which every engine takes.
    return int(fingerprint(list(address)), 16) >> 1
