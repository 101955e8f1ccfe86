"""Load on the store: many clients that ask for the next sample, fetch its image and submit a label.

    python tests/bench/store_load.py [--clients 64] [--seconds 300] [--images 2000] [--info-images 100000]

Needs the built program (target/release/fewlabel) and the standard library. Prints the answers by status, percentiles of
submits and of /info/, and the server's memory over time. Ends with 1 when an answer was neither 200 nor 429 or 503 with
Retry-After, when an acknowledged submit is not in the history, or when memory grew in the second half of the time.
"""

import argparse
import collections
import gzip
import http.client
import json
import os
import pathlib
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = (64, 64, 32)
BOUNDARY = "store-load-boundary"
# A file has 65,000 links at most on some file systems.
LINKS = 50_000


def nifti(dtype: int, bits: int, voxels: bytes) -> bytes:
    """A NIfTI-1 file of SHAPE with voxels of 1 x 1 x 3 mm."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *SHAPE, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, dtype, bits)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 3, 1, 1, 1, 1)
    struct.pack_into("<f", head, 108, 352)
    struct.pack_into("<f", head, 112, 1)
    head[123] = 2
    struct.pack_into("<2h", head, 252, 0, 1)
    for row, axis in enumerate(((-1, 0, 0, 0), (0, -1, 0, 0), (0, 0, 3, 0))):
        struct.pack_into("<4f", head, 280 + 16 * row, *axis)
    head[344:348] = b"n+1\0"
    return gzip.compress(bytes(head) + voxels, 1)


def count_voxels() -> int:
    return SHAPE[0] * SHAPE[1] * SHAPE[2]


def label(number: int) -> bytes:
    voxels = bytearray(count_voxels())
    voxels[:4] = struct.pack("<I", number & 0x01010101 | number % 2)
    start = 5_000 + number * 37 % 50_000
    voxels[start : start + 20_000] = b"\1" * 20_000
    return nifti(2, 8, bytes(voxels))


def make_studies(folder: pathlib.Path, images: int) -> None:
    """Images are links to a few files: what counts here is their number."""
    folder.mkdir()
    pixels = b"".join(struct.pack("<h", n * 7919 % 400 - 200) for n in range(count_voxels()))
    content = nifti(4, 16, pixels)
    for n in range(images):
        path = folder / f"study_{n:06}.nii.gz"
        if n % LINKS == 0:
            path.write_bytes(content)
            first = path
        else:
            os.link(first, path)


class Server:
    def __init__(self, folder: pathlib.Path):
        self.process = subprocess.Popen(
            [ROOT / "target/release/fewlabel", "serve", "--port", "0", "--device", "cpu", "--labels", "liver,spleen",
             "--studies", folder / "studies", "--data", folder / "data", "--log", "warn", "--min-free-mb", "64"],
            stdout=subprocess.PIPE, text=True,
        )
        start = time.monotonic()
        ready = self.process.stdout.readline()
        if "http://" not in ready:
            sys.exit("the server did not start")
        self.start_s = time.monotonic() - start
        self.address = ready.split("http://")[1].split(",")[0]

    def memory_mib(self) -> float:
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def ask(address: str, method: str, path: str, body: bytes = b"", headers: dict = {}) -> tuple[int, bytes, dict]:  # noqa: B006
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read(), dict(reply.getheaders())
    finally:
        connection.close()


class Load:
    def __init__(self, address: str, labels: list[bytes]):
        self.address, self.labels = address, labels
        self.lock = threading.Lock()
        self.answers = collections.Counter()
        self.seconds = collections.defaultdict(list)
        self.wrong: list[str] = []
        self.acknowledged: list[tuple[str, int]] = []
        self.until = 0.0

    def timed(self, what: str, *request) -> tuple[int, bytes, dict]:
        start = time.monotonic()
        try:
            status, body, headers = ask(self.address, *request)
        except OSError as error:
            status, body, headers = 0, repr(error).encode(), {}
        taken = time.monotonic() - start
        lower = {key.lower(): value for key, value in headers.items()}
        with self.lock:
            self.answers[f"{what} {status}"] += 1
            if status == 200:
                self.seconds[what].append(taken)
            elif status not in (429, 503) or "retry-after" not in lower:
                self.wrong.append(f"{what} {status} {body[:200]!r}")
        if status in (429, 503):
            time.sleep(0.5)
        return status, body, lower

    def client(self, number: int) -> None:
        turn = 0
        while time.monotonic() < self.until:
            turn += 1
            # Not the image that the client has already: what it has is under a tag of its own, not accepted.
            sample = {"client_id": f"client-{number}", "skip": True}
            kind = {"Content-Type": "application/json"}
            status, body, _ = self.timed("next", "POST", "/activelearning/random", json.dumps(sample).encode(), kind)
            if status != 200:
                continue
            image = json.loads(body).get("id")
            if image is None:
                return
            if self.timed("image", "GET", f"/datastore/image?image={image}")[0] != 200:
                continue
            parts = b"".join(
                f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
                for name, file, content in (
                    ("params", "", json.dumps(sample).encode()),
                    ("label", '; filename="label.nii.gz"', self.labels[(number * 7 + turn) % len(self.labels)]),
                )
            )
            headers = {
                "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
                "Idempotency-Key": f"{number}-{turn}",
            }
            body = parts + f"--{BOUNDARY}--\r\n".encode()
            # Under a tag of its own, so that there are always images left.
            path = f"/datastore/label?image={image}&tag=by_{number}"
            status, _, answer = self.timed("submit", "PUT", path, body, headers)
            if status == 200:
                with self.lock:
                    self.acknowledged.append((f"image={image}&tag=by_{number}", int(answer["etag"].strip('"'))))


def percentiles_ms(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "none"
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms, max {max(seconds) * 1e3:.1f} ms of {len(seconds)}"


def load(folder: pathlib.Path, options: argparse.Namespace) -> bool:
    make_studies(folder / "studies", options.images)
    server = Server(folder)
    run = Load(server.address, [label(n) for n in range(32)])
    start = time.monotonic()
    run.until = start + options.seconds
    threads = [threading.Thread(target=run.client, args=(n,)) for n in range(options.clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - start, server.memory_mib()))
        time.sleep(min(1.0, options.seconds / 20))
    told = collections.defaultdict(set)
    for what, revision in run.acknowledged:
        told[what].add(revision)
    lost = len(run.acknowledged) - sum(len(revisions) for revisions in told.values())
    for what, revisions in told.items():
        _, body, _ = ask(server.address, "GET", f"/datastore/label/revisions?{what}")
        lost += len(revisions - {row["revision"] for row in json.loads(body).get("revisions", [])})
    server.stop()
    print(f"{options.clients} clients for {options.seconds} s on {options.images} images: {dict(run.answers)}")
    for what, seconds in run.seconds.items():
        print(f"  {what}: {percentiles_ms(seconds)}")
    print(f"  {len(run.acknowledged)} submits acknowledged, {lost} lost")
    for wrong in run.wrong[:5]:
        print(f"  wrong: {wrong}")
    second = [mib for at, mib in memory if options.seconds / 2 <= at <= options.seconds]
    grown = 0.0
    if len(second) >= 4:
        half = len(second) // 2
        early, late = statistics.mean(second[:half]), statistics.mean(second[half:])
        grown = late / early - 1
    print(f"  memory: {memory[0][1]:.0f} MiB at the start, {max(mib for _, mib in memory):.0f} MiB at most, "
          f"{grown * 100:+.1f} % from the third to the last quarter of the time")
    return not run.wrong and not lost and grown <= 0.05


def info(folder: pathlib.Path, images: int) -> None:
    make_studies(folder / "studies", images)
    server = Server(folder)
    seconds = []
    for _ in range(300):
        start = time.monotonic()
        status, body, _ = ask(server.address, "GET", "/info/")
        seconds.append(time.monotonic() - start)
        assert status == 200 and json.loads(body)["datastore"]["total"] == images
    print(f"/info/ with {images} images: {percentiles_ms(seconds)}; start took {server.start_s:.1f} s, "
          f"{server.memory_mib():.0f} MiB")
    server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--info-images", type=int, default=100_000, help="0 leaves this part out")
    parser.add_argument("--dir", type=pathlib.Path, help="where to make temporary folders")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        fine = load(pathlib.Path(folder), options)
    if options.info_images:
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            info(pathlib.Path(folder), options.info_images)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
