"""What a download from the Hugging Face hub has written down of the files that it fetched."""

from __future__ import annotations

import re
from pathlib import Path

_SHA256 = re.compile("[0-9a-f]{64}")
# A package is so deep in a repository at most.
_MAX_DEPTH = 4


def known_sha256(path: Path) -> str:
    """Find the SHA-256 that a file has on the hub; empty if nothing here tells it.

    Only large files have one. The hub's cache names the file after it that a link leads to; a
    download to a folder keeps it beside the files. See
    https://huggingface.co/docs/huggingface_hub/guides/manage-cache and `local_dir` in
    https://huggingface.co/docs/huggingface_hub/guides/download.
    """
    if path.is_symlink():
        return _checked(path.resolve().name)
    path = path.absolute()
    for root in path.parents[:_MAX_DEPTH]:
        record = root / ".cache/huggingface/download" / f"{path.relative_to(root)}.metadata"
        if record.is_file():
            lines = record.read_text(encoding="utf-8", errors="replace").splitlines()
            return _checked(lines[1]) if len(lines) > 1 else ""
    return ""


def _checked(digest: str) -> str:
    return digest if _SHA256.fullmatch(digest) else ""
