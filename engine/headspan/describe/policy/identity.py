"""The checksum that says which language model descriptions come from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headspan.describe.policy.reference import language_model_path
from headspan.errors import ModelError, one_line

# Other files of a model's folder, such as its card, do not change what it writes.
_ENDINGS = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")


def language_model_sha256(name: str | Path) -> str:
    """The SHA-256 of a `.gguf` file, or of a folder's weights, settings and vocabulary with their names.

    A repository of the hub must have been loaded before; the files are those in the hub's cache. Raises ModelError if
    a file cannot be read.
    """
    path = language_model_path(name)
    if not path.exists():
        from transformers.utils.hub import cached_file

        path = Path(str(cached_file(str(name), "config.json", local_files_only=True))).parent
    try:
        if path.is_file():
            return _sha256(path)
        whole = hashlib.sha256()
        for file in sorted(each for each in path.iterdir() if each.suffix in _ENDINGS):
            whole.update(f"{file.name} {_sha256(file)}\n".encode())
        return whole.hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({one_line(error)}); restore the language model") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
