"""Real DICOM files as `fewlabel inspect` sees them, beside SimpleITK with GDCM."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy
import pytest
import SimpleITK

from serving import PROGRAM, ROOT

DATA = pathlib.Path(os.environ.get("FEWLABEL_SHARED", ROOT.parent / "shared")) / "data/dicom"
SHARED = DATA / "real"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no {SHARED}")

# Folders that hold one series.
SERIES = ("cip_ct64", "slicer_ctehead", "ct3slice_seg/ct-3slice", "tiny_24x38x3/image")
# Folders that GDCM reads and we refuse, with a word of the reason.
REFUSED_SERIES = {
    # Four slices out of a series of 165: GDCM takes them for neighbours.
    "monai_ct_dicom": "slices are missing",
    # GDCM takes a slice without thickness for 1 mm.
    "rtutils/one_slice_data": "thickness",
    # Slices 1.08 to 6.99 mm apart on a tilted gantry are read, but not as GDCM does: see test_tilt.
}
# Single images in every encoding, and enhanced ones.
FILES = ("ctimage_all_ts", "enhanced_ct_a", "tiny_24x38x3/multiframe", "pydicom_ct")

# Files that we refuse, with a word of the reason: SimpleITK reads some of them.
REFUSED = {
    # Retired processes, and 12 bits with losses: no kept decoder in Rust.
    "JPEGProcess10_12": "Full Progression",
    "JPEGProcess6_8": "Spectral Selection",
    "JPEGProcess2_4": "JPEG Extended",
    # Segmentations are labels, a colour image has no Hounsfield units.
    "liver_1frame": "segmentation",
    "liver_expb_1frame": "segmentation",
    "image_dfl": "",
    # No image at all, or no place in the patient.
    "no_meta.dcm": "",
    "meta_missing_tsyntax": "",
    "no_meta_group_length": "",
}
# Largest difference in HU where both read the file but round otherwise: JPEG baseline (another inverse transform; two
# of its 8 bit values are 32 HU here), and JPEG 2000 with losses.
TOLERANCE = {"JPEGProcess1Transfer": 32.2, "J2K": 1.0, "JPEG2000Transfer": 1.0, "693_J2KI": 1.0}


def inspect(path: pathlib.Path, *more: str) -> dict:
    command = [PROGRAM, "inspect", "--json", path, *more]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout)


def voxels(path: pathlib.Path, out: pathlib.Path) -> numpy.ndarray:
    """The voxels as the server hands them to clients are int16; here they come from probes of a whole slice."""
    size = inspect(path)["images"][0]["size_ijk"]
    probes = [f"--probe={i},{j},{size[2] // 2}" for j in range(0, size[1], 7) for i in range(0, size[0], 11)]
    entry = inspect(path, *probes)["images"][0]
    return numpy.array([probe[3] for probe in entry["probes"]])


def same_grid(ours: dict, theirs: SimpleITK.Image) -> None:
    assert ours["size_ijk"] == list(theirs.GetSize())[:3]
    assert ours["spacing_mm"] == pytest.approx(theirs.GetSpacing()[:3], abs=1e-4)
    assert ours["origin_lps"] == pytest.approx(theirs.GetOrigin()[:3], abs=1e-3)
    matrix = numpy.array(theirs.GetDirection()).reshape(theirs.GetDimension(), -1)[:3, :3]
    assert numpy.array(ours["directions_lps"]) == pytest.approx(matrix.T, abs=1e-4)


def hash_of(values: numpy.ndarray) -> str:
    return hashlib.sha256(numpy.ascontiguousarray(values, "<f8").tobytes()).hexdigest()


@pytest.mark.parametrize("name", SERIES)
def test_series(name: str) -> None:
    folder = SHARED / name
    report = inspect(folder)
    assert not report["refused"], report
    (ours,) = report["images"]
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    if theirs.GetSize()[2] > 1:
        same_grid(ours, theirs)
    assert ours["sha256_float64_ijk"] == hash_of(SimpleITK.GetArrayFromImage(theirs))


@pytest.mark.parametrize("name", REFUSED_SERIES)
def test_series_that_are_refused(name: str) -> None:
    report = inspect(SHARED / name)
    assert not report["images"] and REFUSED_SERIES[name] in report["refused"][0]["message"], report


def test_tilt() -> None:
    """A real gantry tilt of 18.5 degrees with uneven slices: an even grid whose slices move along the table."""
    (ours,) = inspect(SHARED / "ge_gantry_tilt")["images"]
    row, column, depth = map(numpy.array, ours["directions_lps"])
    assert abs(row @ column) < 1e-4 and abs(row @ depth) < 1e-4
    assert numpy.degrees(numpy.arcsin(abs(column @ depth))) == pytest.approx(18.5, abs=0.1)
    assert any("mm apart" in warning for warning in ours["warnings"])
    assert any("tilted" in warning for warning in ours["warnings"])


def images() -> list[pathlib.Path]:
    return [path for name in FILES for path in sorted((SHARED / name).glob("*.dcm"))]


@pytest.mark.parametrize("path", images(), ids=lambda path: path.name)
def test_single_files(path: pathlib.Path) -> None:
    report = inspect(path)
    refused = next((word for key, word in REFUSED.items() if key in path.name), None)
    if refused is not None:
        assert not report["images"] and refused in report["refused"][0]["message"], report
        return
    assert not report["refused"], report
    (ours,) = report["images"]
    theirs = SimpleITK.ReadImage(str(path))
    assert ours["size_ijk"] == list(theirs.GetSize())
    tolerance = next((hu for key, hu in TOLERANCE.items() if key in path.name), 0)
    values = SimpleITK.GetArrayFromImage(theirs).astype(float)
    if tolerance == 0:
        # Frames that run against the normal of their plane: GDCM keeps their order in a left-handed grid, here they are
        # ordered along the normal. Both place them alike in the patient.
        left_handed = numpy.linalg.det(numpy.array(theirs.GetDirection()).reshape(3, 3)) < 0
        assert ours["sha256_float64_ijk"] == hash_of(values[::-1] if left_handed else values)
        return
    assert ours["range"] == pytest.approx([values.min(), values.max()], abs=tolerance)
    middle = values[values.shape[0] // 2, ::7, ::11].ravel()
    assert numpy.abs(voxels(path, path) - middle).max() <= tolerance


MALFORMED = sorted(path.name for path in DATA.glob("derived_malformed/*"))
MOST_MIB = 200
"""Peak memory of a refusal. As many elements as are walked at most take 130; all other cases less than 50."""


# A process counts as its own what its parent had when it was started, so a small one starts it.
LAUNCHER = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps([done.returncode, done.stdout, peak_mib]))
"""


def refusal(path: pathlib.Path) -> float:
    """Peak memory in MiB of the program that refuses a file or folder."""
    command = [sys.executable, "-c", LAUNCHER, PROGRAM, "inspect", "--json", path]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    code, report, peak_mib = json.loads(told.stdout)
    assert code == 1 and json.loads(report)["refused"]
    return peak_mib


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_cost_nothing(name: str) -> None:
    peak_mib = refusal(DATA / "derived_malformed" / name)
    assert peak_mib < MOST_MIB


def element(tag: tuple[int, int], vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", *tag, vr, 0, length)


BOMBS = {
    # Ends dicom-object 0.10 by its stack.
    "nested": (element((0x0028, 0x0009), b"SQ", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 20_000,
    # Makes it commit what is announced.
    "four gigabytes": element((0x7FE0, 0x0010), b"OW", 0xFFFFFFF0) + b"12",
    "a million elements": struct.pack("<HH2sH", 0x0008, 0x0060, b"CS", 0) * 1_100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: pathlib.Path) -> None:
    syntax = b"1.2.840.10008.1.2.1\0"
    file = tmp_path / "bomb.dcm"
    file.write_bytes(bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax + BOMBS[name])
    peak_mib = refusal(file)
    assert peak_mib < MOST_MIB
