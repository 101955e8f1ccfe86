"""Volumes and label maps as NRRD, so that compressing and reading them can happen off the main thread."""

from __future__ import annotations

import os
import pathlib
import zlib

import numpy

_TYPES = {
    "uint8": "uint8", "unsigned char": "uint8", "uchar": "uint8", "uint8_t": "uint8",
    "int16": "int16", "short": "int16", "uint16": "uint16", "unsigned short": "uint16", "ushort": "uint16",
}  # fmt: skip
_NAMES = {"float32": "float", "float64": "double"}
"""NRRD's names where they are not numpy's."""
_RAS_TO_LPS = numpy.diag((-1.0, -1.0, 1.0, 1.0))
MAX_BYTES = 8 << 30


def write(path: pathlib.Path, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray) -> None:
    """Writes `[z, y, x]` voxels compressed, to a file that is there completely or not at all.

    `ijk_to_ras` is 4 by 4: from column, row, slice to RAS in mm, as MRML has it.
    """
    lps = _RAS_TO_LPS @ numpy.asarray(ijk_to_ras, float)

    def vector(values: numpy.ndarray) -> str:
        return "(" + ",".join(repr(float(value)) for value in values) + ")"

    header = "\n".join((
        "NRRD0005", f"type: {_NAMES.get(voxels.dtype.name, voxels.dtype.name)}", "dimension: 3", "space: left-posterior-superior", "sizes: " + " ".join(str(n) for n in voxels.shape[::-1]),
        "space directions: " + " ".join(vector(lps[:3, axis]) for axis in range(3)), "kinds: domain domain domain", "endian: little", "encoding: gzip",
        "space origin: " + vector(lps[:3, 3]), "", "",
    ))  # fmt: skip
    data = numpy.ascontiguousarray(voxels).astype(voxels.dtype.newbyteorder("<"), copy=False)
    compressor = zlib.compressobj(4, zlib.DEFLATED, 31)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(header.encode())
        for plane in data:
            file.write(compressor.compress(plane.tobytes()))
        file.write(compressor.flush())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read(content: bytes) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Voxels `[z, y, x]` and `ijk_to_ras` of a label map: three axes, integers, raw or gzip.

    Raises `ValueError` for anything else.
    """
    head, found, body = content.partition(b"\n\n")
    if not found:
        head, found, body = content.partition(b"\r\n\r\n")
    if not head.startswith(b"NRRD") or not found:
        raise ValueError("this is no NRRD file with its data inside")
    fields: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    kind = _TYPES.get(fields.get("type", "").lower())
    if kind is None or fields.get("dimension") != "3":
        raise ValueError(f"a label map has 3 axes and whole numbers, this is {fields.get('type')} with {fields.get('dimension')} axes")
    size = [int(text) for text in fields["sizes"].split()]
    dtype = numpy.dtype(kind).newbyteorder(">" if fields.get("endian") == "big" else "<")
    wanted = int(numpy.prod(size, dtype=numpy.int64)) * dtype.itemsize
    if wanted > MAX_BYTES or min(size) < 1:
        raise ValueError(f"a label map of {size} voxels is not believed")
    encoding = fields.get("encoding", "raw").lower()
    if encoding in ("gzip", "gz"):
        body = zlib.decompressobj(47).decompress(body, wanted + 1)
    elif encoding != "raw":
        raise ValueError(f"the encoding {encoding} is not read here")
    if len(body) < wanted:
        raise ValueError(f"the file ends early: {len(body)} of {wanted} bytes")
    voxels = numpy.frombuffer(body, dtype, count=wanted // dtype.itemsize).astype(kind, copy=False).reshape(size[::-1])

    def vectors(text: str) -> list[list[float]]:
        return [[float(number) for number in part.split(",")] for part in text.replace(" ", "").strip("()").split(")(")]

    lps = numpy.eye(4)
    directions = vectors(fields.get("space directions", "(1,0,0)(0,1,0)(0,0,1)"))
    lps[:3, :3] = numpy.array(directions).T
    lps[:3, 3] = vectors(fields.get("space origin", "(0,0,0)"))[0]
    space = fields.get("space", "left-posterior-superior").lower()
    if space in ("left-posterior-superior", "lps"):
        return voxels, _RAS_TO_LPS @ lps
    if space in ("right-anterior-superior", "ras"):
        return voxels, lps
    raise ValueError(f"the space {space} is not read here")


def same_grid(a: numpy.ndarray, b: numpy.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether two `ijk_to_ras` put the corners of a `[z, y, x]` grid at the same places, to a tenth of a voxel's side."""
    corners = numpy.array([[i, j, k, 1.0] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1) for k in (0, shape[0] - 1)])
    side = float(numpy.linalg.norm(numpy.asarray(a)[:3, :3], axis=0).min())
    return bool(numpy.abs((corners @ numpy.asarray(a).T - corners @ numpy.asarray(b).T)[:, :3]).max() <= max(0.1 * side, 0.01))
