"""PCT-Net in PyTorch on a GPU: one measurement, one line of JSON.

    torch_gpu.py RUNTIME WORK [--network pct-net] [--patch 64,128,128] [--volume 300,512,512] [--repeats 3] [--device cuda]

RUNTIME is eager (float32 as PyTorch comes, TF32 where it uses it), tf32 (with TF32 allowed everywhere), autocast (bf16) or
compiled (bf16, channels last, torch.compile). WORK is forward, step or volume. The network is that of tests/bench/compare_torch.py.
A volume is a scan of 1.5 x 0.8 x 0.8 mm that the network sees at 1.5 mm, with the same windows, weights and blending as
`fewlabel bench`: everything on the GPU, the label map copied back.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import compare_torch  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as f  # noqa: E402

SCAN_MM = (1.5, 0.8, 0.8)
MODEL_MM = 1.5
BATCH = 4


def starts(size: int, window: int) -> list[int]:
    """Window starts with at least half overlap, without duplicates."""
    if size <= window:
        return [0]
    gaps = math.ceil((size - window) / (window // 2))
    return [(size - window) * i // gaps for i in range(gaps + 1)]


def gaussian(window: tuple[int, ...], device: str) -> torch.Tensor:
    axes = []
    for size in window:
        at = torch.arange(size, dtype=torch.float32, device=device)
        axes.append(torch.exp(-0.5 * ((at - (size - 1) / 2) / (size / 8)) ** 2))
    z, y, x = axes
    return (z[:, None, None] * y[None, :, None] * x[None, None, :]).clamp_min(1e-3)


def segment(net, scan: torch.Tensor, window: tuple[int, ...], classes: int, device: str) -> torch.Tensor:
    """Labels of a scan `[z, y, x]` in HU that lies on the host."""
    grid = tuple(max(1, round(side * mm / MODEL_MM)) for side, mm in zip(scan.shape, SCAN_MM, strict=True))
    volume = ((scan.to(device).clamp(-1000, 1000) + 1000) / 1000 - 1)[None, None]
    volume = f.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    pad = [max(0, side - size) for side, size in zip(window, grid, strict=True)]
    volume = f.pad(volume, (0, pad[2], 0, pad[1], 0, pad[0]), value=-1.0)
    padded = volume.shape[2:]
    sums, totals = torch.zeros((classes, *padded), device=device), torch.zeros(padded, device=device)
    weight = gaussian(window, device)
    d, h, w = window
    all_starts = [
        (z, y, x) for z in starts(padded[0], d) for y in starts(padded[1], h) for x in starts(padded[2], w)
    ]
    for i in range(0, len(all_starts), BATCH):
        part = all_starts[i : i + BATCH]
        logits = net(torch.cat([volume[:, :, z : z + d, y : y + h, x : x + w] for z, y, x in part])).float()
        for (z, y, x), logit in zip(part, logits, strict=True):
            sums[:, z : z + d, y : y + h, x : x + w] += logit * weight
            totals[z : z + d, y : y + h, x : x + w] += weight
    mean = (sums / totals)[:, : grid[0], : grid[1], : grid[2]]
    labels = torch.empty(scan.shape, dtype=torch.uint8, device=device)
    for z in range(0, scan.shape[0], 16):
        # One slab of slices at a time: all classes of a whole scan in float32 would be gigabytes.
        low = max(0, int((z + 0.5) * grid[0] / scan.shape[0] - 0.5))
        high = min(grid[0], int((z + 15.5) * grid[0] / scan.shape[0] - 0.5) + 2)
        depth = min(16, scan.shape[0] - z)
        slab = f.interpolate(mean[None, :, low:high], size=(depth, *scan.shape[1:]), mode="trilinear", align_corners=False)
        labels[z : z + depth] = slab[0].argmax(0).to(torch.uint8)
    return labels.cpu()


def body(shape: tuple[int, ...]) -> torch.Tensor:
    y = torch.linspace(-1, 1, shape[1])[:, None] / 0.7
    x = torch.linspace(-1, 1, shape[2])[None, :] / 0.9
    inside = (y * y + x * x < 1).expand(shape)
    return torch.where(inside, 40 + 30 * torch.randn(shape), torch.tensor(-1000.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=["eager", "tf32", "autocast", "compiled"])
    parser.add_argument("work", choices=["forward", "step", "volume"])
    parser.add_argument("--network", default="pct-net", choices=list(compare_torch.NETWORKS))
    parser.add_argument("--patch", default="64,128,128")
    parser.add_argument("--volume", default="300,512,512")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device, on_gpu = args.device, args.device != "cpu"
    config = compare_torch.NETWORKS[args.network]
    patch = tuple(map(int, args.patch.split(",")))
    classes = config["class_num"]
    if args.runtime == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    net = compare_torch.build(config).to(device)
    half = args.runtime in ("autocast", "compiled")
    layout = torch.channels_last_3d if args.runtime == "compiled" else torch.contiguous_format
    if args.runtime == "compiled":
        net = net.to(memory_format=layout)
    autocast = torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=half)

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def timed(run) -> list[float]:
        seconds = []
        for i in range(args.repeats + 2):
            wait()
            start = time.perf_counter()
            run()
            wait()
            # The first two compile, search algorithms and fill pools.
            if i >= 2:
                seconds.append(time.perf_counter() - start)
        return seconds

    if args.work == "step":
        net.train()
        optimiser = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-5)
        labels = torch.randint(0, classes, (1, *patch), device=device)
        one_hot = f.one_hot(labels, classes).permute(0, 4, 1, 2, 3).float()
        x = torch.randn(1, config["in_chns"], *patch, device=device).to(memory_format=layout)
        module = torch.compile(net) if args.runtime == "compiled" else net

        def run() -> None:
            with autocast:
                outputs = module(x)
            loss = torch.zeros((), device=device)
            for i, logits in enumerate(outputs):
                logits = logits.float()
                logits = logits if i == 0 else f.interpolate(logits, size=patch, mode="trilinear", align_corners=False)
                p = logits.softmax(1)
                overlap, total = (p * one_hot).sum((0, 2, 3, 4)), (p + one_hot).sum((0, 2, 3, 4))
                dice = ((2 * overlap + 1e-5) / (total + 1e-5)).mean()
                loss = loss + 0.5**i / 1.875 * 0.5 * (1 - dice + f.cross_entropy(logits, labels))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

        seconds = timed(run)
    else:
        net.eval()
        net.finest = True
        x = torch.randn(1, config["in_chns"], *patch, device=device).to(memory_format=layout)
        with torch.inference_mode():
            net(x)  # masks and indices are made once
        module = torch.compile(net) if args.runtime == "compiled" else net

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), autocast:
                return module(x.to(memory_format=layout))

        if args.work == "forward":
            seconds = timed(lambda: forward(x))
        else:
            scan = body(tuple(map(int, args.volume.split(","))))
            with torch.inference_mode():
                seconds = timed(lambda: segment(forward, scan, patch, classes, device))
    print(json.dumps({
        "runtime": args.runtime, "work": args.work, "torch": torch.__version__, "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "device_memory_mib": torch.cuda.max_memory_reserved() >> 20 if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }))


if __name__ == "__main__":
    main()
