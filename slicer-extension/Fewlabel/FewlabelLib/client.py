"""The server over HTTP, with the standard library only, so that nothing has to be installed into Slicer.

Every method blocks, has time limits, and can be cancelled from another thread: call them in a job, never on the main
thread. Whatever goes wrong is a `Fault`, which says in plain words what happened and what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

CONNECT_S = 5.0
"""Longest wait for a connection."""
ANSWER_S = 60.0
"""Longest silence while a request is sent or an answer comes."""
COMPUTE_S = 1800.0
"""Longest silence while the server computes a proposal: minutes on a CPU, when others are before us."""
RETRY_WAITS_S = (0.5, 1.0, 2.0)
"""Waits before a request that may be repeated is repeated."""
BLOCK_BYTES = 1 << 18
MAX_ANSWER_BYTES = 4 << 30

Progress = Callable[[int, int], None]
"""Bytes so far, and in all (0 when that is not known)."""


class Fault(Exception):
    """Why a request failed. `kind` is for programs; `what` and `next_step` are sentences for the user."""

    def __init__(
        self, kind: str, what: str, next_step: str, *, status: int = 0, code: str = "", request_id: str = "", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.next_step = next_step
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.kind in ("unreachable", "timeout", "cut", "busy", "unavailable")


class Cancel:
    """Lets one thread end what another one waits for."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def set(self) -> None:
        with self._lock:
            self._event.set()
            sock = self._connection.sock if self._connection else None
        if sock is not None:
            # Closing alone would not wake a thread that waits for bytes.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Sleeps, but not after a cancel."""
        self._event.wait(seconds)
        self.check()

    def check(self) -> None:
        if self._event.is_set():
            raise Fault("cancelled", "It was cancelled.", "Start it again when you want it.")

    @contextlib.contextmanager
    def over(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        with self._lock:
            self._connection = connection
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._connection = None


@dataclass(frozen=True)
class Address:
    """A server's URL, taken apart."""

    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Takes what a user types: `host`, `host:8000` or a whole URL."""
        text = text.strip()
        if text and "://" not in text:
            text = f"http://{text}"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Fault("address", f"{text or 'An empty text'} is no address of a server.", "Enter it as http://127.0.0.1:8000 or https://host.")
        if parts.username or parts.password:
            raise Fault("address", "The address holds a name or password.", "Enter the address alone, and log in with the fields below.")
        # Only `host:port` names the default port of the server; a URL without port means that of its scheme.
        standard = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, port or standard, parts.path.rstrip("/"))

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise not_this_server() from None

    @property
    def revision(self) -> int | None:
        """The revision of a label that the ETag names."""
        text = self.headers.get("etag", "").strip('"')
        return int(text) if text.isdigit() else None


@dataclass(frozen=True)
class Proposal:
    """What a model made of an image."""

    params: dict[str, Any]
    file: bytes
    """A label map as NRRD."""

    @property
    def names(self) -> list[str]:
        """Structures in the order of their values 1, 2, ..."""
        names = self.params.get("label_names") or {}
        if isinstance(names, dict):
            return [name for name, _ in sorted(names.items(), key=lambda entry: entry[1])]
        return [str(name) for name in names]

    @property
    def made_by(self) -> str:
        model, version = self.params.get("model") or "the model", self.params.get("model_version")
        return f"{model}, version {version}" if version else str(model)


class Client:
    """One server, as one user. Keeps no connection and no state but the login."""

    def __init__(
        self, url: str, user: str = "", *, verify: bool = True, agent: str = "Fewlabel-Slicer", waits_s: tuple[float, ...] = RETRY_WAITS_S,
        answer_s: float = ANSWER_S, compute_s: float = COMPUTE_S,
    ) -> None:
        self.address = Address.parse(url)
        self.user = user
        self.verify = verify
        self.token = ""
        self._agent = agent
        self._waits_s = waits_s
        self._answer_s = answer_s
        self._compute_s = compute_s

    @property
    def security(self) -> str:
        """How the connection is protected, for the user."""
        if self.address.scheme == "http":
            return "not encrypted"
        return "encrypted, certificate verified" if self.verify else "encrypted, certificate NOT verified"

    # Connecting

    def info(self, cancel: Cancel) -> dict[str, Any]:
        """What the server is and can do."""
        info = self.call("GET", "/info/", cancel=cancel, repeat=True).json()
        if not isinstance(info, dict) or "models" not in info or "labels" not in info:
            raise not_this_server()
        return info

    def login_needed(self, cancel: Cancel) -> bool:
        """Whether the server has a login. One without has no such route, or says so."""
        try:
            answer = self.call("GET", "/auth/", cancel=cancel, repeat=True, with_token=False).json()
        except Fault as fault:
            if fault.status in (404, 405):
                return False
            raise
        return bool(isinstance(answer, dict) and answer.get("enabled"))

    def login(self, user: str, password: str, cancel: Cancel) -> None:
        form = urlencode({"username": user, "password": password, "grant_type": "password"}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            answer = self.call("POST", "/auth/token", body=form, headers=headers, cancel=cancel, with_token=False).json()
        except Fault as fault:
            if fault.status in (400, 401, 403):
                raise Fault("login", "The server does not know this name with this password.", "Check both and log in again.", status=fault.status) from None
            raise
        self.token = str(answer.get("access_token", ""))
        self.user = user

    # Cases

    def next_case(self, strategy: str, cancel: Cancel, *, skip: bool = False) -> dict[str, Any]:
        """The next image, or an object without `id` when nothing is left. `skip` gives the one back that this user has."""
        sends = {"client_id": self.user} | ({"skip": True} if skip else {})
        return self.call("POST", f"/activelearning/{quote(strategy, safe='')}", sends=sends, cancel=cancel).json()

    def renew_lease(self, image: str, cancel: Cancel) -> None:
        """Says that this user still works on the image, so that nobody else gets it."""
        self.call("PUT", "/leases/", query={"image": image, "client_id": self.user}, cancel=cancel, repeat=True)

    def overview(self, cancel: Cancel) -> dict[str, Any]:
        """Every image by id, with its labels by tag."""
        return self.call("GET", "/datastore/", query={"output": "all"}, cancel=cancel, repeat=True).json().get("objects", {})

    def image(self, image: str, sha256: str, into: pathlib.Path, cancel: Cancel, progress: Progress | None = None) -> pathlib.Path:
        """The image's file in a folder, under a name that its content has; fetched when it is not there yet."""
        known = sorted(into.glob(f"{sha256}.*")) if sha256 else []
        if known:
            return known[0]
        into.mkdir(parents=True, exist_ok=True)
        part = into / f"part-{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            with open(part, "wb") as file:

                def take(block: bytes) -> None:
                    digest.update(block)
                    file.write(block)

                answer = self.call("GET", "/datastore/image", query={"image": image}, cancel=cancel, take=take, progress=progress)
            found = digest.hexdigest()
            if sha256 and found != sha256.lower():
                raise Fault("damaged", f"The image {image} was damaged on the way.", "Try again; tell your administrator when it happens often.")
            path = into / (found + suffix_of(answer.headers.get("content-disposition", "")))
            os.replace(part, path)
            return path
        finally:
            part.unlink(missing_ok=True)

    def propose(self, model: str, image: str, cancel: Cancel, *, version: int | None = None, session: str = "") -> Proposal:
        """A segmentation by the model of an image of the project, or of a session's."""
        params: dict[str, Any] = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": self.user}
        if version is not None:
            params["version"] = version
        body, kind = form_of({"params": json.dumps(params)})
        query = {"image": image} if not session else {"session_id": session}
        answer = self.call(
            "POST", f"/infer/{quote(model, safe='')}", query=query, body=body, headers={"Content-Type": kind}, cancel=cancel, silence_s=self._compute_s, repeat=True
        )
        parts = parts_of(answer)
        file, params_part = parts.get("image"), parts.get("params")
        if file is None or params_part is None:
            raise not_this_server()
        return Proposal(json.loads(params_part), file)

    def open_session(self, path: pathlib.Path, cancel: Cancel, progress: Progress | None = None) -> str:
        """Uploads an image that the server forgets after an hour without use; the id of that session."""
        answer = self._send("PUT", "/session/", {}, "files", path, {"client_id": self.user}, {}, cancel, progress).json()
        return str(answer["session_id"])

    def add_image(self, image: str, path: pathlib.Path, cancel: Cancel, progress: Progress | None = None) -> str:
        """Uploads an image into the project; its id there."""
        params = {"params": json.dumps({"client_id": self.user})}
        return str(self._send("PUT", "/datastore/image", {"image": image}, "file", path, params, {}, cancel, progress).json()["image"])

    # Labels

    def submit(
        self, image: str, tag: str, path: pathlib.Path, params: dict[str, Any], cancel: Cancel, *, key: str, seen: int | None = None, progress: Progress | None = None
    ) -> int | None:
        """Sends a label and returns its revision.

        `key` names this submit: repeating it, after a lost answer for instance, adds nothing. `seen` is the revision
        that the author saw (0 for none); when somebody else was faster the server refuses and nothing changes.
        """
        headers = {"Idempotency-Key": key}
        if seen is not None:
            headers |= {"If-Match": f'"{seen}"'} if seen else {"If-None-Match": "*"}
        params = {"client_id": self.user, "label_sha256": sha256_of(path), **params}
        return self._send("PUT", "/datastore/label", {"image": image, "tag": tag}, "label", path, {"params": json.dumps(params)}, headers, cancel, progress).revision

    def label_map(self, image: str, tag: str, cancel: Cancel, *, revision: int | None = None) -> bytes | None:
        """A label as NRRD in the values of the schema, on the grid of the image; none when there is no such label."""
        query = {"image": image, "tag": tag} | ({"revision": str(revision)} if revision else {})
        try:
            return self.call("GET", "/datastore/label/map", query=query, cancel=cancel, repeat=True).body
        except Fault as fault:
            if fault.kind == "missing":
                return None
            raise

    def current_revision(self, image: str, tag: str, cancel: Cancel) -> int | None:
        """The revision that a label has now, 0 for none."""
        try:
            return self.call("HEAD", "/datastore/label", query={"image": image, "tag": tag}, cancel=cancel, repeat=True).revision
        except Fault as fault:
            if fault.kind == "missing":
                return 0
            raise

    def remove_label(self, image: str, tag: str, cancel: Cancel) -> None:
        self.call("DELETE", "/datastore/label", query={"id": image, "tag": tag}, cancel=cancel, repeat=True)

    def revisions(self, image: str, tag: str, cancel: Cancel) -> dict[str, Any]:
        return self.call("GET", "/datastore/label/revisions", query={"image": image, "tag": tag}, cancel=cancel, repeat=True).json()

    def compare(self, image: str, tag: str, a: int, b: int, cancel: Cancel) -> dict[str, Any]:
        """Voxels and Dice of two revisions, structure by structure."""
        query = {"image": image, "tag": tag, "a": str(a), "b": str(b)}
        return self.call("GET", "/datastore/label/compare", query=query, cancel=cancel, repeat=True).json()

    # Any route

    def get(self, path: str, cancel: Cancel, **query: str) -> Any:
        """The JSON of a route that can be asked at any time."""
        return self.call("GET", path, query=query, cancel=cancel, repeat=True).json()

    def send(self, method: str, path: str, cancel: Cancel, sends: dict[str, Any] | None = None, **query: str) -> Any:
        """Sends a JSON object; the JSON that comes back. A new version answers a proposal before it goes live, so that takes time."""
        return self.call(method, path, query=query, sends=sends or {}, cancel=cancel, silence_s=self._compute_s).json()

    def call(
        self, method: str, path: str, *, cancel: Cancel, query: dict[str, str] | None = None, sends: dict[str, Any] | None = None, body: Any = None,
        headers: dict[str, str] | None = None, take: Callable[[bytes], None] | None = None, progress: Progress | None = None, silence_s: float | None = None,
        repeat: bool = False, with_token: bool = True,
    ) -> Answer:
        """One request. `repeat` says that it may be sent again after a fault that passes."""
        target = self.address.prefix + path + (f"?{urlencode(query)}" if query else "")
        headers = {"User-Agent": self._agent, "Accept": "*/*", **(headers or {})}
        if self.token and with_token:
            headers["Authorization"] = f"Bearer {self.token}"
        if sends is not None:
            body, headers["Content-Type"] = json.dumps(sends).encode(), "application/json"
        for wait_s in self._waits_s if repeat else ():
            try:
                return self._once(method, target, headers, body, cancel, take, progress, silence_s)
            except Fault as fault:
                if not fault.passes:
                    raise
                cancel.wait(max(wait_s, fault.retry_after_s))
        return self._once(method, target, headers, body, cancel, take, progress, silence_s)

    def _send(
        self, method: str, path: str, query: dict[str, str], field: str, file: pathlib.Path, fields: dict[str, str], headers: dict[str, str],
        cancel: Cancel, progress: Progress | None,
    ) -> Answer:
        """A form with a file, streamed from the disk. Repeated, because each of these routes takes the same twice."""
        form = _FileForm(fields, field, file, progress)
        headers = {"Content-Type": form.kind, "Content-Length": str(form.length), **headers}
        return self.call(method, path, query=query, body=form, headers=headers, cancel=cancel, repeat=True)

    def _once(
        self, method: str, target: str, headers: dict[str, str], body: Any, cancel: Cancel, take: Callable[[bytes], None] | None, progress: Progress | None,
        silence_s: float | None,
    ) -> Answer:
        cancel.check()
        connection = self._connection()
        where = f"{self.address.host}:{self.address.port}"
        try:
            with cancel.over(connection):
                connection.connect()
                connection.sock.settimeout(silence_s or self._answer_s)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    # A server that refuses early closes its side; the answer says why.
                    connection.request(method, target, body=body, headers=headers)
                return _read(connection.getresponse(), take, progress)
        except Fault:
            raise
        except ssl.SSLCertVerificationError as error:
            raise Fault("certificate", f"The certificate of {where} cannot be verified: {error.verify_message}.", "Ask your administrator; do not send patients' images there.") from error
        except ssl.SSLError as error:
            raise Fault("tls", f"{where} does not speak TLS as expected: {error.reason}.", "Try the address with http:// instead of https://, or ask your administrator.") from error
        except socket.gaierror as error:
            raise Fault("name", f"There is no host {self.address.host}.", "Check the spelling of the address, and that you are in the right network.") from error
        except TimeoutError as error:
            cancel.check()
            raise Fault("timeout", f"{where} did not answer in time.", "Try again; when it stays so, ask whether the server is overloaded.") from error
        except ConnectionRefusedError as error:
            raise Fault("unreachable", f"Nothing answers at {where}.", "Check address and port, and that the server runs.") from error
        except (http.client.HTTPException, ConnectionError) as error:
            cancel.check()
            raise Fault("cut", f"The connection to {where} was cut.", "Try again; the server may have been restarted.") from error
        except OSError as error:
            cancel.check()
            raise Fault("unreachable", f"{where} cannot be reached: {error.strerror or error}.", "Check the network, and that the server runs.") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        if self.address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=CONNECT_S)
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=context)


class _FileForm:
    """A multipart form whose file is read while it is sent; can be iterated again for a repetition."""

    def __init__(self, fields: dict[str, str], field: str, path: pathlib.Path, progress: Progress | None) -> None:
        self._path, self._progress = path, progress
        boundary = secrets.token_hex(16)
        self.kind = f"multipart/form-data; boundary={boundary}"
        head = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{path.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        self._head, self._tail = head.encode(), f"\r\n--{boundary}--\r\n".encode()
        self._size = path.stat().st_size
        self.length = len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        sent = 0
        with open(self._path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
                sent += len(block)
                if self._progress:
                    self._progress(sent, self._size)
        yield self._tail


def _read(response: http.client.HTTPResponse, take: Callable[[bytes], None] | None, progress: Progress | None) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    if response.status != 200:
        raise fault_of(response.status, headers, response.read(1 << 16))
    total = int(headers.get("content-length", 0))
    if total > MAX_ANSWER_BYTES:
        raise Fault("large", "The answer of the server is too large.", "Ask your administrator what this server is.")
    blocks: list[bytes] = []
    done = 0
    while block := response.read(BLOCK_BYTES):
        (take or blocks.append)(block)
        done += len(block)
        if progress:
            progress(done, total)
    if done < total and not response._method == "HEAD":
        raise http.client.IncompleteRead(b"", total - done)
    return Answer(response.status, headers, b"".join(blocks))


def fault_of(status: int, headers: dict[str, str], body: bytes) -> Fault:
    """What an answer other than 200 means."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    detail = told.get("detail", "")
    if isinstance(detail, list):
        detail = "; ".join(str(entry.get("msg", entry)) if isinstance(entry, dict) else str(entry) for entry in detail)
    says = f" The server says: {detail}" if detail else ""
    retry_after = headers.get("retry-after", "")
    kind, what, next_step = {
        401: ("login", "The server wants a login.", "Enter your name and password."),
        403: ("forbidden", f"You are not allowed to do this.{says}", "Ask the lead of the project for the right."),
        404: ("missing", f"The server has nothing like that.{says}", "Check the address; the case may have been removed."),
        409: ("conflict", f"It does not fit the state of the server.{says}", "Refresh and look again."),
        412: ("conflict", "Somebody else has submitted this case meanwhile.", "Look at their label first, then submit yours as the newer one or drop it."),
        413: ("large", f"The file is too large for this server.{says}", "Ask your administrator."),
        422: ("refused", f"The server refuses this.{says}", "Correct it and try again."),
        429: ("busy", "The server is busy with other requests.", "Try again in a moment."),
        503: ("unavailable", f"The server takes nothing at the moment.{says}", "Try again later; tell your administrator what it says."),
        507: ("full", f"The disk of the server is full.{says}", "Tell your administrator; reading goes on."),
    }.get(status, ("server", f"The server failed with status {status}.{says}", "Try again; give your administrator the number of the request."))
    return Fault(
        kind, what, next_step, status=status, code=str(told.get("code", "")), request_id=str(told.get("request_id", "")),
        retry_after_s=min(float(retry_after), 30.0) if retry_after.isdigit() else 0.0,
    )


def not_this_server() -> Fault:
    return Fault("stranger", "Something answers there, but it is no Fewlabel server.", "Check address and port.")


def form_of(fields: dict[str, str]) -> tuple[bytes, str]:
    """A small multipart form and its content type."""
    boundary = secrets.token_hex(16)
    body = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
    return f"{body}--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def parts_of(answer: Answer) -> dict[str, bytes]:
    """The parts of a multipart answer by name."""
    _, _, boundary = answer.headers.get("content-type", "").partition("boundary=")
    if not boundary:
        return {}
    parts = {}
    for part in answer.body.split(b"--" + boundary.strip('"').encode()):
        head, found, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        _, named, rest = head.decode("utf-8", "replace").partition(' name="')
        if found and named:
            parts[rest.partition('"')[0]] = content.removesuffix(b"\r\n")
    return parts


def suffix_of(disposition: str) -> str:
    """`.nii.gz`, `.nii` or `.nrrd`, from a Content-Disposition; nothing else is believed."""
    name = disposition.rstrip('"').lower()
    return next((suffix for suffix in (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".dcm", ".zip") if name.endswith(suffix)), ".nii.gz")


def sha256_of(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
