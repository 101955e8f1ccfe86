"""Rounds of a labelling project over HTTP with the MONAI Label client, and what clinicians feel of them meanwhile.

    python tests/bench/rounds.py --binary target/release/fewlabel --data ../shared/data/ct/hn_oar [--steps 150]

Three rounds from two labels: an oracle submits the true labels of what the server offers. The validation images of the
project are labelled before the first round, so that every round is judged on the same cases. Then half of the labels to
learn from are shuffled (each structure under the name of the next one) and a round is started that must not be published,
and the live version is rolled back. Prints a table of rounds with the Dice per structure as the server tells it.

With `--serving` it measures instead: inference, `/info/` and submits while nothing runs and while a round trains.
"""

import argparse
import json
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from monailabel.client import MONAILabelClient

MODEL = "pct-net-s"
POLL_S = 0.5


class Site:
    """Studies, their true labels, and a running server."""

    def __init__(self, folder: pathlib.Path, data: pathlib.Path, binary: pathlib.Path):
        self.binary, self.folder, self.studies, self.labels = binary, folder, folder / "studies", folder / "labels"
        for new in (self.studies, self.labels):
            new.mkdir()
        shutil.copy(data / "dataset.json", self.studies)
        dataset = json.loads((data / "dataset.json").read_text())
        self.names = [name for value, name in sorted(dataset["labels"].items(), key=lambda item: int(item[0])) if value != "0"]
        for image in sorted((data / "imagesTr").glob("*.nii.gz")):
            shutil.copy(image, self.studies)
            shutil.copy(data / "labelsTr" / image.name, self.labels)

    def submit(self, client: MONAILabelClient, image: str, wrong: bool = False) -> None:
        """The true label, or one in which every structure has the name of the next one."""
        order = self.names[1:] + self.names[:1] if wrong else self.names
        info = [{"name": name, "idx": value} for value, name in enumerate(order, 1)]
        client.save_label(image, str(self.labels / f"{image}.nii.gz"), "final", {"label_info": info, "client_id": "oracle"})

    @contextmanager
    def serving(self, *options: str) -> Iterator[str]:
        command = [self.binary, "serve", "--studies", self.studies, "--data", self.folder / "data", "--port", "0", *options]
        with open(self.folder / "server.log", "a") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r"http://[^ ,]+", server.stdout.readline())
            assert found, (self.folder / "server.log").read_text()
            yield found[0]
        finally:
            server.terminate()
            server.wait(60)


def call(url: str, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def until_over(url: str, number: int) -> dict[str, Any]:
    while True:
        found = call(url, f"/rounds/{number}")
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(POLL_S)


def one_round(url: str, client: MONAILabelClient, steps: int, seed: int) -> dict[str, Any]:
    """A round as the button of the clients starts it."""
    client.train_start(MODEL, {"steps": steps, "seed": seed, "client_id": "lead"})
    return until_over(url, call(url, "/rounds/?limit=1")["rounds"][0]["round"])


def validation_images(url: str, site: Site) -> list[str]:
    """The server's own split, as its command tells it."""
    out = subprocess.run(
        [site.binary, "split", "--data", site.folder / "data", "--json"], capture_output=True, text=True, check=True
    )
    return [row["image"] for row in json.loads(out.stdout)["split"] if row["part"] == "validation"]


def rounds(args: argparse.Namespace, site: Site) -> None:
    options = ["--gate-epsilon", str(args.epsilon), "--gate-epsilon-mean", str(args.epsilon_mean), "--seed", str(args.seed)]
    with site.serving(*options) as url:
        client = MONAILabelClient(url)
        held = validation_images(url, site)
        for image in held:
            site.submit(client, image)

        def label_next(count: int) -> None:
            done = 0
            while done < count:
                image = client.next_sample("random", {"client_id": "oracle"})["id"]
                assert image not in held, image
                site.submit(client, image)
                done += 1

        table = []
        for number in range(3):
            label_next(2 if number == 0 else args.query)
            started = time.time()
            found = one_round(url, client, args.steps, args.seed + number)
            table.append((found, time.time() - started))
        good = [found for found, _ in table]
        learned = good[-1]["training_images"]
        for image in learned[: (len(learned) + 1) // 2]:
            site.submit(client, image, wrong=True)
        started = time.time()
        table.append((one_round(url, client, args.steps, args.seed + 3), time.time() - started))
        report(table, site.names)
        bad = table[-1][0]
        assert bad["state"] == "kept", f"the bad round was {bad['state']}: {bad['reason']}"
        before = call(url, "/models/")["models"][0]
        after = call(url, f"/models/{MODEL}/rollback", "POST", {"client_id": "lead"})
        _, params = client.infer(MODEL, held[0], {"result_extension": ".nii.gz"})
        print(f"rollback: version {before['live_version']} -> {after['live_version']}, and {params['model_version']} answers")
        assert params["model_version"] == after["live_version"] != before["live_version"]


def report(table: list[tuple[dict[str, Any], float]], names: list[str]) -> None:
    print("| round | labels | version | decision | seconds | mean old | mean new | " + " | ".join(names) + " |")
    print("|" + "---|" * (7 + len(names)))
    for found, seconds in table:
        compared = found["comparison"] or {"structures": [], "old_dice": None, "new_dice": None}
        dice = [f"{number(s['old_dice'])} → {number(s['new_dice'])}" for s in compared["structures"]]
        row = [found["round"], len(found["training_images"]), found["version"], found["state"], f"{seconds:.0f}"]
        row += [number(compared["old_dice"]), number(compared["new_dice"]), *dice]
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    for found, _ in table:
        print(f"round {found['round']}: {found['state']}: {found['reason']}")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def serving(args: argparse.Namespace, site: Site) -> None:
    """Latencies while nothing runs, and while a round trains."""
    with site.serving("--ahead", "0", "--seed", str(args.seed)) as url:
        client = MONAILabelClient(url)
        images = sorted(path.name.removesuffix(".nii.gz") for path in site.labels.glob("*.nii.gz"))
        for image in images[:5]:
            site.submit(client, image)

        def ask(image: str) -> None:
            client.infer(MODEL, image, {"result_extension": ".nii.gz"})

        def phase(name: str) -> dict[str, list[float]]:
            found: dict[str, list[float]] = {"infer": [], "info": [], "submit": []}
            over = threading.Event()

            def background(kind: str, act: Callable[[], Any], pause_s: float) -> None:
                while not over.is_set():
                    found[kind].append(timed(act))
                    time.sleep(pause_s)

            threads = [
                threading.Thread(target=background, args=("info", lambda: call(url, "/info/"), 0.2)),
                threading.Thread(target=background, args=("submit", lambda: site.submit(client, images[0]), 1.0)),
            ]
            for thread in threads:
                thread.start()
            ask(images[0])
            for n in range(args.asks):
                found["infer"].append(timed(lambda n=n: ask(images[n % len(images)])))
                time.sleep(0.5)
            over.set()
            for thread in threads:
                thread.join()
            print(f"{name}: " + ", ".join(
                f"{kind} n={len(values)} median {statistics.median(values) * 1000:.0f} ms, "
                f"p95 {percentile(values, 0.95) * 1000:.0f} ms, p99 {percentile(values, 0.99) * 1000:.0f} ms"
                for kind, values in found.items()
            ))
            return found

        idle = phase("idle")
        client.train_start(MODEL, {"steps": 1_000_000, "val_split": 0.0})
        while not (call(url, "/rounds/1")["progress"] or {}).get("step"):
            time.sleep(POLL_S)
        busy = phase("training")
        rate_hz = call(url, "/rounds/1")["progress"]["rate_hz"]
        client.train_stop()
        step_s = 1.0 / rate_hz
        limit = 2 * percentile(idle["infer"], 0.95) + step_s
        print(f"a step takes {step_s * 1000:.0f} ms with what goes on beside it")
        for name, value, most in (
            ("inference p95", percentile(busy["infer"], 0.95), limit),
            ("/info/ p99", percentile(busy["info"], 0.99), 0.05),
            ("submit p99", percentile(busy["submit"], 0.99), 0.2),
        ):
            print(f"{name} while training {value * 1000:.0f} ms, limit {most * 1000:.0f} ms: {'ok' if value <= most else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--query", type=int, default=2, help="labels before the second and the third round")
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--epsilon-mean", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serving", action="store_true")
    parser.add_argument("--asks", type=int, default=40)
    args = parser.parse_args()
    args.binary = args.binary.resolve()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(pathlib.Path(folder), args.data, args.binary)
        started = time.time()
        serving(args, site) if args.serving else rounds(args, site)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.time() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} processor seconds of the server and its worker")


if __name__ == "__main__":
    main()
