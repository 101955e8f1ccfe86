"""HTTP under clients that are many, slow, or silent, beside the real MONAI Label server on the same studies.

    python tests/bench/http_load.py [--monailabel PYTHON] [--images 1000] [--half-open 1000] [--clients 200]

Needs the built program (target/release/fewlabel), Linux and the standard library. PYTHON is that of an environment with
monailabel 0.8.5, as for tests/python/conformance/record.py; its server runs with the stub application of that folder.
Everything stays on this machine. Prints one line per figure; ends with 1 when one of ours misses its goal.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import pathlib
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from store_load import ROOT, make_studies

STUB_APP = ROOT / "tests/python/conformance/stub_app/main.py"
INFO = b"GET /info/ HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\n\r\n"
INFO_AND_CLOSE = INFO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
# Goals: issue "A drop-in for MONAI Label".
START_MS, IDLE_MIB, INFO_P99_MS, READY_P99_MS, CLOSED_S = 150, 80, 20, 100, 15
GIVE_UP_S = 30
UPLOAD_BYTES = 1 << 30


class Server:
    """A server process on a port of its own; `probe` is the cheapest route that tells that it answers."""

    def __init__(self, name: str, command: list[str | os.PathLike], port: int, log: pathlib.Path, probe: str, variables: dict[str, str]):
        self.name, self.port, self.probe = name, port, probe
        self._log = open(log, "ab")  # noqa: SIM115
        self.begun = time.monotonic()
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=os.environ | variables, cwd=log.parent)

    def first_answer_s(self) -> float:
        """From the start of the process to the first whole answer of /info/."""
        while self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/info/") == 200:
                    return time.monotonic() - self.begun
            time.sleep(0.001)
        sys.exit(f"{self.name} did not start: {pathlib.Path(self._log.name).read_text()[-3000:]}")

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def processes(self) -> list[int]:
        """The server's process, and those that it started."""
        found, at = [self.process.pid], 0
        while at < len(found):
            with contextlib.suppress(OSError):
                for task in pathlib.Path(f"/proc/{found[at]}/task").iterdir():
                    found += map(int, (task / "children").read_text().split())
            at += 1
        return found

    def memory_mib(self, field: str = "VmRSS:") -> list[float]:
        """Of each of its processes."""
        values = []
        for pid in self.processes():
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(field):
                    values.append(int(line.split()[1]) / 1024)
        return values

    def cpu_s(self) -> float:
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fewlabel(folder: pathlib.Path) -> Server:
    port = free_port()
    command = [ROOT / "target/release/fewlabel", "serve", "--port", str(port), "--device", "cpu", "--labels", "liver,spleen",
               "--studies", folder / "studies", "--data", folder / "data"]
    return Server("fewlabel", command, port, folder / "fewlabel.log", "/readyz", {})


def monailabel(folder: pathlib.Path, python: str) -> Server:
    app = folder / "app"
    (app / "logs").mkdir(parents=True, exist_ok=True)
    (app / "main.py").write_text(STUB_APP.read_text())
    port = free_port()
    variables = {
        "MONAI_LABEL_APP_DIR": str(app), "MONAI_LABEL_STUDIES": str(folder / "studies"), "PYTHONPATH": str(app),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    }
    command = [python, "-m", "uvicorn", "monailabel.app:app", "--port", str(port), "--no-access-log"]
    return Server("MONAI Label", command, port, folder / "monailabel.log", "/info/", variables)


def told(seconds: list[float]) -> tuple[float, str]:
    """The 99th percentile in ms, and the figures as text."""
    cuts = statistics.quantiles(seconds, n=100)
    text = f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms, max {max(seconds) * 1e3:.1f} ms of {len(seconds)}"
    return cuts[98] * 1e3, text


def answered(data: bytearray) -> bool:
    """Whether a whole answer with Content-Length is there."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = bytes(data[:end]).lower()
    if not head.startswith(b"http/1.1 200"):
        sys.exit(f"/info/ was refused: {bytes(data[:200])!r}")
    return len(data) >= end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])


def burst(port: int, clients: int, kept: list[socket.socket] | None) -> list[float]:
    """All clients ask at the same moment; seconds until each has its whole answer. New connections unless kept ones are given."""
    request = INFO if kept else INFO_AND_CLOSE
    waiting: dict[int, tuple[socket.socket, bytearray, float]] = {}
    watch = select.epoll()
    taken = []
    for number in range(clients):
        begun = time.perf_counter()
        if kept:
            client = kept[number]
            client.send(request)
        else:
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        watch.register(client, select.EPOLLIN if kept else select.EPOLLOUT)
        waiting[client.fileno()] = (client, bytearray(), begun)
    while waiting:
        for descriptor, event in watch.poll(GIVE_UP_S) or sys.exit("no answer for too long"):
            client, data, begun = waiting[descriptor]
            if event & select.EPOLLOUT and not event & select.EPOLLIN:
                client.send(request)
                watch.modify(client, select.EPOLLIN)
                continue
            data += client.recv(1 << 16)
            if answered(data):
                taken.append(time.perf_counter() - begun)
                watch.unregister(client)
                del waiting[descriptor]
                if not kept:
                    client.close()
    watch.close()
    return taken


def measure_bursts(server: Server, clients: int, rounds: int) -> dict[str, tuple[float, str]]:
    figures = {}
    for kind in ("kept connections", "new connections"):
        kept = None
        if kind == "kept connections":
            kept = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(clients)]
        burst(server.port, clients, kept)
        before, taken = server.cpu_s(), []
        for _ in range(rounds):
            taken += burst(server.port, clients, kept)
        cpu_ms = (server.cpu_s() - before) / len(taken) * 1e3
        p99, text = told(taken)
        figures[kind] = (p99, f"{text}, {cpu_ms:.2f} ms processor time per answer")
        for connection in kept or []:
            connection.close()
    return figures


def measure_half_open(server: Server, count: int) -> tuple[float | None, float, str]:
    """Seconds until the server closed the last half-open connection, or None; p99 of the probe meanwhile."""
    opened = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", server.port), timeout=GIVE_UP_S)
        client.send(b"GET /info/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        opened.append(client)
    begun, taken, running = time.monotonic(), [], True

    def probe() -> None:
        while running:
            start = time.perf_counter()
            server.get(server.probe)
            taken.append(time.perf_counter() - start)
            time.sleep(0.02)

    thread = threading.Thread(target=probe)
    thread.start()
    watch = select.epoll()
    left = {client.fileno(): client for client in opened}
    for client in opened:
        watch.register(client, select.EPOLLIN)
    closed_s = None
    while left and time.monotonic() - begun < GIVE_UP_S:
        for descriptor, _ in watch.poll(0.1):
            with contextlib.suppress(ConnectionResetError):
                if left[descriptor].recv(4096):
                    continue
            watch.unregister(descriptor)
            left.pop(descriptor).close()
    if not left:
        closed_s = time.monotonic() - begun
    running = False
    thread.join()
    for client in left.values():
        client.close()
    p99, text = told(taken)
    return closed_s, p99, f"{len(left)} of {count} open after {closed_s or GIVE_UP_S:.1f} s; {server.probe} meanwhile {text}"


def measure_upload(server: Server) -> str:
    """A file that is refused after it was received whole: what it costs in memory."""
    before = server.memory_mib("VmRSS:")[0]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.nii"\r\n\r\n'
    tail = b"\r\n--b--\r\n"
    connection.putrequest("PUT", "/datastore/image?image=big")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(len(head) + UPLOAD_BYTES + len(tail)))
    connection.endheaders()
    connection.send(head)
    chunk = b"\1" * (1 << 20)
    for _ in range(UPLOAD_BYTES // len(chunk)):
        connection.send(chunk)
    connection.send(tail)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    peak = server.memory_mib("VmHWM:")[0]
    return f"status {answer.status}, peak memory {peak:.0f} MiB ({before:.0f} MiB before)"


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


def measure(start: Callable[[], Server], options: argparse.Namespace, starts: int) -> bool:
    """Prints the figures of one server; true when they are within the goals."""
    seconds = []
    for number in range(starts):
        with running(start()) as server:
            seconds.append(server.first_answer_s())
        if number == 0:
            print(f"{server.name}: first /info/ of a new project with {options.images} images after {seconds[0] * 1e3:.0f} ms")
    median = statistics.median(seconds[1:] or seconds) * 1e3
    spread = f"[{min(seconds[1:] or seconds) * 1e3:.0f}-{max(seconds[1:] or seconds) * 1e3:.0f}]"
    print(f"{server.name}: first /info/ after a restart {median:.0f} ms {spread}, {max(starts - 1, 1)} starts")
    with running(start()) as server:
        server.first_answer_s()
        time.sleep(options.idle)
        memory = server.memory_mib()
        print(f"{server.name}: idle memory {sum(memory):.0f} MiB in {len(memory)} processes ({', '.join(f'{part:.0f}' for part in memory)})")
        figures = measure_bursts(server, options.clients, options.rounds)
        for kind, (_, text) in figures.items():
            print(f"{server.name}: {options.clients} at once on /info/, {kind}: {text}")
        closed_s, ready_p99, text = measure_half_open(server, options.half_open)
        print(f"{server.name}: half-open connections: {text}")
        print(f"{server.name}: upload of {UPLOAD_BYTES >> 20} MiB that is no image: {measure_upload(server)}")
    return (
        median <= START_MS and sum(memory) <= IDLE_MIB and figures["kept connections"][0] <= INFO_P99_MS
        and closed_s is not None and closed_s <= CLOSED_S and ready_p99 <= READY_P99_MS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--monailabel", metavar="PYTHON")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--half-open", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--idle", type=float, default=5, help="seconds before the memory is read")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_studies(folder / "studies", options.images)
        well = measure(lambda: fewlabel(folder), options, 6)
        if options.monailabel:
            options.rounds = min(options.rounds, 5)
            measure(lambda: monailabel(folder, options.monailabel), options, 2)
    sys.exit(not well)


if __name__ == "__main__":
    main()
