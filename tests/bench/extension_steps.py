"""What the Slicer extension does on Slicer's main thread with a large CT, step by step: `extension_steps.py`, in the Python of tests/slicer.

Prints processor time of the calling thread, which load of the machine changes little, and wall time.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/slicer/shim"), str(ROOT / "slicer-extension/Fewlabel")]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy  # noqa: E402
import slicer  # noqa: E402
import slicer.util  # noqa: E402
from PySide6 import QtWidgets  # noqa: E402

import start  # noqa: E402

SHAPE = (200, 512, 512)
STRUCTURES = 8


def timed(what: str, step: Callable[[], Any]) -> Any:
    wall, processor = time.monotonic(), time.thread_time()
    result = step()
    print(f"{what}: {(time.thread_time() - processor) * 1000:.0f} ms of processor time, {(time.monotonic() - wall) * 1000:.0f} ms")
    return result


def main() -> None:
    from FewlabelLib import labels, nrrd
    from FewlabelLib.mrml import MrmlScene
    from FewlabelLib.session import Case, Shown

    application = QtWidgets.QApplication([])
    with tempfile.TemporaryDirectory() as name:
        start.start(pathlib.Path(name))
        schema = labels.Schema.of_names([f"structure {number}" for number in range(STRUCTURES)])
        image = pathlib.Path(name) / "image.nii"
        voxels = numpy.zeros(SHAPE, numpy.uint8)
        for number in range(STRUCTURES):
            voxels[20 * number : 20 * number + 40, 50 + 20 * number : 150 + 20 * number, 100:260] = number + 1
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "x")
        slicer.util.updateVolumeFromArray(volume, numpy.random.default_rng(0).integers(-1000, 1000, SHAPE, numpy.int16))
        slicer.util.saveNode(volume, str(image))
        slicer.mrmlScene.RemoveNode(volume)
        grid = numpy.diag((1.0, 1.0, 1.0, 1.0))
        scene = MrmlScene()
        case = Case("image", "image")
        timed("show a case (Slicer reads its file)", lambda: scene.show(Shown(case, image, None, []), schema))
        timed("put a proposal", lambda: scene.put(voxels, grid, schema))
        timed("put another, behind an undo step", lambda: scene.put(voxels, grid, schema))
        timed("undo", scene.undo)
        drawing = timed("copy what was drawn, for a draft or a submit", scene.copy)
        flat = timed("flatten it (off the main thread)", lambda: drawing.flat(schema))
        assert numpy.array_equal(flat.voxels, voxels)
        timed("write the draft (off the main thread)", lambda: nrrd.write(pathlib.Path(name) / "draft.nrrd", flat.voxels, grid))
    application.quit()


if __name__ == "__main__":
    main()
