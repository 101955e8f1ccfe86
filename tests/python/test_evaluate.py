"""`fewlabel evaluate` against SciPy, SimpleITK and the package surface-distance, on label maps made here."""

from __future__ import annotations

import json
import pathlib
import subprocess

import nibabel
import numpy
import pytest
import SimpleITK
from scipy import ndimage
from scipy.spatial.transform import Rotation
from surface_distance import lookup_tables, metrics

from serving import PROGRAM

CLASSES = 3
TOLERANCE_MM = 2.0
# Distances are kept in single precision.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def blobs(rng: numpy.random.Generator, shape: tuple[int, ...], noise: numpy.ndarray) -> numpy.ndarray:
    """Smooth regions of the classes; they touch the border of the grid, and each other."""
    field = ndimage.gaussian_filter(noise + 0.35 * rng.normal(size=shape), 2.5)
    edges = numpy.quantile(field, [0.72, 0.82, 0.92])
    return numpy.digitize(field, edges).astype(numpy.uint8)


@pytest.fixture(scope="module", params=range(6))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A reference and a prediction on a turned grid with voxels of any size, and what the program says of them."""
    rng = numpy.random.default_rng(request.param)
    shape = tuple(int(n) for n in rng.integers(18, 40, 3))
    spacing = rng.uniform(0.5, 4.0, 3)
    noise = rng.normal(size=shape)
    reference, prediction = blobs(rng, shape, noise), blobs(rng, shape, noise)
    affine = numpy.eye(4)
    affine[:3, :3] = Rotation.random(random_state=request.param).as_matrix() * spacing
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    folder = tmp_path_factory.mktemp("evaluate")
    for name, voxels in (("reference", reference), ("prediction", prediction)):
        (folder / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / name / "case.nii.gz")
    return {
        "folder": folder,
        "spacing": spacing,
        "masks": [(reference == k, prediction == k) for k in range(1, CLASSES + 1)],
        "found": [evaluate(folder)["measures"]["case"][f"label_{k}"] for k in range(1, CLASSES + 1)],
    }


def evaluate(folder: pathlib.Path, *more: str) -> dict:
    command = [PROGRAM, "evaluate", "--json", "--tolerance-mm", str(TOLERANCE_MM)]
    command += ["--reference", folder / "reference", "--prediction", folder / "prediction", *more]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def elements(mask: numpy.ndarray, spacing: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Where the surface has an element, and the area of each; at the corners of the voxels, outside of the grid too."""
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    codes = ndimage.correlate(numpy.pad(mask, 1).astype(numpy.uint8), kernel, mode="constant")
    areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    return (codes != 0) & (codes != 255), areas[codes]


def surfaces(masks: tuple[numpy.ndarray, numpy.ndarray], spacing: numpy.ndarray) -> list[tuple[numpy.ndarray, numpy.ndarray]]:
    """For either direction the distances, nearest first, and the areas of the elements."""
    (a, areas_a), (b, areas_b) = (elements(mask, spacing) for mask in masks)
    result = []
    for here, areas, there in ((a, areas_a, b), (b, areas_b, a)):
        far = ndimage.distance_transform_edt(~there, sampling=spacing)[here]
        order = numpy.argsort(far, kind="stable")
        result.append((far[order], areas[here][order]))
    return result


def test_scipy(case: dict) -> None:
    """The measures as defined, with SciPy's distance transform."""
    for masks, found in zip(case["masks"], case["found"], strict=True):
        directions = surfaces(masks, case["spacing"])
        total = sum(areas.sum() for _, areas in directions)
        within = sum(areas[far <= TOLERANCE_MM].sum() for far, areas in directions)
        assert found["nsd"] == pytest.approx(within / total, **CLOSE)
        assert found["assd_mm"] == pytest.approx(sum((far * areas).sum() for far, areas in directions) / total, **CLOSE)
        hd95 = max(far[min(numpy.searchsorted(areas.cumsum() / areas.sum(), 0.95), len(far) - 1)] for far, areas in directions)
        assert found["hd95_mm"] == pytest.approx(hd95, **CLOSE)


def test_surface_distance(case: dict) -> None:
    """The measures of the package that defined them."""
    for (reference, prediction), found in zip(case["masks"], case["found"], strict=True):
        distances = metrics.compute_surface_distances(reference, prediction, tuple(case["spacing"]))
        assert found["nsd"] == pytest.approx(metrics.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM), **CLOSE)
        assert found["hd95_mm"] == pytest.approx(metrics.compute_robust_hausdorff(distances, 95), **CLOSE)
        averages = metrics.compute_average_surface_distance(distances)
        areas = [distances["surfel_areas_gt"].sum(), distances["surfel_areas_pred"].sum()]
        assert found["assd_mm"] == pytest.approx(numpy.average(averages, weights=areas), **CLOSE)
        assert found["dice"] == pytest.approx(metrics.compute_dice_coefficient(reference, prediction))


def test_simpleitk(case: dict) -> None:
    """Overlap and volume as an independent reader of the files sees them; its Hausdorff distance bounds ours."""
    images = [SimpleITK.ReadImage(str(case["folder"] / name / "case.nii.gz"), SimpleITK.sitkUInt8) for name in ("reference", "prediction")]
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    statistics = [SimpleITK.LabelShapeStatisticsImageFilter() for _ in images]
    for filter_, image in zip(statistics, images, strict=True):
        filter_.Execute(image)
    diagonal = float(numpy.linalg.norm(case["spacing"]))
    for k, found in enumerate(case["found"], 1):
        assert found["dice"] == pytest.approx(overlap.GetDiceCoefficient(k))
        volumes = [filter_.GetPhysicalSize(k) / 1000 for filter_ in statistics]
        assert found["reference_ml"] == pytest.approx(volumes[0], rel=1e-4)
        assert found["prediction_ml"] == pytest.approx(volumes[1], rel=1e-4)
        assert found["volume_difference_ml"] == pytest.approx(volumes[1] - volumes[0], abs=1e-4)
        # Its distances are those between voxels of the whole structures; ours are between corners of their surfaces.
        hausdorff = SimpleITK.HausdorffDistanceImageFilter()
        hausdorff.Execute(images[0] == k, images[1] == k)
        assert found["hd95_mm"] <= hausdorff.GetHausdorffDistance() + diagonal
        assert found["assd_mm"] <= found["hd95_mm"]


def test_interval(tmp_path: pathlib.Path) -> None:
    """The interval of the mean is that of SciPy's percentile bootstrap, but for the random draws."""
    from scipy import stats

    rng = numpy.random.default_rng(7)
    dice = []
    for name in ("reference", "prediction"):
        (tmp_path / name).mkdir()
    for n in range(12):
        reference, prediction = (rng.random((6, 7, 8)) < share for share in (0.5, rng.uniform(0.2, 0.9)))
        for name, voxels in (("reference", reference), ("prediction", prediction)):
            nibabel.save(nibabel.Nifti1Image(voxels.astype(numpy.uint8), numpy.eye(4)), tmp_path / name / f"{n}.nii.gz")
        dice.append(2 * (reference & prediction).sum() / (reference.sum() + prediction.sum()))
    found = evaluate(tmp_path)["summary"]["label_1"]["dice"]
    expected = stats.bootstrap((dice,), numpy.mean, n_resamples=20000, method="percentile", rng=rng).confidence_interval
    assert found["mean"] == pytest.approx(numpy.mean(dice))
    width = expected.high - expected.low
    assert found["ci95"] == pytest.approx([expected.low, expected.high], abs=0.1 * width)
