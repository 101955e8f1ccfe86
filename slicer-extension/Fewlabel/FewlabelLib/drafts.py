"""Unsent work on the disk, so that neither a crash of Slicer nor of the server costs an annotation.

A draft is a label map and a description of it. The description names the label map's file and is written last, so that a
draft is there completely or not at all; a newer one replaces it only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import secrets
import shutil
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy

from . import nrrd


@dataclass
class Draft:
    """One unsent annotation."""

    server: str
    image: str
    file: str
    """Name of the label map beside the description."""
    ts: float
    """When it was saved, seconds since 1970-01-01 UTC."""
    case: dict[str, Any]
    """What the server told about the image."""
    names: list[str]
    """The structure of each value 1, 2, ... in the label map."""
    complete: list[str] = field(default_factory=list)
    seen: int | None = None
    """The revision that the author started from."""
    key: str = ""
    """Names the submit that this draft was last sent with."""


class Drafts:
    """The drafts below a folder, at most one for each server, user and image."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sent: dict[pathlib.Path, float] = {}
        """Age of what was removed last: a draft that is older and was only written later is not wanted any more."""

    def save(self, draft: Draft, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray, also: pathlib.Path | None = None) -> None:
        """Writes the draft; its label map as `also` too, where no later draft replaces it. Blocks: call it in a job."""
        with self._lock:
            if draft.ts > self._sent.get(self._place(draft.server, draft.image), float("-inf")):
                self._save(draft, voxels, ijk_to_ras)
                if also:
                    also.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.path(draft), also)

    def _save(self, draft: Draft, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray) -> None:
        folder = self._place(draft.server, draft.image)
        folder.mkdir(parents=True, exist_ok=True)
        draft.file = f"{secrets.token_hex(8)}.nrrd"
        nrrd.write(folder / draft.file, voxels, ijk_to_ras)
        part = folder / "draft.json.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(draft), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / "draft.json")
        for old in folder.glob("*.nrrd*"):
            if old.name != draft.file:
                old.unlink(missing_ok=True)

    def find(self, server: str, image: str) -> Draft | None:
        return _read(self._place(server, image) / "draft.json")

    def all(self, server: str) -> list[Draft]:
        """The drafts of a server, newest first. What cannot be read is left alone and not listed."""
        found = [_read(path) for path in self._folder.glob("*/draft.json")]
        return sorted((draft for draft in found if draft and draft.server == server), key=lambda draft: -draft.ts)

    def path(self, draft: Draft) -> pathlib.Path:
        return self._place(draft.server, draft.image) / draft.file

    def voxels(self, draft: Draft) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The label map and `ijk_to_ras` of a draft."""
        return nrrd.read(self.path(draft).read_bytes())

    def remove(self, server: str, image: str, key: str = "") -> None:
        """Forgets a draft: the description first. With a key only the draft that was sent with it."""
        folder = self._place(server, image)
        with self._lock:
            draft = _read(folder / "draft.json")
            if draft is None or (key and draft.key != key):
                return
            self._sent[folder] = draft.ts
            self._remove(folder)

    def _remove(self, folder: pathlib.Path) -> None:
        (folder / "draft.json").unlink(missing_ok=True)
        for file in folder.glob("*.nrrd*"):
            file.unlink(missing_ok=True)

    def _place(self, server: str, image: str) -> pathlib.Path:
        # Ids may hold what file names may not.
        return self._folder / hashlib.sha256(f"{server}\n{image}".encode()).hexdigest()[:32]


def _read(path: pathlib.Path) -> Draft | None:
    try:
        draft = Draft(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    named = pathlib.PurePath(draft.file).name
    return draft if named == draft.file and (path.parent / named).is_file() else None
