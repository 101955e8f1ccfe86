"""Scribbles, Deepgrow and DeepEdit in the unmodified Slicer plugin, with a model that learned to take clicks."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy
import pytest
import requests
import slicer
import slicer.util
import vtk
from PySide6 import QtWidgets

from panel import Panel
from serving import LABELS, STUDIES, Server, click_model, running, torso

MODEL = "pct-net-s-clicks"
METHODS = ["Histogram+GraphCut", "GMM+GraphCut"]


@pytest.fixture(scope="module")
def clicking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("interactive")
    with running(folder, "--model", str(click_model(folder))) as server:
        yield server


@pytest.fixture
def panel(application: QtWidgets.QApplication, clicking: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Panel]:
    """A new panel in an empty scene, connected, with a sample."""
    slicer.mrmlScene.Clear(0)
    panel = Panel(clicking, caplog)
    panel.set("autoRunSegmentationOnNextSample", 0)
    panel.connect()
    panel.ui.strategyBox.setCurrentText("first")
    panel.click("nextSampleButton")
    yield panel
    panel.close()


def truth(panel: Panel, value: int) -> numpy.ndarray:
    """An organ of the sample, [z, y, x]."""
    image = panel.widget.current_sample["id"]
    seed = STUDIES.index(image) if image in STUDIES else 3
    return value == torso(seed)[1].T


def middle(mask: numpy.ndarray) -> list[int]:
    """A voxel [i, j, k] near the centre."""
    return [round(part.mean()) for part in numpy.nonzero(mask)][::-1]


def ras(panel: Panel, ijk: list[int]) -> list[float]:
    matrix = vtk.vtkMatrix4x4()
    panel.widget._volumeNode.GetIJKToRASMatrix(matrix)
    return list(matrix.MultiplyPoint((*ijk, 1.0))[:3])


def point(panel: Panel, node: vtk.vtkObject, ijk: list[int]) -> None:
    """A point as the mouse places it: it is the active one of its list. The plugin asks the server at once."""
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetActiveControlPoint(node.GetNumberOfControlPoints())
    node.AddControlPoint(vtk.vtkVector3d(*ras(panel, ijk)))
    panel.settle()


def place(panel: Panel, positive: bool, ijk: list[int]) -> None:
    """A point, after which all is well."""
    point(panel, panel.widget.dgPositivePointListNode if positive else panel.widget.dgNegativePointListNode, ijk)
    panel.assert_well()


def draw_box(panel: Panel, low: list[int], high: list[int]) -> None:
    """A box over these voxels, both ends in it."""
    node = panel.ui.scribblesPlaceWidget.currentNode()
    ends = numpy.array([ras(panel, low), ras(panel, high)])
    node.SetCenter(*ends.mean(axis=0))
    node.SetSize(*abs(ends[1] - ends[0]))
    assert node.GetControlPointPlacementComplete()


def dice(found: numpy.ndarray, wanted: numpy.ndarray) -> float:
    return 2 * (found & wanted).sum() / (found.sum() + wanted.sum())


def test_offered(panel: Panel, tmp_path: pathlib.Path) -> None:
    assert panel.texts("segmentationModelSelector") == [MODEL]
    assert panel.texts("deepgrowModelSelector") == [f"{MODEL}-deepedit", f"{MODEL}-deepgrow"]
    assert panel.texts("scribblesMethodSelector") == METHODS
    for group in ("deepgrowCollapsibleButton", "scribblesCollapsibleButton"):
        assert getattr(panel.ui, group).visible
        assert getattr(panel.ui, group).enabled
    panel.ui.optionsName.setCurrentText(METHODS[1])
    assert {"lamda": "1.0", "sigma": "0.1", "num_mixtures": "20"}.items() <= panel.table().items()
    panel.assert_well()
    panel.picture(tmp_path / "interactive.png")


def test_deepgrow(panel: Panel, tmp_path: pathlib.Path) -> None:
    panel.ui.deepgrowModelSelector.setCurrentText(f"{MODEL}-deepgrow")
    panel.settle()
    panel.ui.labelComboBox.setCurrentText(LABELS[0])
    wanted = truth(panel, 1)
    i, j, k = middle(wanted)
    place(panel, True, [i, j, k])
    first = panel.mask(LABELS[0])
    assert first[k, j, i]
    assert not panel.mask(LABELS[1]).any(), "the others stay as they are"
    outside = middle(truth(panel, 2))
    place(panel, False, outside)
    second = panel.mask(LABELS[0])
    assert second[k, j, i]
    assert not second[tuple(outside[::-1])]
    assert panel.segments() == list(LABELS)
    panel.picture(tmp_path / "deepgrow.png")


def test_deepedit(panel: Panel) -> None:
    """Points for one label after the other; the server gets all of them each time."""
    panel.ui.deepgrowModelSelector.setCurrentText(f"{MODEL}-deepedit")
    panel.settle()
    assert not panel.ui.dgNegativeControlPointPlacementWidget.visible
    points = {}
    for value, name in enumerate(LABELS, 1):
        panel.ui.labelComboBox.setCurrentText(name)
        panel.settle()
        points[name] = middle(truth(panel, value))
        place(panel, True, points[name])
    assert panel.segments() == list(LABELS)
    for name, ijk in points.items():
        assert panel.mask(name)[tuple(ijk[::-1])], name
    # Pressing the button asks again with the same points.
    before = [panel.mask(name) for name in LABELS]
    panel.click("dgUpdateButton")
    assert all(numpy.array_equal(panel.mask(name), mask) for name, mask in zip(LABELS, before, strict=True))


def test_point_outside(panel: Panel) -> None:
    panel.ui.deepgrowModelSelector.setCurrentText(f"{MODEL}-deepgrow")
    panel.settle()
    point(panel, panel.widget.dgPositivePointListNode, [500, 5, 5])
    assert any("unexpected error" in text and "(500, 5, 5) lies outside of the image" in text for text in panel.errors())


def paint(panel: Panel, organ: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Strokes through an organ and beside it, [z, y, x]."""
    panel.click("paintScribblesButton")
    assert panel.segments()[-2:] == ["background_scribbles", "foreground_scribbles"]
    i, j, k = middle(organ)
    inside, outside = numpy.zeros_like(organ), numpy.zeros_like(organ)
    inside[k, j - 2 : j + 3, i - 2 : i + 3] = True
    outside[:, :, :2] = True
    outside[2, 18:22, 10:38] = True
    panel.draw("foreground_scribbles", inside)
    panel.draw("background_scribbles", outside)
    return inside, outside


@pytest.mark.parametrize("method", METHODS)
def test_scribbles(panel: Panel, clicking: Server, method: str, tmp_path: pathlib.Path) -> None:
    panel.ui.scribblesMethodSelector.setCurrentText(method)
    panel.ui.scribLabelComboBox.setCurrentText(LABELS[0])
    wanted, other = truth(panel, 1), truth(panel, 2)
    panel.draw(LABELS[1], other)
    inside, outside = paint(panel, wanted)
    panel.click("updateScribblesButton")
    found = panel.mask(LABELS[0])
    assert found[inside].all()
    assert not found[outside].any()
    assert dice(found, wanted) > 0.85
    assert numpy.array_equal(panel.mask("foreground_scribbles"), inside), "the strokes are kept for the next update"

    panel.picture(tmp_path / "scribbles.png")

    # More background takes voxels away, at once and for certain.
    wrong = outside.copy()
    i, j, k = middle(wanted)
    wrong[k + 2, j, i - 3 : i + 4] = True
    panel.draw("background_scribbles", wrong)
    panel.click("updateScribblesButton")
    assert not panel.mask(LABELS[0])[wrong].any()

    # The plugin leaves the strokes out of what it submits, and keeps them on the screen.
    panel.click("saveLabelButton")
    image = panel.widget.current_sample["id"]
    objects = requests.get(f"{clicking.url}/datastore/", params={"output": "all"}, timeout=60).json()["objects"]
    info = objects[image]["labels"]["final"]["info"]
    assert [entry["name"] for entry in info["label_info"]] == list(LABELS)
    requests.delete(f"{clicking.url}/datastore/label", params={"id": image, "tag": "final"}, timeout=60)


def test_scribbles_in_a_box(panel: Panel) -> None:
    panel.ui.scribblesMethodSelector.setCurrentText(METHODS[1])
    panel.ui.scribLabelComboBox.setCurrentText(LABELS[1])
    wanted = truth(panel, 2)
    paint(panel, wanted)
    corners = [part[::-1] for part in (numpy.argwhere(wanted).min(axis=0) - 2, numpy.argwhere(wanted).max(axis=0) + 2)]
    low, high = ([int(v) for v in corner] for corner in corners)
    draw_box(panel, low, high)
    panel.click("updateScribblesButton")
    found = panel.mask(LABELS[1])
    assert dice(found, wanted) > 0.85
    found[low[2] - 1 : high[2] + 2, low[1] - 1 : high[1] + 2, low[0] - 1 : high[0] + 2] = False
    assert not found.any(), "nothing outside of the box"


def test_scribbles_on_a_local_scan(panel: Panel, clicking: Server) -> None:
    """A scan that the server does not know: the strokes go with its session."""
    slicer.mrmlScene.Clear(0)
    slicer.util.loadVolume(clicking.extra, {"name": "local scan"})
    panel.settle()
    panel.ui.scribLabelComboBox.setCurrentText(LABELS[0])
    wanted = truth(panel, 1)
    paint(panel, wanted)
    panel.click("updateScribblesButton")
    assert dice(panel.mask(LABELS[0]), wanted) > 0.85
    assert panel.widget.current_sample["session_id"]


def test_nothing_painted(panel: Panel) -> None:
    panel.ui.optionsName.setCurrentText(METHODS[0])
    panel.edit("model_prior", False)
    panel.ui.scribblesMethodSelector.setCurrentText(METHODS[0])
    panel.click("paintScribblesButton")
    panel.ui.updateScribblesButton.click()
    panel.settle()
    assert any("there are no foreground strokes" in text for text in panel.errors()), panel.errors()
