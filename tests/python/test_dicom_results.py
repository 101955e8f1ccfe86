"""DICOM Segmentation and RT Structure Set objects of `fewlabel infer`, read by pydicom, highdicom and dciodvfy.

The network is untrained, so its labels mean nothing; what counts is that every one of them comes back at its place in
the patient.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import highdicom
import nibabel
import numpy
import pydicom
import pytest

from serving import PROGRAM, ROOT, running

SHARED = pathlib.Path(os.environ.get("FEWLABEL_SHARED", ROOT.parent / "shared")) / "data/dicom"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no {SHARED}")

CASES = ("baseline", "gantry_tilt", "oblique", "prone_flipped_inplane", "coronal")
KINDS = ("dicom-seg", "dicom-labelmap", "rtstruct")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The untrained model that a new project starts with."""
    folder = tmp_path_factory.mktemp("project")
    with running(folder):
        (manifest,) = (path for path in folder.rglob("manifest.json") if "scratch" not in path.parts)
        return shutil.copytree(manifest.parent, folder / "model")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A series, its labels as NIfTI, and the same labels as DICOM objects."""
    out = tmp_path_factory.mktemp(request.param)
    series = SHARED / "derived_geometry" / request.param
    command = [PROGRAM, "infer", "--model", model, series, "--device", "cpu", "-o"]
    subprocess.run([*command, out / "labels.nii.gz"], check=True, capture_output=True)
    for kind in KINDS:
        subprocess.run([*command, out / f"{kind}.dcm", "--dicom", kind], check=True, capture_output=True)
    slices = [pydicom.dcmread(path) for path in sorted(series.iterdir())]
    image = nibabel.load(out / "labels.nii.gz")
    return {
        "slices": slices,
        "labels": numpy.asarray(image.dataobj).astype(int),
        # From voxel to LPS.
        "affine": numpy.diag((-1, -1, 1, 1)) @ image.affine,
        **{kind: out / f"{kind}.dcm" for kind in KINDS},
    }


def at(case: dict, points: numpy.ndarray) -> numpy.ndarray:
    """The labels at points in LPS mm, shape (n, 3)."""
    inverse = numpy.linalg.inv(case["affine"])
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    assert numpy.abs(index - index.round()).max() < 0.02
    return case["labels"][tuple(index.round().astype(int).T)]


def plane(position: list, orientation: list, spacing: list, shape: tuple[int, int]) -> numpy.ndarray:
    """Centres of the pixels of a frame, in the order of its rows."""
    rows, columns = numpy.mgrid[: shape[0], : shape[1]]
    along_row, along_column = numpy.array(orientation[:3], float), numpy.array(orientation[3:], float)
    step_row, step_column = float(spacing[1]), float(spacing[0])
    points = numpy.array(position, float) + columns[..., None] * along_row * step_row
    return (points + rows[..., None] * along_column * step_column).reshape(-1, 3)


@pytest.mark.parametrize("kind", ("dicom-seg", "dicom-labelmap"))
def test_voxels_of_a_segmentation(case: dict, kind: str) -> None:
    seg = highdicom.seg.segread(case[kind])
    shared, frames = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    pixels = seg.pixel_array.reshape(len(frames), seg.Rows, seg.Columns)
    known = {slice.SOPInstanceUID: slice for slice in case["slices"]}
    found = 0
    for frame, values in zip(frames, pixels, strict=True):
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        expected = at(case, plane(position, orientation, spacing, values.shape))
        if kind == "dicom-seg":
            number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            expected = expected == number
        assert (values.ravel() == expected).all()
        found += (values > 0).sum()
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert known[source.ReferencedSOPInstanceUID].ImagePositionPatient == pytest.approx(position)
    assert found == (case["labels"] > 0).sum() > 0


def test_what_a_segmentation_says(case: dict) -> None:
    seg, source = pydicom.dcmread(case["dicom-seg"]), case["slices"][0]
    for field in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg.get(field) == source.get(field), field
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["liver", "spleen"]
    codes = [item.SegmentedPropertyTypeCodeSequence[0] for item in seg.SegmentSequence]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in codes] == [("10200004", "SCT"), ("78961009", "SCT")]
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert "sha256" in algorithm.AlgorithmParameters and algorithm.AlgorithmName


def test_voxels_of_contours(case: dict) -> None:
    """Polygons filled by another program's rule: a pixel is inside when its centre is."""
    contours = pydicom.dcmread(case["rtstruct"])
    assert contours.ApprovalStatus == "UNAPPROVED"
    assert {roi.ROIGenerationAlgorithm for roi in contours.StructureSetROISequence} == {"AUTOMATIC"}
    inverse = numpy.linalg.inv(case["affine"])
    labels = case["labels"]
    for value, roi in enumerate(contours.ROIContourSequence, 1):
        filled = numpy.zeros(labels.shape, bool)
        for contour in roi.get("ContourSequence", []):
            points = numpy.array(contour.ContourData, float).reshape(-1, 3)
            index = points @ inverse[:3, :3].T + inverse[:3, 3]
            (depth,) = {round(k) for k in index[:, 2]}
            assert numpy.abs(index[:, 2] - depth).max() < 0.01
            filled[..., depth] ^= inside(index[:, :2], labels.shape[:2])
        expected = labels == value
        dice = 2 * (filled & expected).sum() / max(1, filled.sum() + expected.sum())
        assert dice >= 0.99 if expected.any() else not filled.any()


def inside(polygon: numpy.ndarray, shape: tuple[int, int]) -> numpy.ndarray:
    """Even-odd rule on pixel centres, by crossings of the lines of constant second index."""
    mask = numpy.zeros(shape, bool)
    ends = numpy.roll(polygon, -1, axis=0)
    for j in range(shape[1]):
        crosses = (polygon[:, 1] <= j) != (ends[:, 1] <= j)
        a, b = polygon[crosses], ends[crosses]
        x = a[:, 0] + (b[:, 0] - a[:, 0]) * (j - a[:, 1]) / (b[:, 1] - a[:, 1])
        mask[:, j] = (x[None] > numpy.arange(shape[0])[:, None]).sum(axis=1) % 2
    return mask


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.parametrize("kind", ("dicom-seg", "rtstruct"))
def test_conformance(case: dict, kind: str) -> None:
    """No error. dicom3tools of 2022 does not know label maps, which came in 2024."""
    checked = subprocess.run(["dciodvfy", "-new", case[kind]], capture_output=True, text=True)
    errors = [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")]
    assert not errors
