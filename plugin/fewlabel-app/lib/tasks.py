"""The tasks of MONAI Label, each done by the Fewlabel server."""

from __future__ import annotations

import hashlib
import logging
import pathlib
import tempfile
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.random import Random

from .remote import Remote, RemoteError

logger = logging.getLogger(__name__)

FINAL = "final"
MAX_SKIPS = 5
"""Images of the Fewlabel project that are not open here, before something else is offered."""


class RemoteInfer(InferTask):
    """Proposes a segmentation."""

    def __init__(self, remote: Remote, model: str, about: dict[str, Any]) -> None:
        config = {key: value for key, value in (about.get("config") or {}).items() if key != "device"}
        super().__init__(about.get("type", "segmentation"), about.get("labels"), about.get("dimension", 3), about.get("description", ""), config)
        self._remote, self._model = remote, model

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        image = pathlib.Path(request["image"])
        params = {key: request[key] for key in ("result_extension", "result_dtype", "result_compress", "restore_label_idx", *self.config()) if request.get(key) is not None}
        params.setdefault("result_extension", ".nii.gz")
        result, label_map = self._remote.infer(self._model, image, params)
        with tempfile.NamedTemporaryFile(suffix=params["result_extension"], delete=False) as file:
            file.write(label_map)
        return file.name, result


class RemoteTrain(TrainTask):
    """Sends what was labelled here, then trains there."""

    def __init__(self, remote: Remote, model: str, about: dict[str, Any]) -> None:
        super().__init__(about.get("description", "Fine-tunes at the Fewlabel server"))
        self._remote, self._model, self._about = remote, model, about

    def config(self) -> dict[str, Any]:
        return dict(self._about.get("config") or {})

    def stats(self) -> dict[str, Any]:
        try:
            return self._remote.info().get("train_stats", {}).get(self._model, {})
        except RemoteError as error:
            logger.warning("%s", error)
            return {}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        sent = send_labels(self._remote, datastore)
        logger.info("%d labels are at the Fewlabel server", sent)

        def report(stats: dict[str, Any]) -> None:
            logger.info("epoch %s of %s, best metric %s", stats.get("epoch"), stats.get("total_epochs"), stats.get("best_metric"))

        return self._remote.train(self._model, request, report)


class RemoteStrategy(Strategy):
    """Asks the Fewlabel server which image is next. It can only choose among images that it has: serve it the same studies folder."""

    def __init__(self, remote: Remote, name: str, about: dict[str, Any]) -> None:
        super().__init__(about.get("description", name))
        self._remote, self._name = remote, name
        self._random = Random()

    def __call__(self, request: dict[str, Any], datastore: Any) -> Any:
        open_here = set(datastore.get_unlabeled_images(FINAL))
        image = self._remote.next_image(self._name)
        for _ in range(MAX_SKIPS):
            if image is None or image in open_here:
                break
            image = self._remote.skip_image(self._name)
        if image in open_here:
            return {"id": image}
        if open_here:
            logger.warning("the Fewlabel server offers no image that is open here; a random one is taken. Serve it the same studies folder")
        return self._random(request, datastore)


def send_labels(remote: Remote, datastore: Any) -> int:
    """Brings every final label to the server, with its image where that is missing; what is there already is not sent again."""
    count = 0
    for image in datastore.get_labeled_images(FINAL):
        label_id = datastore.get_label_by_image_id(image, FINAL)
        image_path, label_path = pathlib.Path(datastore.get_image_uri(image)), pathlib.Path(datastore.get_label_uri(label_id, FINAL))
        info = datastore.get_label_info(label_id, FINAL) or {}
        params = {key: info[key] for key in ("label_info", "annotated_labels") if info.get(key)}
        remote.ensure_image(image, image_path, f"SHA256:{sha256(image_path)}")
        # The time is in the key: who goes back to an earlier label submits it once more.
        key = hashlib.sha256(f"{image}\n{sha256(label_path)}\n{info.get('ts')}".encode()).hexdigest()
        remote.submit(image, label_path, params, str(info.get("client_id") or ""), key)
        count += 1
    return count


def sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
