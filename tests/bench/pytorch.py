"""PCT-Net in PyTorch on the CPU, beside `fewlabel bench`: seconds, peak memory and the ratio, in one run.

    tests/bench/pytorch.py --binary target/release/fewlabel [--network pct-net] [--threads 2]

The network is written from its description (see src/model/pct_net), not taken from the published code: same layers, same
sizes, random weights. Each measurement is a process of its own, so that peak memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

CLASSES = 8
CHANNELS = {"pct-net": [24, 48, 128, 256, 512], "pct-net-s": [12, 24, 48, 96, 192]}
PATCHES = [(32, 64, 64), (64, 128, 128)]


def build(channels: list[int]):  # noqa: ANN201 (torch is imported only in the measuring process)
    """Resolution mode 1 with four outputs, as `fewlabel bench` measures it."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    class Pre(nn.Module):
        """Batch normalisation, PReLU, convolution."""

        def __init__(self, i: int, o: int, kernel: tuple[int, int, int]) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm3d(i), nn.PReLU()
            self.conv = nn.Conv3d(i, o, kernel, padding=tuple(k // 2 for k in kernel))

        def forward(self, x):  # noqa: ANN001, ANN201
            return self.conv(self.act(self.norm(x)))

    class Up(nn.Module):
        """Coarse features upsampled, joined to the fine ones, convolved."""

        def __init__(self, fine: int, coarse: int, block: tuple[int, int, int], kernel: tuple[int, int, int]) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm3d(coarse), nn.PReLU()
            self.up = nn.ConvTranspose3d(coarse, fine, block, stride=block)
            self.conv = Pre(fine * 2, fine, kernel)

        def forward(self, fine, coarse):  # noqa: ANN001, ANN201
            return self.conv(torch.cat([fine, self.up(self.act(self.norm(coarse)))], 1))

    class Block(nn.Module):
        """Windowed attention and a perceptron."""

        def __init__(self, c: int, heads: int, window: int, shift: int) -> None:
            super().__init__()
            self.heads, self.window, self.shift = heads, window, shift
            self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
            self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
            self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Dropout(0.2), nn.Linear(4 * c, c), nn.Dropout(0.2))
            self.bias = nn.Parameter(torch.zeros(heads, window**3, window**3))

        def forward(self, x):  # noqa: ANN001, ANN201
            b, d, h, w, c = x.shape
            n = self.window
            pad = [(n - side % n) % n for side in (d, h, w)]
            y = f.pad(self.norm1(x), (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
            y = torch.roll(y, (-self.shift,) * 3, (1, 2, 3)) if self.shift else y
            _, pd, ph, pw, _ = y.shape
            y = y.view(b, pd // n, n, ph // n, n, pw // n, n, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, n**3, c)
            q, k, v = self.qkv(y).view(-1, n**3, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            y = f.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
            y = self.proj(y.transpose(1, 2).reshape(-1, n**3, c))
            y = y.view(b, pd // n, ph // n, pw // n, n, n, n, c).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, pd, ph, pw, c)
            y = torch.roll(y, (self.shift,) * 3, (1, 2, 3)) if self.shift else y
            x = x + y[:, :d, :h, :w]
            return x + self.mlp(self.norm2(x))

    class Stage(nn.Module):
        """Convolutions and attention side by side."""

        def __init__(self, c: int, heads: int, window: int) -> None:
            super().__init__()
            self.conv = nn.Sequential(Pre(c, c, (3, 3, 3)), nn.Dropout(0.2), Pre(c, c, (3, 3, 3)))
            self.blocks = nn.Sequential(Block(c, heads, window, 0), Block(c, heads, window, window // 2))

        def forward(self, x):  # noqa: ANN001, ANN201
            return self.conv(x) + self.blocks(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)

    class Net(nn.Module):
        """Embedding, pyramid, head."""

        def __init__(self) -> None:
            super().__init__()
            c0, c1, c2, c3, c4 = channels
            flat, full = (1, 3, 3), (3, 3, 3)
            self.proj = nn.Conv3d(1, c0, flat, padding=(0, 1, 1))
            self.conv0 = nn.Sequential(Pre(c0, c0, flat), Pre(c0, c0, flat))
            self.down1, self.conv1 = Pre(c0, c1, full), nn.Sequential(Pre(c1, c1, full), Pre(c1, c1, full))
            self.down2, self.down3, self.down4 = Pre(c1, c2, full), Pre(c2, c3, full), Pre(c3, c4, full)
            self.e2, self.e3, self.e4 = Stage(c2, 4, 6), Stage(c3, 8, 6), Stage(c4, 16, 6)
            self.d2, self.d3 = Stage(c2, 4, 6), Stage(c3, 8, 6)
            self.up4, self.up3 = Up(c3, c4, (2, 2, 2), full), Up(c2, c3, (2, 2, 2), full)
            self.up2, self.up1 = Up(c1, c2, (2, 2, 2), full), Up(c0, c1, (1, 2, 2), flat)
            self.dec1, self.dec0 = nn.Sequential(Pre(c1, c1, full), Pre(c1, c1, full)), nn.Sequential(Pre(c0, c0, flat), Pre(c0, c0, flat))
            self.out = nn.ModuleList([Pre(c, CLASSES, (1, 1, 1)) for c in (c0, c1, c2, c3)])

        def forward(self, x, finest: bool = False):  # noqa: ANN001, ANN201
            x0 = self.conv0(self.proj(x))
            x1 = self.conv1(self.down1(f.max_pool3d(x0, (1, 2, 2))))
            x2 = self.e2(self.down2(f.max_pool3d(x1, 2)))
            x3 = self.e3(self.down3(f.max_pool3d(x2, 2)))
            x4 = self.e4(self.down4(f.max_pool3d(x3, 2)))
            d3 = self.d3(self.up4(x3, x4))
            d2 = self.d2(self.up3(x2, d3))
            d1 = self.dec1(self.up2(x1, d2))
            d0 = self.dec0(self.up1(x0, d1))
            if finest:
                return self.out[0](d0)
            return [head(y) for head, y in zip(self.out, (d0, d1, d2, d3), strict=True)]

    return Net()


def measure(network: str, work: str, patch: tuple[int, int, int], repeats: int, threads: int) -> dict:
    """Median seconds and peak memory of this process."""
    import torch
    from torch.nn import functional as f

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = build(CHANNELS[network])
    x = torch.randn(1, 1, *patch)
    labels = torch.randint(0, CLASSES, (1, *patch))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-5)

    def forward() -> None:
        with torch.inference_mode():
            net(x, finest=True)

    def step() -> None:
        loss = torch.zeros(())
        one_hot = f.one_hot(labels, CLASSES).permute(0, 4, 1, 2, 3).float()
        for i, logits in enumerate(net(x)):
            logits = logits if i == 0 else f.interpolate(logits, size=patch, mode="trilinear", align_corners=False)
            p = logits.softmax(1)
            overlap, total = (p * one_hot).sum((0, 2, 3, 4)), (p + one_hot).sum((0, 2, 3, 4))
            dice = ((2 * overlap + 1e-5) / (total + 1e-5)).mean()
            loss = loss + 0.5**i / 1.875 * 0.5 * (1 - dice + f.cross_entropy(logits, labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    net.train(work == "step")
    run = step if work == "step" else forward
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="target/release/fewlabel")
    parser.add_argument("--network", default="pct-net", choices=list(CHANNELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        work, *patch = args.child.split(",")
        print(json.dumps(measure(args.network, work, tuple(map(int, patch)), args.repeats, args.threads)))
        return
    print(f"| {args.network}, {args.threads} threads | fewlabel s [min-max] | MiB | PyTorch s [min-max] | MiB | ratio |")
    print("|---|---|---|---|---|---|")
    for patch in PATCHES:
        for work in ("forward", "step"):
            sides = ",".join(map(str, patch))
            common = ["--network", args.network, "--repeats", str(args.repeats)]
            ours = json.loads(subprocess.check_output(
                [args.binary, "bench", *common, "--device", "cpu", "--patch", sides, "--work", work, "--json"],
                env={"RAYON_NUM_THREADS": str(args.threads)},
            ))["results"][0]
            theirs = json.loads(subprocess.check_output(
                [sys.executable, __file__, *common, "--threads", str(args.threads), "--child", f"{work},{sides}"]
            ))
            a, b = ours["seconds"], theirs["seconds"]
            ratio = a[len(a) // 2] / b[len(b) // 2]
            print(
                f"| {work} 1x1x{sides.replace(',', 'x')} | {a[len(a) // 2]:.2f} [{a[0]:.2f}-{a[-1]:.2f}] | {ours['peak_memory_mib_so_far']} "
                f"| {b[len(b) // 2]:.2f} [{b[0]:.2f}-{b[-1]:.2f}] | {theirs['peak_mib']} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
