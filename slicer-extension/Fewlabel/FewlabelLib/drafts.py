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
from .labels import Flat


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
    covered: str = ""
    """Name of the file with what overlaps hide in the label map; empty when nothing overlaps."""


class Drafts:
    """The drafts below a folder, at most one for each server, user and image."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sent: dict[pathlib.Path, float] = {}
        """Age of what was removed last: a draft that is older and was only written later is not wanted any more."""

    def save(self, draft: Draft, flat: Flat, ijk_to_ras: numpy.ndarray, also: pathlib.Path | None = None) -> None:
        """Writes the draft; its label map as `also` too, where no later draft replaces it. Blocks: call it in a job."""
        with self._lock:
            if draft.ts > self._sent.get(self._place(draft.server, draft.image), float("-inf")):
                self._save(draft, flat, ijk_to_ras)
                if also:
                    also.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.path(draft), also)

    def _save(self, draft: Draft, flat: Flat, ijk_to_ras: numpy.ndarray) -> None:
        folder = self._place(draft.server, draft.image)
        folder.mkdir(parents=True, exist_ok=True)
        draft.file = f"{secrets.token_hex(8)}.nrrd"
        nrrd.write(folder / draft.file, flat.voxels, ijk_to_ras)
        draft.covered = ""
        if flat.covered:
            draft.covered = f"{secrets.token_hex(8)}.npz"
            with open(folder / draft.covered, "wb") as file:
                # By number, because names may hold anything.
                numpy.savez(file, *(flat.covered.get(name, numpy.zeros(0, numpy.int64)) for name in draft.names))
                file.flush()
                os.fsync(file.fileno())
        part = folder / "draft.json.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(draft), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / "draft.json")
        for old in folder.iterdir():
            if old.name not in ("draft.json", draft.file, draft.covered):
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

    def covered(self, draft: Draft) -> dict[str, numpy.ndarray]:
        """What overlaps hide in the label map, by structure; see `labels.Flat.covered`."""
        if not draft.covered:
            return {}
        with numpy.load(self.path(draft).with_name(draft.covered), allow_pickle=False) as kept:
            return {name: kept[f"arr_{number}"] for number, name in enumerate(draft.names) if kept[f"arr_{number}"].size}

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
        for file in folder.iterdir():
            file.unlink(missing_ok=True)

    def _place(self, server: str, image: str) -> pathlib.Path:
        # Ids may hold what file names may not.
        return self._folder / hashlib.sha256(f"{server}\n{image}".encode()).hexdigest()[:32]


def _read(path: pathlib.Path) -> Draft | None:
    try:
        draft = Draft(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    files = [draft.file] + ([draft.covered] if draft.covered else [])
    # A description may have come from anywhere: it names files beside it, or none.
    return draft if all(pathlib.PurePath(name).name == name and (path.parent / name).is_file() for name in files) else None
