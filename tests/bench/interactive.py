"""Clicks and strokes on one scan of 256 x 256 x 128 voxels, through a running server. Prints one JSON document.

    tests/.venv/bin/python tests/bench/interactive.py [--binary target/release/fewlabel] [--model MODEL_DIR]

Without --model, which has to take clicks and to have the labels liver and spleen, one is trained for a few steps: times do not
depend on what it has learned. `wall_s` is what the client waits for, `processor_s` the worker's processor time meanwhile,
`peak_mib` the largest resident memory of the worker in that request.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))

import numpy  # noqa: E402
from monailabel.client.client import MONAILabelClient  # noqa: E402
from studies import memory_mib, processor_s  # noqa: E402

import serving  # noqa: E402

SHAPE, SPACING_MM = (256, 256, 128), (1.5, 1.5, 2.5)


def worker_of(server: int) -> int:
    """The process that computes: the server's only child."""
    children = [pathlib.Path(f"/proc/{task}/children") for task in os.listdir(f"/proc/{server}/task")]
    found = pathlib.Path(f"/proc/{server}/task/{server}/children").read_text().split() or [
        pid for path in children if path.exists() for pid in path.read_text().split()
    ]
    return int(found[0])


class Site:
    def __init__(self, client: MONAILabelClient, worker: int) -> None:
        self.client, self.worker = client, worker

    def ask(self, model: str, params: dict, strokes: pathlib.Path | None = None) -> dict:
        """One request, and what it took."""
        pathlib.Path(f"/proc/{self.worker}/clear_refs").write_text("5")  # the peak begins anew
        processor, start = processor_s(self.worker), time.perf_counter()
        sent = params | {"result_extension": ".nrrd", "result_dtype": "uint8"}
        file, answer = self.client.infer(model, serving.STUDIES[0], sent, label_in=strokes and str(strokes))
        wall = time.perf_counter() - start
        os.unlink(file)
        latencies = {key: round(answer["latencies"][key], 3) for key in ("pre", "infer", "invert", "post", "write")}
        return {
            "wall_s": round(wall, 3),
            "processor_s": round(processor_s(self.worker) - processor, 2),
            "peak_mib": round(memory_mib(self.worker, "VmHWM")),
            "windows": answer["windows"],
            "stages_s": latencies,
        }


def middle(value: int) -> list[int]:
    return [round(part.mean()) for part in numpy.nonzero(serving.torso(0)[1] == value)]


def strokes(path: pathlib.Path) -> pathlib.Path:
    """Value 3 background and 4 foreground, as 3D Slicer writes them after two labels."""
    marks = numpy.zeros(serving.SHAPE, numpy.uint8)
    i, j, k = middle(1)
    marks[i - 12 : i + 13, j - 2 : j + 3, k - 1 : k + 2] = 4
    marks[i - 2 : i + 3, j - 12 : j + 13, k + 8] = 4
    marks[60:200, 120:126, 10:12] = 3
    marks[128:132, 60:200, 64] = 3
    serving.save(path, marks)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=serving.PROGRAM)
    parser.add_argument("--model", type=pathlib.Path)
    args = parser.parse_args()
    serving.PROGRAM = args.binary
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = args.model or serving.click_model(folder, steps=20)
        manifest = json.loads((model / "manifest.json").read_text())
        serving.SHAPE, serving.SPACING_MM = SHAPE, SPACING_MM
        result: dict = {"network": manifest["name"], "patch": manifest["patch"], "spacing_mm": manifest["preprocessing"]["spacing_mm"]}
        with serving.running(folder, "--model", str(model), "--log", "warn") as server:
            site = Site(MONAILabelClient(server.url, tmpdir=str(folder)), worker_of(server.pid))
            edit = f"{manifest['name']}-deepedit"
            points: dict = {"liver": [], "spleen": []}
            result["clicks"] = {}
            i, j, k = middle(1)
            for number in range(6):
                # Each somewhere else in the organ.
                points["liver"].append([i + 7 * (number % 3) - 7, j + 9 * (number // 3), k + 5 * (number % 2)])
                key = "first, with the load" if number == 0 else f"click {number + 1}"
                result["clicks"][key] = site.ask(edit, points)
            result["clicks"]["the same again"] = site.ask(edit, points)
            drawn = strokes(folder / "strokes.nii.gz")
            names = ("liver", "spleen", "background_scribbles", "foreground_scribbles")
            info = [{"name": name, "id": at} for at, name in enumerate(names, 1)]
            result["strokes"] = {}
            for method in ("Histogram+GraphCut", "GMM+GraphCut"):
                for prior in (False, True):
                    sent = {"label_info": info, "selected_label_name": "liver", "model_prior": prior, "roi": []}
                    for number in (1, 2):
                        key = f"{method}, {'with the model' if prior else 'strokes alone'}, {number}"
                        result["strokes"][key] = site.ask(method, sent, drawn)
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
