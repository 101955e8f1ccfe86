"""What the tests of the Slicer extension have in common: its modules, a scene without Slicer, a server that fails on order."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy

from FewlabelLib import labels, nrrd
from FewlabelLib.client import Client
from FewlabelLib.drafts import Drafts
from FewlabelLib.jobs import Jobs
from FewlabelLib.session import Busy, Session, Shown
from serving import LABELS, PROGRAM, ROOT, make_studies

EXTENSION = ROOT / "slicer-extension"
GRID = numpy.diag((-3.0, -3.5, 6.0, 1.0))
SHAPE = (4, 5, 6)
NAMES = ("liver", "spleen")


class Timer:
    """Stands for Qt's; the tests call `tick` themselves."""

    running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False


class FakeScene:
    """The scene as masks by segment name; the shape is that of the stub's images."""

    def __init__(self, shape: tuple[int, int, int] = SHAPE, grid: numpy.ndarray = GRID) -> None:
        self.on_edit: Callable[[], None] = lambda: None
        self.shape, self.grid = shape, grid
        self.shown: Shown | None = None
        self.masks: dict[str, numpy.ndarray] = {}
        self.offered: numpy.ndarray | None = None
        self.before: dict[str, numpy.ndarray] | None = None
        self.loaded = {"v1": "my scan"}
        self.broken = False
        self.jumps: list[Any] = []
        self.readings: list[Shown] = []

    def show(self, shown: Shown, schema: labels.Schema) -> None:
        if self.broken:
            raise ValueError("it is broken")
        self.masks = {name: numpy.zeros(self.shape, bool) for name in schema.names}
        self.shown, self.before, self.offered = shown, None, None
        if shown.voxels is not None:
            self._fill(shown.voxels, shown.names, shown.covered)

    def _fill(self, voxels: numpy.ndarray, names: list[str], covered: dict[str, numpy.ndarray] | None = None) -> None:
        if voxels.shape != self.shape:
            raise ValueError("another grid")
        self.masks.update(labels.masks(voxels, names, covered or {}))

    def put(self, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray, schema: labels.Schema) -> None:
        before = dict(self.masks)
        self._fill(voxels, schema.names)
        self.before = before

    def offer(self, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray, schema: labels.Schema) -> None:
        self.offered = voxels

    def drop_offer(self) -> None:
        self.offered = None

    def undo(self) -> None:
        if self.before is not None:
            self.masks, self.before = self.before, None

    def can_undo(self) -> bool:
        return self.before is not None

    def copy(self) -> labels.Drawing:
        return labels.Drawing(self.shape, self.grid, tuple(labels.Part(name, mask, (0, 0, 0), 1) for name, mask in self.masks.items()))

    def volumes(self) -> list[tuple[str, str]]:
        return list(self.loaded.items())

    def volume(self, foreign: str) -> tuple[numpy.ndarray, numpy.ndarray]:
        return numpy.full(self.shape, 40, numpy.int16), self.grid

    def jump(self, place: Any) -> None:
        self.jumps.append(place)

    def show_readings(self, shown: list[Shown], schema: labels.Schema) -> None:
        self.readings = shown

    # What the user does

    def draw(self, name: str, mask: numpy.ndarray) -> None:
        self.masks[name] = mask
        self.on_edit()


class Desk:
    """A user's Slicer without Slicer: a session and what it stands on."""

    def __init__(self, folder: pathlib.Path, scene: FakeScene | None = None) -> None:
        self.folder = folder
        self.scene = scene or FakeScene()
        self.jobs = Jobs(Timer())
        self.now_s = 1_000.0
        self.settings: dict[str, Any] = {"auto_propose": False}
        self.session = Session(self.jobs, self.scene, Drafts(folder / "drafts"), folder / "images", self.settings, self._now, quick, tool_version="test")

    def _now(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def wait(self, limit_s: float = 60) -> None:
        """Until no job is pending."""
        deadline = time.monotonic() + limit_s
        while self.jobs.pending:
            self.jobs.tick()
            assert time.monotonic() < deadline, [job.name for job in self.jobs.pending]

    def do(self, command: Callable[..., None], *arguments: Any, **options: Any) -> None:
        command(*arguments, **options)
        self.wait()

    def answer(self, key: str) -> None:
        assert self.session.question, self.session.message
        assert key in dict(self.session.question.choices), self.session.question
        self.do(self.session.answer, key)

    def submit(self, then_next: bool = False) -> None:
        """Submits, sure of what is asked before it."""
        self.do(self.session.submit, then_next)
        self.sure()

    def sure(self) -> None:
        if self.session.question and "counts as not in this image" in self.session.question.text:
            self.answer("submit")

    def said(self) -> str:
        return self.session.message.text if self.session.message else ""

    def draw(self, name: str = "liver", plane: int = 1) -> numpy.ndarray:
        mask = numpy.zeros(self.scene.shape, bool)
        mask[plane, 1:3, 1:4] = True
        self.scene.draw(name, mask)
        return mask

    def case(self, url: str) -> None:
        """Connected and with a case, nothing drawn."""
        self.do(self.session.connect, url, "ann")
        self.do(self.session.next_case)
        assert self.session.case, self.said()
        assert self.session.busy is Busy.NOTHING


def quick(url: str, user: str, **options: Any) -> Client:
    """A client that gives up soon."""
    return Client(url, user, waits_s=(0.01, 0.02), answer_s=20, compute_s=20, **options)


class Stub:
    """A server in this process that can be made slow, wrong or dead."""

    def __init__(self, images: int = 3) -> None:
        self.images = {f"case {n}": image_bytes(n) for n in range(images)}
        self.labels: dict[tuple[str, str], list[bytes]] = {}
        self.params: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.keys: dict[str, int] = {}
        self.asked: list[str] = []
        self.delay_s = 0.0
        self.failing: dict[str, list[int | str]] = {}
        """By method and path: statuses to answer with, or `cut before` and `cut after` (the work), one for each request."""
        self.proposal = proposal_bytes()
        self.told: dict[str, Any] = {}
        self.reviews: dict[str, Any] = {}
        self.orders: list[tuple[str, str, dict[str, str]]] = []
        """What a lead decided."""
        self.project = project()
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def _serve(self) -> None:
                stub.serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve  # noqa: N815

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def submitted(self, image: str, tag: str = "final") -> numpy.ndarray:
        return nrrd.read(self.labels[image, tag][-1])[0]

    def serve(self, request: Any) -> None:
        parts = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        what = f"{request.command} {parts.path}"
        self.asked.append(what)
        time.sleep(self.delay_s)
        failure = self.failing[what].pop(0) if self.failing.get(what) else None
        if failure == "cut before":
            self._cut(request)
            return
        if isinstance(failure, int):
            self._answer(request, failure, {"detail": "on order", "code": "ordered", "request_id": "r-1"})
            return
        answer = self.work(request.command, parts.path, query, body, request.headers)
        if failure == "cut after":
            self._cut(request)
            return
        self._answer(request, *answer)

    @staticmethod
    def _cut(request: Any) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.shutdown(socket.SHUT_RDWR)

    def work(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any, dict[str, str]]:
        if path == "/info/":
            counts = {"total": len(self.images), "completed": sum(tag == "final" for _, tag in self.labels), "label_tags": {}}
            model = {"type": "segmentation", "labels": {"liver": 1, "spleen": 2}, "description": "PCT-Net for CT, version 1"}
            info = {"name": "Stub", "labels": list(NAMES), "models": {"pct-net-s": model}, "strategies": {"random": {}, "first": {}}, "datastore": counts}
            return 200, info, {}
        if path.startswith("/activelearning/"):
            open_cases = [image for image in self.images if (image, "final") not in self.labels]
            if not open_cases:
                return 200, {}, {}
            content = self.images[open_cases[0]]
            return 200, {"id": open_cases[0], "name": f"{open_cases[0]}.nrrd", "checksum": f"SHA256:{hashlib.sha256(content).hexdigest()}", **self.told}, {}
        if path == "/datastore/image" and method == "GET":
            if query["image"] not in self.images:
                return 404, {"detail": "Image NOT Found"}, {}
            return 200, self.images[query["image"]], {"Content-Disposition": 'attachment; filename="image.nrrd"'}
        if path == "/datastore/image":
            self.images[query["image"]] = file_of(body)
            return 200, {"image": query["image"]}, {}
        if path == "/datastore/schema":
            return 200, {"structures": [{"name": "liver", "value": 1, "color_rgb": [200, 60, 50], "terminology": None}]}, {}
        if path in ("/datastore/label/map", "/datastore/label"):
            return self.label(method, path, query, body, headers)
        if path.startswith("/infer/"):
            params = {"label_names": {"liver": 1, "spleen": 2}, "model": "pct-net-s", "model_version": 3}
            content = b'--b\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n' + json.dumps(params).encode()
            content += b'\r\n--b\r\nContent-Disposition: form-data; name="image"; filename="x.nrrd"\r\n\r\n' + self.proposal + b"\r\n--b--\r\n"
            return 200, content, {"Content-Type": "multipart/form-data; boundary=b"}
        if path == "/session/":
            return 200, {"session_id": "s1"}, {}
        if path == "/reviews/":
            if method == "PUT":
                sent = json.loads(body)
                self.reviews[query["image"]] = {"verdict": sent["verdict"], "reviewer": sent["client_id"], "comment": sent["comment"], "ts": 0}
                return 200, {}, {}
            submitted = [(image, revisions) for (image, tag), revisions in self.labels.items() if tag == "final"]
            author = {image: self.params[image, "final"][-1]["client_id"] for image, _ in submitted}
            cases = [{"image": image, "revision": len(revisions), "author": author[image], "ts": 1_700_000_000, "review": self.reviews.get(image)} for image, revisions in submitted]
            return 200, {"cases": cases}, {}
        if path == "/datastore/label/revisions":
            sent = self.params[query["image"], "final"]
            revisions = [{"revision": number, "author": params["client_id"], "ts": 1_700_000_000 + number, "deleted": False} for number, params in enumerate(sent, 1)]
            return 200, {"revisions": revisions}, {}
        if path == "/datastore/label/compare":
            classes = [{"class": "liver", "annotated": [True, True], "voxels": [9, 12], "dice": 0.857}, {"class": "spleen", "annotated": [True, True], "voxels": [4, 0], "dice": None}]
            return 200, {"classes": classes}, {}
        if path in self.project:
            return 200, self.project[path], {}
        if path.startswith(("/rounds/", "/models/")):
            self.orders.append((method, path, query))
            return 200, {}, {}
        return 404, {"detail": "Not Found"}, {}

    def label(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any, dict[str, str]]:
        place = (query.get("image") or query.get("id", ""), query.get("tag") or "final")
        revisions = self.labels.get(place, [])
        if method == "DELETE":
            self.labels.pop(place, None)
            return 200, {}, {}
        if method in ("GET", "HEAD"):
            if not revisions:
                return 404, {"detail": "Label NOT Found"}, {}
            return 200, b"" if method == "HEAD" else revisions[int(query.get("revision", 0)) - 1], {"ETag": f'"{len(revisions)}"'}
        key = headers["Idempotency-Key"]
        if key not in self.keys:
            expected = headers.get("If-Match", "").strip('"') or ("0" if headers.get("If-None-Match") else None)
            if expected is not None and int(expected) != len(revisions):
                return 412, {"detail": "another revision", "code": "other_revision"}, {}
            params = json.loads(re.search(rb'name="params"\r\n\r\n(.*?)\r\n--', body, re.S)[1])
            assert params["label_sha256"] == hashlib.sha256(file_of(body)).hexdigest()
            self.labels.setdefault(place, []).append(file_of(body))
            self.params.setdefault(place, []).append(params)
            self.keys[key] = len(self.labels[place])
        return 200, {"image": place[0], "label": place[0]}, {"ETag": f'"{self.keys[key]}"'}

    def _answer(self, request: Any, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            request.send_response(status)
            for name, value in (headers or {}).items():
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body)
        except OSError:
            pass  # The client has gone.


def project() -> dict[str, Any]:
    """What a lead is shown: a project after three rounds, the last of which was not published."""
    structures = [
        {"name": "liver", "cases": 2, "old_dice": 0.91, "new_dice": 0.93, "difference": 0.02, "epsilon": 0.05, "passed": True},
        {"name": "spleen", "cases": 2, "old_dice": 0.88, "new_dice": 0.80, "difference": -0.08, "epsilon": 0.05, "passed": False},
    ]
    comparison = {"cases": 2, "old_dice": 0.895, "new_dice": 0.865, "difference": -0.03, "epsilon": 0.01, "passed": False, "structures": structures, "per_case": [], "left_out": []}
    kept = {
        "round": 3, "model": "pct-net-s", "state": "kept", "reason": "spleen is worse by 0.080, more than the 0.050 allowed", "version": 4, "live_version": 3,
        "training_images": ["case 0"] * 6, "validation_images": ["case 1", "case 2"], "progress": None, "comparison": comparison,
    }  # fmt: skip
    versions = [
        {"version": 4, "state": "candidate", "live": False, "reason": "spleen is worse", "metrics": {"mean_dice": 0.865}},
        {"version": 3, "state": "published", "live": True, "reason": "better than version 1", "metrics": {"mean_dice": 0.895}},
        {"version": 1, "state": "published", "live": False, "reason": "the first one", "metrics": None},
    ]
    return {
        "/rounds/": {"rounds": [kept], "settings": {"after_labels": 5, "steps": 300}, "new_labels": 3},
        "/models/": {"models": [{"name": "pct-net-s", "live_version": 3, "pinned": False, "rollback_version": 1, "versions": versions}]},
        "/statistics/": {
            "images": {"total": 40, "labelled": 11, "leased": 2, "parts": {}},
            "annotators": [{"author": "ann", "images": 7, "revisions": 9, "seconds_median": 840.0, "last_ts": 0}, {"author": "ben", "images": 4, "revisions": 4, "seconds_median": None}],
            "structures": [{"name": "liver", "images": 11}, {"name": "spleen", "images": 9}],
        },
    }  # fmt: skip


def file_of(body: bytes) -> bytes:
    """The last part of a form: its file."""
    boundary = body.split(b"\r\n", 1)[0]
    return body.split(boundary)[-2].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")


def nrrd_bytes(voxels: numpy.ndarray) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.nrrd"
        nrrd.write(path, voxels, GRID)
        return path.read_bytes()


def image_bytes(seed: int) -> bytes:
    return nrrd_bytes(numpy.random.default_rng(seed).integers(-1000, 1000, SHAPE, numpy.int16))


def proposal_bytes() -> bytes:
    voxels = numpy.zeros(SHAPE, numpy.uint8)
    voxels[2, 1:3, 1:3], voxels[2, 3:5, 3:5] = 1, 2
    return nrrd_bytes(voxels)


def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


class Killable:
    """A server that can be killed and started again at the same address and on the same data."""

    def __init__(self, folder: pathlib.Path, *options: str) -> None:
        self.folder, self._studies, self._options = folder, make_studies(folder), options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = folder / "server.log"
        self._process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        command = [PROGRAM, "serve", "--studies", self._studies, "--port", str(self._port), "--labels", ",".join(LABELS), *self._options]
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout
        assert re.search("http://", self._process.stdout.readline()), self._log.read_text()

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None


@contextlib.contextmanager
def killable(folder: pathlib.Path, *options: str) -> Iterator[Killable]:
    server = Killable(folder, *options)
    try:
        yield server
    finally:
        server.kill()
