"""Nothing that replaykit did not write is ever overwritten.

A file is ours by what stands in it, or, where people may edit what we wrote, by its hash in a list
beside it:

    push/.replaykit.json   {"README.md": ["1760335f5a6dbb6d"], ...}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from replaykit.errors import RunError
from replaykit.hashing import file_fingerprint
from replaykit.runs import make_folder, read_json, write_json

LIST = ".replaykit.json"


def refuse_foreign(path: Path, ours: Callable[[str], bool]) -> None:
    """Raises RunError for what is there, unless it is a file of whose text ``ours`` is true."""
    if not path.exists() and not path.is_symlink():
        return
    is_file = path.is_file() and not path.is_symlink()
    if is_file and ours(path.read_text(encoding="utf-8", errors="replace")):
        return
    raise RunError(
        f"{path}: it is there, and replaykit did not write it; move it away, or choose another "
        "place"
    )


def has_keys(names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text is a JSON object with all these keys."""
    wanted = set(names)

    def ours(text: str) -> bool:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and wanted <= found.keys()

    return ours


@contextmanager
def replaced(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """A new folder to write these files into, which are then moved to ``folder``, each whole. Those
    that were not written are removed there.

    Raises RunError, before and after, for one that is there and is not as replaykit left it.
    """
    names = list(names)
    _refuse_changed(folder, names)
    make_folder(folder)
    with TemporaryDirectory(dir=folder, prefix=".replaykit-") as temporary:
        yield Path(temporary)
        before = _refuse_changed(folder, names)
        hashes = {
            name: file_fingerprint(Path(temporary) / name)
            for name in names
            if (Path(temporary) / name).exists()
        }
        # Both of them, since this may end between two of the files.
        write_json(folder / LIST, {name: [hashes.get(name), before.get(name)] for name in names})
        for name in names:
            if name not in hashes:
                (folder / name).unlink(missing_ok=True)
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / name, folder / name)


def _refuse_changed(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The hashes of those of the files that are there."""
    listed = read_json(folder / LIST) or {}
    found = {}
    for name in names:
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        if path.is_file() and not path.is_symlink():
            found[name] = file_fingerprint(path)
        if found.get(name, "") not in (listed.get(name) or ()):
            raise RunError(
                f"{path}: it is there, and it is not what replaykit wrote; move it away, or choose "
                "another place with --out"
            )
    return found
