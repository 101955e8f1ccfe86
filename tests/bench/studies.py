"""A studies folder of many images: first scan, rescan, `/info/`, memory. Prints one JSON document.

    python tests/bench/studies.py [IMAGES]

The files are empty: looking through a folder reads no image.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("FEWLABEL_PROGRAM", ROOT / "target/release/fewlabel"))


def memory_mib(pid: int, key: str) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found, status
    return int(found[1]) / 1024


def processor_s(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(url: str, method: str = "GET") -> tuple[float, dict]:
    start = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
        body = json.load(answer)
    return time.perf_counter() - start, body


def serve(studies: pathlib.Path) -> tuple[subprocess.Popen, str, float]:
    start = time.perf_counter()
    command = [PROGRAM, "serve", "--studies", studies, "--port", "0", "--labels", "liver", "--log", "warn"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    found = re.search(r"http://[^ ,]+", process.stdout.readline())
    assert found
    return process, found[0], time.perf_counter() - start


def main(images: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        studies = pathlib.Path(folder)
        for n in range(images):
            (studies / f"case_{n:06}.nii.gz").touch()
        time.sleep(3)  # young files are waited for
        result: dict[str, float] = {"images": images}
        process, url, result["first_start_s"] = serve(studies)
        result["first_start_processor_s"] = processor_s(process.pid)
        result["first_start_peak_mib"] = memory_mib(process.pid, "VmHWM")
        process.terminate()
        process.wait()
        process, url, result["second_start_s"] = serve(studies)
        result["second_start_processor_s"] = processor_s(process.pid)
        try:
            before = processor_s(process.pid)
            result["rescan_s"], found = ask(f"{url}/datastore/rescan", "POST")
            result["rescan_processor_s"] = round(processor_s(process.pid) - before, 3)
            assert not found["added"] and not found["changed"], found
            (studies / "one_more.nii.gz").touch()
            start = time.perf_counter()
            while ask(f"{url}/datastore/")[1]["total"] == images:
                time.sleep(0.1)
            result["new_file_noticed_s"] = time.perf_counter() - start
            times = sorted(ask(f"{url}/info/")[0] for _ in range(1000))
            for name, at in (("p50", 500), ("p99", 990), ("max", 999)):
                result[f"info_{name}_ms"] = times[at] * 1000
            result["resident_mib"] = memory_mib(process.pid, "VmRSS")
            result["peak_mib"] = memory_mib(process.pid, "VmHWM")
        finally:
            process.terminate()
            process.wait()
        print(json.dumps({key: round(value, 3) for key, value in result.items()}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
