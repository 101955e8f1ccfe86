"""The real MONAI Label client against the built server with its real worker, on synthetic scans.

Runs every test of ``test_client.py`` and one round of fine-tuning. ``FEWLABEL_BINARY`` names the program
(default: ``target/release/fewlabel``).
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

import nibabel
import numpy
from monailabel.client.client import MONAILabelClient

HERE = pathlib.Path(__file__).resolve().parent
BINARY = pathlib.Path(os.environ.get("FEWLABEL_BINARY", HERE.parent.parent / "target/release/fewlabel"))
LABELS = ["sphere", "box"]
SHAPE = (40, 36, 24)


def write_case(folder: pathlib.Path, name: str, seed: int) -> tuple[pathlib.Path, pathlib.Path]:
    """A noisy scan with a bright sphere and a brighter box, and its label map."""
    rng = numpy.random.default_rng(seed)
    i, j, k = numpy.indices(SHAPE)
    centre = rng.uniform(12, 24, 3) * (1, 1, 0.6)
    label = numpy.zeros(SHAPE, numpy.uint8)
    label[(i - centre[0]) ** 2 + (j - centre[1]) ** 2 + ((k - centre[2]) * 2) ** 2 < 64] = 1
    label[2:8, 4:12, 4:14] = 2
    scan = rng.normal(0, 30, SHAPE) + 150 * (label == 1) + 400 * (label == 2)
    affine = numpy.diag([-1.5, -1.5, 3.0, 1.0])
    files = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    for file, voxels in zip(files, (scan.astype(numpy.int16), label), strict=True):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), file)
    return files


class ServerTest(unittest.TestCase):
    """A server of its own for each test."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.studies = self.folder / "studies"
        self.studies.mkdir()

    def serve(self) -> str:
        """Starts the server and returns its address."""
        server = subprocess.Popen(
            [BINARY, "serve", "--studies", self.studies, "--labels", ",".join(LABELS), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def stop() -> None:
            server.terminate()
            server.wait(60)
            server.stdout.close()

        self.addCleanup(stop)
        found = re.search(r"http://[0-9.:]+", server.stdout.readline())
        self.assertIsNotNone(found)
        return found.group(0)

    def test_every_method_of_the_client(self) -> None:
        image, label = write_case(self.folder, "scan", 1)
        url = self.serve()
        environment = {**os.environ, "FEWLABEL_URL": url, "FEWLABEL_IMAGE": str(image), "FEWLABEL_LABEL": str(label)}
        done = subprocess.run([sys.executable, HERE / "test_client.py"], env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("skipped", done.stderr)

    def test_a_round(self) -> None:
        labels = {}
        for seed in range(3):
            image, labels[f"case_{seed}"] = write_case(self.folder, f"case_{seed}", seed)
            image.rename(self.studies / image.name)
        client = MONAILabelClient(self.serve(), tmpdir=str(self.folder))
        info = client.info()
        model = next(iter(info["models"]))
        self.assertEqual(info["labels"], LABELS)
        self.assertIn("not", info["models"][model]["description"])
        for _ in labels:
            sample = client.next_sample("first", {})
            segments = [{"name": name, "idx": k} for k, name in enumerate(LABELS, 1)]
            client.save_label(sample["id"], str(labels[sample["id"]]), params={"label_info": segments})
        self.assertEqual(client.next_sample("first", {}), {})
        self.assertEqual(client.info()["datastore"]["completed"], 3)

        _, before = client.infer(model, "case_0", {"result_extension": ".nrrd"})
        client.train_start(model, {"steps": 3, "val_split": 0.0, "seed": 1})
        # The old version answers while the new one is made.
        _, during = client.infer(model, "case_1", {"result_extension": ".nrrd"})
        self.assertIn(during["model_version"], (before["model_version"], before["model_version"] + 1))
        deadline = time.monotonic() + 600
        while (task := client.train_status())["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < deadline:
            client.info()
            time.sleep(0.5)
        self.assertEqual(task["status"], "DONE", task)
        mask, after = client.infer(model, "case_0", {"result_extension": ".nii.gz", "result_dtype": "uint8"})
        self.assertEqual(after["model_version"], before["model_version"] + 1)
        self.assertNotEqual(after["model_sha256"], before["model_sha256"])
        proposal = nibabel.load(mask)
        image = nibabel.load(self.studies / "case_0.nii.gz")
        self.assertEqual(proposal.shape, image.shape)
        numpy.testing.assert_allclose(proposal.affine, image.affine, atol=1e-3)


if __name__ == "__main__":
    unittest.main()
