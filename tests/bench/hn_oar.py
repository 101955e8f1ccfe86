"""Dice before and after one fine-tuning round on real CT, through a running server with the MONAI Label client.

    tests/bench/hn_oar.py --binary target/release/fewlabel --data ../shared/data/ct/hn_oar --steps 800 --seed 1

Trains on the first five cases and measures on the other five, which are never submitted.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import nibabel
import numpy
from monailabel.client import MONAILabelClient


def dice(a: numpy.ndarray, b: numpy.ndarray, value: int) -> float | None:
    """Dice of one label value; None where neither map has it."""
    x, y = a == value, b == value
    total = int(x.sum() + y.sum())
    return 2.0 * int((x & y).sum()) / total if total else None


def measure(client: MONAILabelClient, model: str, data: Path, cases: list[str], values: list[int]) -> dict[str, dict[int, float | None]]:
    """Dice per case and label value of the server's proposals."""
    result = {}
    for case in cases:
        file, _ = client.infer(model, case, {"result_extension": ".nii.gz", "result_dtype": "uint8"})
        proposal = numpy.asarray(nibabel.load(file).dataobj)
        reference = numpy.asarray(nibabel.load(data / "labelsTr" / f"{case}.nii.gz").dataobj)
        assert proposal.shape == reference.shape, case
        result[case] = {value: dice(proposal, reference, value) for value in values}
    return result


def mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="pct-net-s")
    args = parser.parse_args()
    dataset = json.loads((args.data / "dataset.json").read_text())
    names = {int(value): name for value, name in dataset["labels"].items() if value != "0"}
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (args.data / "imagesTr").glob("*.nii.gz"))
    training, held_out = cases[:5], cases[5:]
    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies"
        studies.mkdir()
        shutil.copy(args.data / "dataset.json", studies)
        for case in cases:
            shutil.copy(args.data / "imagesTr" / f"{case}.nii.gz", studies)
        server = subprocess.Popen(
            [args.binary, "serve", "--studies", studies, "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url = re.search(r"http://\S+?(?=[,\s])", server.stdout.readline()).group(0)
            client = MONAILabelClient(url)
            before = measure(client, args.model, args.data, held_out, list(names))
            for case in training:
                info = [{"name": name, "idx": value} for value, name in names.items()]
                client.save_label(case, str(args.data / "labelsTr" / f"{case}.nii.gz"), "final", {"label_info": info})
            start = time.time()
            client.train_start(args.model, {"steps": args.steps, "val_split": 0.0, "seed": args.seed})
            slowest = 0.0
            while True:
                time.sleep(5)
                asked = time.time()
                task = client.train_status()
                slowest = max(slowest, time.time() - asked)
                print(task["status"], (task.get("details") or [""])[-1], flush=True)
                if task["status"] in ("DONE", "ERROR", "STOPPED"):
                    break
            minutes = (time.time() - start) / 60
            assert task["status"] == "DONE", task
            after = measure(client, args.model, args.data, held_out, list(names))
        finally:
            server.terminate()
            server.wait(30)
    print(f"\ntrained on {training}, {args.steps} steps, seed {args.seed}, {minutes:.1f} minutes; slowest status answer {slowest:.2f} s")
    print("| structure | before | after |\n|---|---|---|")
    for value, name in names.items():
        row = [mean([scores[case][value] for case in held_out]) for scores in (before, after)]
        print(f"| {name} | {row[0]:.3f} | {row[1]:.3f} |")
    total = [mean([mean([scores[case][value] for case in held_out]) for value in names]) for scores in (before, after)]
    print(f"| mean | {total[0]:.3f} | {total[1]:.3f} |")


if __name__ == "__main__":
    main()
