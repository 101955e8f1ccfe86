"""PCT-Net on this machine's CPU: `fewlabel bench` beside PyTorch and OpenVINO, same run, same threads, same network.

    tests/bench/compare_torch.py --binary target/release/fewlabel [--json] [--threads 2] [--only forward] [--skip compiled]

The first call makes a Python environment (`--environment`, default tests/.venv-bench) with torch, openvino, numpy and
safetensors from the default package index; set PYTORCH_INDEX to take torch from another one (its CPU-only wheels are
much smaller). The network is written from its description (src/model/pct_net), not taken from the published code, with
the published parameter names: its random weights go through `fewlabel convert --verify`, and nothing is timed unless all
outputs agree within 1e-4. Each measurement is a process of its own, so that peak memory is its own.

Columns: wall seconds per run (median, least, most), processor seconds per run divided by the threads (what other work on
the machine disturbs less), peak memory in MB (10^6 bytes). PyTorch is measured with the system allocator as it comes, and with one
told to keep its pages (no mmap, no trimming), which is the fairer one: `torch_s` is that, `torch_peak_mb` the default's.
With `--json` the last line of stdout is one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = {
    "input_size": [64, 128, 128], "resolution_mode": 1, "feature_chns": [24, 48, 128, 256, 512], "num_heads": [4, 8, 16],
    "window_sizes": [6, 6, 6], "depths": [2, 2, 2], "class_num": 8, "in_chns": 1, "dropout": [0.0, 0.0, 0.2, 0.2, 0.2],
    "drop_path": 0.2,
}
SMALL = {**CONFIG, "feature_chns": [12, 24, 48, 96, 192], "dropout": [0.0] * 5, "drop_path": 0.0}
NETWORKS = {"pct-net": CONFIG, "pct-net-s": SMALL}
PATCHES = [(64, 128, 128), (32, 64, 64)]
KEEP_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=268435456"}
TOLERANCE = 1e-4
PACKAGES = ["numpy", "safetensors", "openvino"]


def build(config: dict):  # noqa: ANN201, C901 (torch is imported only in the measuring process)
    """The network in PyTorch with the published parameter names. Returns logits finest first, or the finest alone."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    mode, drop_path = config["resolution_mode"], config["drop_path"]
    flat, full = (1, 3, 3), (3, 3, 3)
    kernels = [flat if mode > level else full for level in range(2)]
    factors = [(1, 2, 2) if mode > level else (2, 2, 2) for level in range(2)]
    scale = [(2 if mode < 1 else 1) * (2 if mode < 2 else 1), 4, 4]
    windows = [
        min([config["window_sizes"][level]] + [(side // s) >> level for side, s in zip(config["input_size"], scale, strict=True)])
        for level in range(3)
    ]

    def norm(c: int) -> list:
        return [nn.BatchNorm3d(c), nn.PReLU()]

    def conv(i: int, o: int, kernel: tuple[int, int, int]) -> nn.Conv3d:
        return nn.Conv3d(i, o, kernel, padding=tuple(k // 2 for k in kernel))

    def pre(i: int, o: int, kernel: tuple[int, int, int]) -> nn.Sequential:
        return nn.Sequential(*norm(i), conv(i, o, kernel))

    class Block(nn.Module):
        """Two pre-activated convolutions."""

        def __init__(self, c: int, kernel: tuple[int, int, int], dropout: float) -> None:
            super().__init__()
            self.conv_conv = nn.Sequential(*norm(c), conv(c, c, kernel), *norm(c), nn.Dropout(dropout), conv(c, c, kernel))

        def forward(self, x):  # noqa: ANN001, ANN202
            return self.conv_conv(x)

    class Down(nn.Module):
        """Max pool, pre-activated convolution."""

        def __init__(self, i: int, o: int, factor: tuple[int, int, int], kernel: tuple[int, int, int]) -> None:
            super().__init__()
            self.factor, self.conv = factor, pre(i, o, kernel)

        def forward(self, x):  # noqa: ANN001, ANN202
            return self.conv(f.max_pool3d(x, self.factor))

    class Up(nn.Module):
        """Coarse features upsampled, joined to the fine ones, convolved."""

        def __init__(self, fine: int, coarse: int, factor: tuple[int, int, int], kernel: tuple[int, int, int]) -> None:
            super().__init__()
            self.up = nn.Sequential(*norm(coarse), nn.ConvTranspose3d(coarse, fine, factor, stride=factor))
            self.conv = pre(fine * 2, fine, kernel)

        def forward(self, fine, coarse):  # noqa: ANN001, ANN202
            return self.conv(torch.cat([fine, self.up(coarse)], 1))

    class Head(nn.Module):
        """Logits of one scale."""

        def __init__(self, c: int) -> None:
            super().__init__()
            self.conv = pre(c, config["class_num"], (1, 1, 1))

        def forward(self, x):  # noqa: ANN001, ANN202
            return self.conv(x)

    def position_index(side: int, table: int):  # noqa: ANN202
        """Row of the bias table for each pair of tokens; the depth offset's factor is the published one."""
        axes = torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij")
        at = torch.stack([axis.flatten() for axis in axes])
        d, h, w = at[:, :, None] - at[:, None, :] + table - 1
        return d * (3 * table - 1) + h * (2 * table - 1) + w

    def mask(padded: list[int], side: int, shift: int):  # noqa: ANN202
        """-100 between tokens that are neighbours only because the map was rolled, per window."""
        regions = torch.zeros(padded)
        cuts = [slice(0, -side), slice(-side, -shift), slice(-shift, None)]
        for i in range(27):
            regions[cuts[i // 9], cuts[i // 3 % 3], cuts[i % 3]] = i
        n = side
        d, h, w = padded
        rows = regions.view(d // n, n, h // n, n, w // n, n).permute(0, 2, 4, 1, 3, 5).reshape(-1, n**3)
        return (rows[:, None] != rows[:, :, None]).float() * -100.0

    class Attention(nn.Module):
        """Attention inside windows."""

        def __init__(self, c: int, heads: int, window: int) -> None:
            super().__init__()
            self.heads, self.window = heads, window
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 3, heads))
            self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
            self.cache: dict = {}

        def forward(self, x, side: int, regions):  # noqa: ANN001, ANN202
            count, tokens, c = x.shape
            if side not in self.cache:
                self.cache[side] = position_index(side, self.window).flatten().to(x.device)
            bias = self.relative_position_bias_table[self.cache[side]].view(tokens, tokens, self.heads).permute(2, 0, 1)[None]
            if regions is not None:
                bias = bias + regions[:, None].repeat(count // regions.shape[0], 1, 1, 1)
            q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            y = f.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            return self.proj(y.transpose(1, 2).reshape(count, tokens, c))

    class Mlp(nn.Module):
        """Two fully connected layers with GELU between."""

        def __init__(self, c: int, dropout: float) -> None:
            super().__init__()
            self.fc1, self.fc2, self.drop = nn.Linear(c, 4 * c), nn.Linear(4 * c, c), nn.Dropout(dropout)

        def forward(self, x):  # noqa: ANN001, ANN202
            return self.drop(self.fc2(self.drop(f.gelu(self.fc1(x)))))

    class Swin(nn.Module):
        """Windowed attention and a perceptron."""

        def __init__(self, c: int, heads: int, window: int, shifted: bool, dropout: float) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
            self.attn, self.mlp, self.drop = Attention(c, heads, window), Mlp(c, dropout), nn.Dropout(dropout)
            self.shifted = shifted
            self.cache: dict = {}

        def dropped(self, x):  # noqa: ANN001, ANN202
            if not self.training or drop_path == 0.0:
                return x
            keep = torch.empty(x.shape[0], 1, 1, 1, 1, device=x.device).bernoulli_(1 - drop_path)
            return x * keep / (1 - drop_path)

        def forward(self, x):  # noqa: ANN001, ANN202
            b, d, h, w, c = x.shape
            n = min(d, h, w, self.attn.window)
            shift = n // 2 if self.shifted and min(d, h, w) > self.attn.window else 0
            pad = [(n - side % n) % n for side in (d, h, w)]
            y = f.pad(self.norm1(x), (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
            padded = list(y.shape[1:4])
            pd, ph, pw = padded
            regions = None
            if shift:
                key = tuple(padded)
                if key not in self.cache:
                    self.cache[key] = mask(padded, n, shift).to(x.device)
                regions = self.cache[key]
                y = torch.roll(y, (-shift,) * 3, (1, 2, 3))
            y = y.view(b, pd // n, n, ph // n, n, pw // n, n, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, n**3, c)
            y = self.drop(self.attn(y, n, regions))
            y = y.view(b, pd // n, ph // n, pw // n, n, n, n, c).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, pd, ph, pw, c)
            y = torch.roll(y, (shift,) * 3, (1, 2, 3)) if shift else y
            x = x + self.dropped(y[:, :d, :h, :w])
            return x + self.dropped(self.mlp(self.norm2(x)))

    class Trans(nn.Module):
        """The transformer blocks of a stage."""

        def __init__(self, c: int, level: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                Swin(c, config["num_heads"][level], windows[level], i % 2 == 1, config["dropout"][level + 2])
                for i in range(config["depths"][level])
            )

        def forward(self, x):  # noqa: ANN001, ANN202
            for block in self.blocks:
                x = block(x)
            return x

    class Stage(nn.Module):
        """Convolutions and attention side by side."""

        def __init__(self, level: int) -> None:
            super().__init__()
            c, dropout = config["feature_chns"][level + 2], config["dropout"][level + 2]
            self.conv, self.trans, self.drop = Block(c, full, dropout), Trans(c, level), nn.Dropout(dropout)

        def forward(self, x):  # noqa: ANN001, ANN202
            tokens = self.drop(x.permute(0, 2, 3, 4, 1))
            return self.conv(x) + self.trans(tokens).permute(0, 4, 1, 2, 3)

    c0, c1, c2, c3, c4 = config["feature_chns"]
    drop = config["dropout"]

    class Embedding(nn.Module):
        """The two fine levels."""

        def __init__(self) -> None:
            super().__init__()
            self.proj = conv(config["in_chns"], c0, kernels[0])
            self.conv0, self.conv1 = Block(c0, kernels[0], drop[0]), Block(c1, kernels[1], drop[1])
            self.down1, self.down2 = Down(c0, c1, factors[0], kernels[1]), Down(c1, c2, factors[1], full)

        def forward(self, x):  # noqa: ANN001, ANN202
            x0 = self.conv0(self.proj(x))
            x1 = self.conv1(self.down1(x0))
            return x0, x1, self.down2(x1)

    class Pyramid(nn.Module):
        """The three coarse levels."""

        def __init__(self) -> None:
            super().__init__()
            two = (2, 2, 2)
            self.down3, self.down4 = Down(c2, c3, two, full), Down(c3, c4, two, full)
            self.up3, self.up4 = Up(c2, c3, two, full), Up(c3, c4, two, full)
            self.convtrans_e2, self.convtrans_d2 = Stage(0), Stage(0)
            self.convtrans_e3, self.convtrans_d3 = Stage(1), Stage(1)
            self.convtrans_e4 = Stage(2)
            self.out_conv2, self.out_conv3 = Head(c2), Head(c3)

        def forward(self, x):  # noqa: ANN001, ANN202
            x2 = self.convtrans_e2(x)
            x3 = self.convtrans_e3(self.down3(x2))
            x4 = self.convtrans_e4(self.down4(x3))
            d3 = self.convtrans_d3(self.up4(x3, x4))
            return self.convtrans_d2(self.up3(x2, d3)), d3

    class Prediction(nn.Module):
        """Back to the image's resolution."""

        def __init__(self) -> None:
            super().__init__()
            self.up1, self.up2 = Up(c0, c1, factors[0], kernels[0]), Up(c1, c2, factors[1], kernels[1])
            self.conv0, self.conv1 = Block(c0, kernels[0], drop[0]), Block(c1, kernels[1], drop[1])
            self.out_conv0, self.out_conv1 = Head(c0), Head(c1)

        def forward(self, x0, x1, d2):  # noqa: ANN001, ANN202
            d1 = self.conv1(self.up2(x1, d2))
            return self.conv0(self.up1(x0, d1)), d1

    class Net(nn.Module):
        """Embedding, pyramid, head."""

        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.ModuleDict({str(mode): Embedding()})
            self.pyramid_ct = Pyramid()
            self.pred_heads = nn.ModuleDict({str(mode): Prediction()})
            self.finest = False

        def forward(self, x):  # noqa: ANN001, ANN202
            x0, x1, x2 = self.embeddings[str(mode)](x)
            d2, d3 = self.pyramid_ct(x2)
            head = self.pred_heads[str(mode)]
            d0, d1 = head(x0, x1, d2)
            if self.finest:
                return head.out_conv0(d0)
            pyramid = self.pyramid_ct
            return [head.out_conv0(d0), head.out_conv1(d1), pyramid.out_conv2(d2), pyramid.out_conv3(d3)]

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        # Every parameter and statistic off its initial value, so that an exchange of two of them shows.
        for name, value in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() == 1 or name.endswith("table"):
                value.add_(torch.randn_like(value) * 0.1)
    return net


def reference(config: dict, folder: Path) -> None:
    """Writes the weights, and an input with the outputs, for `fewlabel convert --verify`."""
    import torch
    from safetensors.torch import save_file

    net = build(config).eval()
    x = torch.randn(1, config["in_chns"], *PATCHES[1])
    with torch.inference_mode():
        outputs = net(x)
    torch.save(net.state_dict(), folder / "net.pt")
    tensors = {"input": x} | {f"logits{i}": y.contiguous() for i, y in enumerate(outputs)}
    save_file(tensors, folder / "reference.safetensors")


def measure(config: dict, runtime: str, work: str, patch: tuple[int, int, int], repeats: int, threads: int) -> dict:
    """Wall and processor seconds of each run after one that does not count, and this process's peak memory."""
    import resource

    if runtime.startswith("openvino"):
        run = openvino_runner(config, runtime, patch, threads)
    else:
        run = torch_runner(config, runtime, work, patch, threads)
    run()
    seconds, busy = [], []
    for _ in range(repeats):
        start, start_busy = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    return {"seconds": seconds, "busy": busy, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}


def torch_runner(config: dict, runtime: str, work: str, patch: tuple[int, int, int], threads: int):  # noqa: ANN201
    """One patch forward, or one training step, in PyTorch."""
    import torch
    from torch.nn import functional as f

    torch.set_num_threads(threads)
    net = build(config)
    x = torch.randn(1, config["in_chns"], *patch)
    if work == "forward":
        net.eval()
        net.finest = True
        compiled = prepare(net, runtime)

        def forward() -> None:
            with torch.inference_mode():
                compiled(x)

        return forward

    net.train()
    labels = torch.randint(0, config["class_num"], (1, *patch))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-5)

    def step() -> None:
        loss = torch.zeros(())
        one_hot = f.one_hot(labels, config["class_num"]).permute(0, 4, 1, 2, 3).float()
        for i, logits in enumerate(net(x)):
            logits = logits if i == 0 else f.interpolate(logits, size=patch, mode="trilinear", align_corners=False)
            p = logits.softmax(1)
            overlap, total = (p * one_hot).sum((0, 2, 3, 4)), (p + one_hot).sum((0, 2, 3, 4))
            dice = ((2 * overlap + 1e-5) / (total + 1e-5)).mean()
            loss = loss + 0.5**i / 1.875 * 0.5 * (1 - dice + f.cross_entropy(logits, labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def prepare(net, runtime: str):  # noqa: ANN001, ANN201
    """The network as the runtime wants it."""
    if runtime == "torch":
        return net
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True
    return torch.compile(net)


def export(config: dict, patch: tuple[int, int, int], folder: Path) -> None:
    """Writes the network as OpenVINO's file; a process of its own, because it holds everything twice."""
    import warnings

    import openvino
    import torch

    warnings.filterwarnings("ignore")  # tracing fixes the sizes: that is wanted
    net = build(config).eval()
    net.finest = True
    x = torch.randn(1, config["in_chns"], *patch)
    with torch.inference_mode():
        net(x)  # the masks are made once, not in the traced graph
        model = openvino.convert_model(net, example_input=x, input=[x.shape])
    openvino.save_model(model, folder / "net.xml", compress_to_fp16=False)


def openvino_runner(config: dict, runtime: str, patch: tuple[int, int, int], threads: int):  # noqa: ANN201
    """One patch through OpenVINO, without PyTorch in this process."""
    import numpy as np
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        network = next(name for name, known in NETWORKS.items() if known == config)
        task = f"export {folder} {','.join(map(str, patch))}"
        subprocess.check_call([sys.executable, __file__, "--network", network, "--child", task], stdout=sys.stderr)
        settings = {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if runtime == "openvino-bf16" else "f32",
        }
        compiled = openvino.Core().compile_model(Path(folder) / "net.xml", "CPU", settings)
    x = np.random.default_rng(0).standard_normal((1, config["in_chns"], *patch), dtype=np.float32)
    return lambda: compiled(x)


def environment(folder: Path) -> Path:
    """The Python of an environment with what is measured."""
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        print(f"making {folder} (downloads torch and openvino once)", file=sys.stderr, flush=True)
        subprocess.check_call([sys.executable, "-m", "venv", folder], stdout=sys.stderr)
        install = [python, "-m", "pip", "install", "--quiet"]
        index = os.environ.get("PYTORCH_INDEX")
        subprocess.check_call([*install, *(["--index-url", index] if index else []), "torch"], stdout=sys.stderr)
        subprocess.check_call([*install, *PACKAGES], stdout=sys.stderr)
        done.touch()
    return python


def check_outputs(python: Path, binary: str, network: str) -> None:
    """Ends this program unless our network computes what PyTorch's does with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.check_call([python, __file__, "--network", network, "--child", f"reference {folder}"])
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(NETWORKS[network]))
        told = subprocess.check_output(
            [binary, "convert", f"{folder}/net.pt", "--config", config, "-o", f"{folder}/model",
             "--verify", f"{folder}/reference.safetensors"], text=True,
        )
    lines = [line for line in told.splitlines() if "difference" in line]
    print("\n".join(lines), file=sys.stderr, flush=True)
    if len(lines) < 4 or not all(float(line.split()[-1]) <= TOLERANCE for line in lines):
        sys.exit(f"the outputs are not those of PyTorch within {TOLERANCE}: nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/fewlabel")
    parser.add_argument("--network", default="pct-net", choices=list(NETWORKS))
    parser.add_argument("--environment", type=Path, default=Path(__file__).resolve().parent.parent / ".venv-bench")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patch", help="one patch, z,y,x, of the two measured ones")
    parser.add_argument("--only", choices=["forward", "train"], help="one half of the measurements")
    parser.add_argument("--skip", action="append", default=[], help="a runtime: fewlabel-bf16, torch, torch-keep, compiled, openvino, openvino-bf16")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = NETWORKS[args.network]
    if args.child:
        task, *rest = args.child.split()
        if task == "reference":
            reference(config, Path(rest[0]))
        elif task == "export":
            export(config, tuple(map(int, rest[1].split(","))), Path(rest[0]))
        else:
            patch = tuple(map(int, rest[1].split(",")))
            print(json.dumps(measure(config, task, rest[0], patch, args.repeats, args.threads)))
        return

    python = environment(args.environment)
    check_outputs(python, args.binary, args.network)
    common = ["--network", args.network, "--repeats", str(args.repeats)]
    out = sys.stderr if args.json else sys.stdout
    print(f"| {args.network}, {args.threads} threads | runtime | s [least-most] | processor s / threads | MB |", file=out)
    print("|---|---|---|---|---|", file=out, flush=True)

    def ours(runtime: str, work: str, sides: str) -> dict:
        precision = "bf16" if runtime.endswith("bf16") else "f32"
        told = json.loads(subprocess.check_output(
            [args.binary, "bench", *common, "--device", "cpu", "--patch", sides, "--work", {"train": "step"}.get(work, work),
             "--precision", precision, "--json"],
            env={**os.environ, "RAYON_NUM_THREADS": str(args.threads)},
        ))["results"][0]
        return {"seconds": told["seconds"], "busy": told["busy_seconds"], "peak_mb": told["peak_memory_mib_so_far"] * 2**20 / 1e6}

    def theirs(runtime: str, work: str, sides: str) -> dict:
        keep = KEEP_PAGES if runtime == "torch-keep" else {}
        name = runtime.removesuffix("-keep")
        return json.loads(subprocess.check_output(
            [python, __file__, *common, "--threads", str(args.threads), "--child", f"{name} {work} {sides}"],
            env={**os.environ, **keep}, text=True,
        ).splitlines()[-1])

    result = {}
    for work in ("forward", "train"):
        if args.only not in (None, work):
            continue
        runtimes = ["fewlabel", "torch", "torch-keep"]
        if work == "forward":
            runtimes += ["fewlabel-bf16", "compiled", "openvino", "openvino-bf16"]
        for patch in [p for p in PATCHES if args.patch in (None, ",".join(map(str, p)))]:
            sides, title = ",".join(map(str, patch)), f"{work}_{'x'.join(map(str, patch))}"
            rows: dict = {}
            for runtime in runtimes:
                if runtime in args.skip:
                    continue
                try:
                    measured = ours if runtime.startswith("fewlabel") else theirs
                    row = measured(runtime, work, sides)
                except (subprocess.CalledProcessError, IndexError) as error:
                    print(f"| {title} | {runtime} | not measured: {error} | | |", file=out, flush=True)
                    continue
                rows[runtime] = {"s": statistics.median(row["seconds"]), "peak": round(row["peak_mb"], 1)}
                busy = statistics.median(row["busy"]) / args.threads
                print(
                    f"| {title} | {runtime} | {rows[runtime]['s']:.3f} [{min(row['seconds']):.3f}-{max(row['seconds']):.3f}] "
                    f"| {busy:.3f} | {row['peak_mb']:.0f} |", file=out, flush=True,
                )

            def value(runtime: str, key: str, rows: dict = rows) -> float | None:
                return rows.get(runtime, {}).get(key)

            entry = {"ours_s": value("fewlabel", "s"), "torch_s": value("torch-keep", "s")}
            peaks = {"ours_peak_mb": value("fewlabel", "peak"), "torch_peak_mb": value("torch", "peak")}
            if work == "forward":
                entry = {
                    "ours_s": entry["ours_s"], "ours_bf16_s": value("fewlabel-bf16", "s"), "torch_s": entry["torch_s"],
                    "openvino_s": value("openvino", "s"), "openvino_bf16_s": value("openvino-bf16", "s"),
                }
                peaks["openvino_peak_mb"] = value("openvino", "peak")
            result[title] = entry | peaks
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
