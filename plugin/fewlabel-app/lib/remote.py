"""A Fewlabel server, as far as the application needs it."""

from __future__ import annotations

import json
import logging
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import requests

logger = logging.getLogger(__name__)

CONNECT_S = 10
ANSWER_S = 120
COMPUTE_S = 3600
POLL_S = 2.0
TRAINING_KEYS = ("name", "max_epochs", "steps", "val_split", "pretrained", "seed", "learning_rate", "batch", "early_stop_patience")


class RemoteError(Exception):
    """The server cannot be reached or refuses; the text says what to do."""


class Remote:
    """One server, as one client."""

    def __init__(self, url: str, client_id: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self.client_id = client_id
        self._headers = {"User-Agent": "fewlabel-monai-app"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def _call(self, method: str, path: str, answer_s: float = ANSWER_S, known: tuple[int, ...] = (200,), headers: dict[str, str] | None = None, **options: Any) -> requests.Response:
        try:
            answer = requests.request(method, self.url + path, timeout=(CONNECT_S, answer_s), headers=self._headers | (headers or {}), **options)
        except requests.RequestException as error:
            raise RemoteError(f"the Fewlabel server {self.url} cannot be reached ({type(error).__name__}); check that it runs, and --conf fewlabel") from error
        if answer.status_code not in known:
            try:
                detail = answer.json().get("detail", "")
            except ValueError:
                detail = answer.text[:200]
            raise RemoteError(f"the Fewlabel server answers {answer.status_code} to {method} {path}: {detail}")
        return answer

    def info(self) -> dict[str, Any]:
        return self._call("GET", "/info/").json()

    def infer(self, model: str, image: pathlib.Path, params: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Segments an image file; the parameters of the answer, and the label map."""
        if image.is_dir():
            raise RemoteError(f"{image} is a folder; a series of DICOM files cannot be sent to the Fewlabel server by this application")
        with open(image, "rb") as file:
            files = {"params": (None, json.dumps(params | {"client_id": self.client_id})), "file": (image.name, file)}
            answer = self._call("POST", f"/infer/{quote(model, safe='')}", COMPUTE_S, files=files)
        parts = parts_of(answer.headers.get("Content-Type", ""), answer.content)
        if set(parts) != {"params", "image"}:
            raise RemoteError(f"the Fewlabel server {self.url} sent no label map")
        return json.loads(parts["params"]), parts["image"]

    def next_image(self, strategy: str) -> str | None:
        answer = self._call("POST", f"/activelearning/{quote(strategy, safe='')}", json={"client_id": self.client_id}).json()
        return answer.get("id")

    def skip_image(self, strategy: str) -> str | None:
        """Another one than the one that it offered."""
        answer = self._call("POST", f"/activelearning/{quote(strategy, safe='')}", json={"client_id": self.client_id, "skip": True}).json()
        return answer.get("id")

    def ensure_image(self, image_id: str, path: pathlib.Path, checksum: str) -> bool:
        """Uploads an image unless the server has it with the same content; whether it had to."""
        if self._call("HEAD", "/datastore/image", known=(200, 404), params={"image": image_id, "check_sum": checksum}).status_code == 200:
            return False
        with open(path, "rb") as file:
            self._call("PUT", "/datastore/image", COMPUTE_S, params={"image": image_id}, files={"file": (path.name, file)})
        return True

    def submit(self, image_id: str, label: pathlib.Path, params: dict[str, Any], author: str, key: str) -> None:
        """Adds a label as its author; the same key again adds nothing."""
        sent = params | {"client_id": author or self.client_id, "tool": "MONAI Label"}
        with open(label, "rb") as file:
            files = {"params": (None, json.dumps(sent)), "label": (label.name, file)}
            self._call("PUT", "/datastore/label", COMPUTE_S, params={"image": image_id, "tag": "final"}, files=files, headers={"Idempotency-Key": key})

    def train(self, model: str, request: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Trains, tells about it, and returns the figures when it has ended."""
        params = {key: request[key] for key in TRAINING_KEYS if key in request} | {"client_id": self.client_id}
        self._call("POST", f"/train/{quote(model, safe='')}", json=params)
        while True:
            task = self._call("GET", "/train/").json()
            stats = self.info().get("train_stats", {}).get(model, {})
            report(stats)
            if task.get("status") not in ("SUBMITTED", "RUNNING"):
                break
            time.sleep(POLL_S)
        if task.get("status") != "DONE":
            details = task.get("details") or [""]
            raise RemoteError(f"the training ended as {task.get('status')}: {details[-1]}")
        return stats

    def stop_own_training(self) -> bool:
        """Stops the training that runs, when this application started it."""
        answer = self._call("GET", "/train/?check_if_running=true", known=(200, 404))
        if answer.status_code == 404 or answer.json().get("request", {}).get("client_id") != self.client_id:
            return False
        self._call("DELETE", "/train/")
        return True


def parts_of(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a multipart answer by name."""
    boundary = re.search(r"boundary=\"?([^\";]+)", content_type)
    if boundary is None:
        return {}
    parts = {}
    for part in body.split(b"--" + boundary[1].encode()):
        head, found, content = part.partition(b"\r\n\r\n")
        name = re.search(rb' name="([^"]*)"', head)
        if found and name:
            parts[name[1].decode()] = content.removesuffix(b"\r\n")
    return parts
