"""A small DICOMweb server on this machine, with or without TLS, and a proxy that only knows `CONNECT`."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator

import numpy
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from serving import PROGRAM

BOUNDARY = "a-boundary-of-the-test"


def write_series(folder: pathlib.Path, hu: numpy.ndarray, spacing_mm: tuple[float, float, float]) -> str:
    """Voxels `[z, y, x]` as one CT file for each slice; the Series Instance UID."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    for number, plane in enumerate(hu):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Test^One", "4711", "", "O"
        image.StudyDate, image.StudyTime, image.AccessionNumber, image.ReferringPhysicianName = "20240102", "1200", "", ""
        image.StudyID, image.SeriesNumber, image.InstanceNumber = "1", 1, number + 1
        image.Modality, image.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.ImagePositionPatient = [-70, -80, -60 + spacing_mm[0] * number]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [spacing_mm[1], spacing_mm[2]], spacing_mm[0]
        image.Rows, image.Columns = plane.shape
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleIntercept, image.RescaleSlope = 0, 1
        image.PixelData = plane.astype("<i2").tobytes()
        image.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    return series


class Archive:
    """Series of a DICOMweb server, and what was stored there."""

    def __init__(self, *folders: pathlib.Path) -> None:
        self.files: list[tuple[pydicom.Dataset, bytes]] = []
        self.stored: list[bytes] = []
        for path in sorted(path for folder in folders for path in folder.iterdir()):
            self.files.append((pydicom.dcmread(path, stop_before_pixels=True), path.read_bytes()))

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Type and content; none for what is not there."""
        path, _, query = path.partition("?")
        parts = path.strip("/").split("/")[1:]
        if parts == ["series"]:
            rows = {header.SeriesInstanceUID: header for header, _ in self.files}.values()
            return self.matches([*rows], ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID"), query)
        if len(parts) < 4 or (parts[0], parts[2]) != ("studies", "series"):
            return None
        files = [pair for pair in self.files if pair[0].SeriesInstanceUID == parts[3]]
        if parts[4:] == ["instances"]:
            return self.matches([header for header, _ in files], ("SOPInstanceUID",), query)
        if len(parts) == 6:
            files = [pair for pair in files if pair[0].SOPInstanceUID == parts[5]]
        start = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(start + content + b"\r\n" for _, content in files) + f"--{BOUNDARY}--\r\n".encode()
        return f'multipart/related; type="application/dicom"; boundary={BOUNDARY}', body

    @staticmethod
    def matches(rows: list[pydicom.Dataset], fields: tuple[str, ...], query: str) -> tuple[str, bytes]:
        offset = re.search(r"\boffset=(\d+)", query)
        rows = rows[int(offset[1]) if offset else 0 :]
        values = [{f"{pydicom.tag.Tag(field):08X}": {"vr": "UI", "Value": [str(row.get(field))]} for field in fields} for row in rows]
        return "application/dicom+json", json.dumps(values).encode()


@contextlib.contextmanager
def serving(archive: Archive, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a DICOMweb service for the archive."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = archive.answer(self.path)
            self.reply(404 if found is None else 200, *(found or ("text/plain", b"")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            start, end = body.index(b"\r\n\r\n") + 4, body.rindex(b"\r\n--")
            archive.stored.append(body[start:end])
            self.reply(200, "application/dicom+json", b"{}")

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        # The handshake of each connection in its own thread.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


class ConnectProxy:
    """Passes bytes on for `CONNECT`, and refuses everything else."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://someone:secret@127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.tunnel, args=(client,), daemon=True).start()

    def tunnel(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := client.recv(4096)):
            head += more
        self.asked.append(head.decode())
        asked = re.match(r"CONNECT ([^:]+):(\d+) ", self.asked[-1])
        if not asked:
            client.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            client.close()
            return
        server = socket.create_connection((asked[1], int(asked[2])))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def fewlabel(folder: pathlib.Path, studies: str, *options: str, **variables: str) -> Iterator[tuple[str, pathlib.Path]]:
    """The server for a PACS: its address and its log."""
    log = folder / "server.log"
    command = [PROGRAM, "serve", "--studies", studies, "--data", folder / "data", "--port", "0", "--ahead", "0", *options]
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True, env={**kept, **variables})
    try:
        ready = process.stdout.readline() if process.stdout else ""
        address = re.search(r"http://[^ ,]+", ready)
        assert address, log.read_text()
        yield address[0], log
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(30)
