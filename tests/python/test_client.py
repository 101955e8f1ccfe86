"""The real MONAI Label Python client against a running server.

Environment:
    FEWLABEL_URL      address of the server
    FEWLABEL_IMAGE    an image file that the server can read (uploaded, used for a session)
    FEWLABEL_LABEL    a label file that fits that image
    FEWLABEL_MODEL    name of the model (default: the first one of /info/)

Needs the packages ``requests`` and ``monailabel`` (only its client module is imported), and Python
up to 3.12, because the client uses the module ``cgi``.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
import unittest

from monailabel.client.client import MONAILabelClient, MONAILabelClientException

URL = os.environ.get("FEWLABEL_URL", "")
IMAGE = os.environ.get("FEWLABEL_IMAGE", "")
LABEL = os.environ.get("FEWLABEL_LABEL", "")
WAIT_S = float(os.environ.get("FEWLABEL_WAIT_S", "60"))


@unittest.skipUnless(URL and IMAGE and LABEL, "FEWLABEL_URL, FEWLABEL_IMAGE and FEWLABEL_LABEL are not set")
class ClientTest(unittest.TestCase):
    """Every method that Slicer and scripts call."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.client = MONAILabelClient(URL, tmpdir=folder.name, client_id="python-test")
        self.model = os.environ.get("FEWLABEL_MODEL") or next(iter(self.client.info()["models"]))

    def upload(self, image_id: str) -> str:
        answer = self.client.upload_image(IMAGE, image_id=image_id, params={"note": "test"})
        self.assertEqual(answer, {"image": image_id})
        return image_id

    def test_auth_is_off(self) -> None:
        self.assertFalse(self.client.auth_enabled())

    def test_info(self) -> None:
        info = self.client.info()
        self.assertEqual(
            list(info),
            [
                "name",
                "description",
                "version",
                "labels",
                "models",
                "trainers",
                "strategies",
                "scoring",
                "train_stats",
                "datastore",
            ],
        )
        model = info["models"][self.model]
        self.assertEqual(model["type"], "segmentation")
        self.assertEqual(list(model["labels"].values()), list(range(1, len(info["labels"]) + 1)))
        for section in ("models", "trainers", "strategies", "scoring"):
            for entry in info[section].values():
                self.assertIsInstance(entry["description"], str)
                for value in entry.get("config", {}).values():
                    self.assertNotEqual(value, [])

    def test_next_sample_and_label(self) -> None:
        image = self.upload("python case 1.5")
        sample = self.client.next_sample("first", {})
        self.assertTrue(sample["id"])
        self.assertTrue(sample["name"].endswith((".nii.gz", ".nii", ".nrrd")))
        self.assertRegex(sample["checksum"], "^SHA256:[0-9a-f]{64}$")
        before = self.client.info()["datastore"]["completed"]
        params = {"label_info": [{"name": name, "idx": k} for k, name in enumerate(self.client.info()["labels"], 1)]}
        answer = self.client.save_label(image, LABEL, params=params)
        self.assertEqual(answer, {"image": image, "label": image})
        self.assertEqual(self.client.info()["datastore"]["completed"], before + 1)
        objects = self.client.datastore()["objects"]
        self.assertEqual(objects[image]["labels"]["final"]["info"]["client_id"], "python-test")
        self.assertEqual(objects[image]["image"]["info"]["note"], "test")
        downloaded = self.client.download_label(image, "final")
        self.assertTrue(downloaded.endswith("".join(objects[image]["labels"]["final"]["ext"])))
        self.assertGreater(pathlib.Path(downloaded).stat().st_size, 0)
        self.client.save_label(image, LABEL, tag="version_1", params=params)
        self.assertEqual(list(self.client.datastore()["objects"][image]["labels"]), ["final", "version_1"])

    def test_unknown_strategy_and_label(self) -> None:
        with self.assertRaises(MONAILabelClientException):
            self.client.next_sample("no-such-strategy", {})
        with self.assertRaises(MONAILabelClientException):
            self.client.download_label("no-such-image", "final")

    def test_infer(self) -> None:
        image = self.upload("python-infer")
        mask, params = self.client.infer(
            self.model, image, {"result_extension": ".nrrd", "result_dtype": "uint8", "unknown": [1]}
        )
        self.check_mask(mask, params)
        mask, params = self.client.infer(self.model, "", {"result_extension": ".nrrd"}, file=IMAGE)
        self.check_mask(mask, params)

    def check_mask(self, mask: str, params: dict[str, object]) -> None:
        self.assertEqual(pathlib.Path(mask).parent, self.folder)
        self.assertTrue(mask.endswith(".nrrd"))
        data = pathlib.Path(mask).read_bytes()
        self.assertTrue(data.startswith(b"NRRD000"))
        header, voxels = data.split(b"\n\n", 1)
        fields = dict(line.split(b": ", 1) for line in header.split(b"\n") if b": " in line)
        if fields[b"encoding"] == b"raw":
            sizes = [int(size) for size in fields[b"sizes"].split()]
            self.assertEqual(len(voxels), sizes[0] * sizes[1] * sizes[2])
        self.assertIsInstance(params["label_names"], dict)

    def test_session(self) -> None:
        session = self.client.create_session(IMAGE)
        session_id = session["session_id"]
        self.assertEqual(
            list(session["session_info"]),
            ["name", "path", "image", "meta", "create_ts", "last_access_ts", "expiry"],
        )
        self.assertEqual(self.client.get_session(session_id)["expiry"], session["session_info"]["expiry"])
        mask, params = self.client.infer(self.model, "", {"result_extension": ".nrrd"}, session_id=session_id)
        self.check_mask(mask, params)
        self.client.remove_session(session_id)
        with self.assertRaises(MONAILabelClientException) as gone:
            self.client.get_session(session_id)
        self.assertEqual(gone.exception.status_code, 404)

    def test_train(self) -> None:
        image = self.upload("python-train")
        self.client.save_label(image, LABEL)
        self.assertIsNone(self.client.train_stop())
        self.assertFalse(self.client.train_status(check_if_running=True))
        task = self.client.train_start(self.model, {"max_epochs": 1, "name": "train_01"})
        self.assertEqual(task["request"]["model"], self.model)
        self.assertRegex(task["start_ts"], r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$")
        self.assertEqual(self.client.train_status()["id"], task["id"])
        stopped = self.client.train_stop()
        if stopped is not None:
            self.assertEqual(stopped["id"], task["id"])
            self.assertTrue(stopped["details"][-1])
        deadline = time.monotonic() + WAIT_S
        while self.client.train_status(check_if_running=True) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.assertIn(self.client.train_status()["status"], ("STOPPED", "DONE", "ERROR"))
        self.assertIn(self.model, self.client.info()["train_stats"])


if __name__ == "__main__":
    unittest.main()
