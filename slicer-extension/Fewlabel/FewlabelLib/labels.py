"""Which voxel value is which structure.

The schema comes from the server: names in order, and the k-th has value k. Label maps are made and read here by name
and value, one structure after the other; the order of segments in Slicer never matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

_PALETTE = (
    (230, 85, 75), (70, 160, 230), (80, 190, 100), (245, 185, 60), (165, 110, 215), (75, 205, 200),
    (240, 130, 180), (175, 205, 70), (200, 140, 95), (120, 135, 240), (250, 235, 120), (150, 190, 170),
)  # fmt: skip
"""The server's own colours, for one that does not tell them."""


@dataclass(frozen=True)
class Structure:
    """One structure of the project."""

    name: str
    value: int
    color: tuple[int, int, int]
    """Red, green, blue, each 0 to 255."""
    terminology: str = ""
    """As Slicer keeps it with a segment; empty when the server knows no code."""


@dataclass(frozen=True)
class Schema:
    """The structures of the project, in order of their values 1, 2, ..."""

    structures: tuple[Structure, ...]

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Schema:
        return cls(tuple(Structure(name, value, _PALETTE[(value - 1) % len(_PALETTE)]) for value, name in enumerate(names, 1)))

    @classmethod
    def of_server(cls, labels: Any, schema: Any = None) -> Schema:
        """From `labels` of `/info/`, a list or an object with values, and the server's `/datastore/schema` where it has one."""
        if isinstance(labels, dict):
            labels = [name for name, _ in sorted(labels.items(), key=lambda entry: entry[1])]
        names = [str(name) for name in labels or [] if str(name).lower() != "background"]
        plain = cls.of_names(names)
        told = {entry["name"]: entry for entry in (schema or {}).get("structures", [])}
        structures = []
        for structure in plain.structures:
            entry = told.get(structure.name, {})
            color = entry.get("color_rgb") or structure.color
            structures.append(Structure(structure.name, structure.value, tuple(color), terminology_text(structure.name, entry.get("terminology"))))
        return cls(tuple(structures))

    @property
    def names(self) -> list[str]:
        return [structure.name for structure in self.structures]

    def of_name(self, name: str) -> Structure | None:
        """The structure of that name; Slicer's users vary case and spaces."""
        wanted = _key(name)
        return next((structure for structure in self.structures if _key(structure.name) == wanted), None)


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def terminology_text(name: str, codes: dict[str, Any] | None) -> str:
    """Codes as Slicer writes them: `context~category~type~modifier~region context~region~modifier`."""
    if not codes:
        return ""

    def code(key: str) -> str:
        entry = codes.get(key)
        return "^".join(str(entry.get(part, "")) for part in ("scheme", "value", "meaning")) if entry else "^^"

    return f"Segmentation category and type - 3D Slicer General Anatomy list~{code('category')}~{code('type')}~{code('modifier')}~Anatomic codes - DICOM master list~^^~^^"


@dataclass
class Flat:
    """A label map, and what had to be decided to make it."""

    voxels: numpy.ndarray
    """uint8 or uint16, `[z, y, x]`; the k-th structure of the schema is k."""
    counts: dict[str, int] = field(default_factory=dict)
    """Voxels of each structure of the schema that has a segment, in the label map."""
    overlaps: list[tuple[str, str, int]] = field(default_factory=list)
    """Pairs of segments with common voxels, and how many; the second one has them."""
    covered: dict[str, numpy.ndarray] = field(default_factory=dict)
    """Voxels of a structure that a later one has in the map, as indices into the flattened map: for drafts, which keep them."""
    unknown: list[str] = field(default_factory=list)
    """Segments that are not in the schema, with something drawn in them. They are not in the map."""
    doubled: list[str] = field(default_factory=list)
    """Structures that several segments are named after; they are united."""

    @property
    def warnings(self) -> list[str]:
        """What the author should know before this is sent, as sentences."""
        texts = [f"{first} and {second} overlap in {count} voxels; these will be sent as {second}." for first, second, count in self.overlaps]
        if self.unknown:
            texts.append(f"Not part of this project, and not sent: {', '.join(self.unknown)}.")
        texts += [f"Several segments are called {name}; they are sent as one." for name in self.doubled]
        return texts


def widen(schema: Schema, names: Iterable[str]) -> Schema:
    """The schema and, after it, the segments that it does not have: for drafts, which keep everything."""
    structures = list(schema.structures)
    for name in names:
        if Schema(tuple(structures)).of_name(name) is None and not is_auxiliary(name):
            value = len(structures) + 1
            structures.append(Structure(name, value, _PALETTE[(value - 1) % len(_PALETTE)]))
    return Schema(tuple(structures))


def is_auxiliary(name: str) -> bool:
    """Segments that Slicer and MONAI Label make for their own use."""
    name = name.casefold()
    return name.startswith("background") or name == "foreground_scribbles"


@dataclass(frozen=True)
class Part:
    """A segment in a copy of what was drawn."""

    name: str
    voxels: numpy.ndarray
    """Of a box in the image, `[z, y, x]`; several parts may share it."""
    start: tuple[int, int, int]
    """Where the box begins in the image."""
    value: int
    """What the voxels of this part have in it."""

    def mask(self, shape: Sequence[int]) -> numpy.ndarray:
        mask = numpy.zeros(tuple(shape), bool)
        box = tuple(slice(start, start + size) for start, size in zip(self.start, self.voxels.shape, strict=True))
        mask[box] = self.voxels == self.value
        return mask


@dataclass(frozen=True)
class Drawing:
    """A copy of what was drawn, quickly made, that can be looked at off the main thread."""

    shape: tuple[int, ...]
    ijk_to_ras: numpy.ndarray
    parts: tuple[Part, ...]

    @property
    def names(self) -> list[str]:
        return [part.name for part in self.parts]

    def flat(self, schema: Schema) -> Flat:
        return flatten(schema, self.shape, ((part.name, part.mask(self.shape)) for part in self.parts))


def flatten(schema: Schema, shape: Sequence[int], segments: Iterable[tuple[str, numpy.ndarray]]) -> Flat:
    """One label map from masks by segment name, all of `shape` `[z, y, x]`. Later segments win where two overlap."""
    kind = numpy.uint8 if len(schema.structures) < 256 else numpy.uint16
    flat = Flat(numpy.zeros(tuple(shape), kind))
    seen: dict[str, str] = {}
    for name, mask in segments:
        mask = numpy.asarray(mask, bool)
        if mask.shape != flat.voxels.shape:
            raise ValueError(f"segment {name!r} is {mask.shape}, the image {flat.voxels.shape}")
        structure = schema.of_name(name)
        if structure is None:
            if mask.any() and not is_auxiliary(name):
                flat.unknown.append(name)
            continue
        if structure.name in seen:
            flat.doubled.append(structure.name)
        seen[structure.name] = name
        below = _counts(flat.voxels[mask][None], schema)
        for other in schema.structures:
            if other.value != structure.value and below[other.value]:
                flat.overlaps.append((other.name, structure.name, int(below[other.value])))
                lost = numpy.flatnonzero(mask & (flat.voxels == other.value))
                flat.covered[other.name] = numpy.union1d(flat.covered.get(other.name, lost), lost)
        flat.voxels[mask] = structure.value
    counts = _counts(flat.voxels, schema)
    flat.counts = {structure.name: int(counts[structure.value]) for structure in schema.structures if structure.name in seen}
    return flat


def _counts(voxels: numpy.ndarray, schema: Schema) -> numpy.ndarray:
    """Voxels of each value. Plane by plane, because numpy keeps Python's lock while it counts."""
    counts = numpy.zeros(len(schema.structures) + 1, numpy.int64)
    for plane in voxels:
        counts += numpy.bincount(plane.ravel(), minlength=len(counts))
    return counts


def masks(voxels: numpy.ndarray, names: Sequence[str], covered: dict[str, numpy.ndarray]) -> Iterator[tuple[str, numpy.ndarray]]:
    """The mask of each name from a label map whose value k is the k-th of them, and what others cover in it."""
    for value, name in enumerate(names, 1):
        mask = voxels == value
        if name in covered:
            mask.ravel()[covered[name]] = True
        yield name, mask


def to_schema(schema: Schema, voxels: numpy.ndarray, names: Sequence[str]) -> numpy.ndarray:
    """A label map whose value k is the k-th of `names`, in the values of the schema. Structures that it does not have are dropped."""
    table = numpy.zeros(max(int(voxels.max(initial=0)), len(names)) + 1, numpy.uint8 if len(schema.structures) < 256 else numpy.uint16)
    for value, name in enumerate(names, 1):
        structure = schema.of_name(name)
        if structure:
            table[value] = structure.value
    return table[voxels]


def submit_params(schema: Schema, complete: Sequence[str]) -> dict[str, Any]:
    """What goes with a label map of the schema: every name with its value, and which structures were annotated completely."""
    return {
        "label_info": [{"name": structure.name, "idx": structure.value} for structure in schema.structures],
        "annotated_labels": [name for name in schema.names if name in set(complete)],
    }
