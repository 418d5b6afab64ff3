"""The figures of decision 015: two builds of csrc/ side by side, each in a process of its own, by turns. A shared
machine changes its speed within seconds; the ratio of two runs right behind each other hardly does.

    python measure_builds.py OLD.so NEW.so [--format fp8] [--isa avx512_vnni] [--wide] moe:1 moe:8 linear:32
    python measure_builds.py OLD.so NEW.so [--other-bits] attention:1x512x512 attention:1x1x32768

`moe:8` is eight tokens through eight layers of 64 experts, `linear:8` through eight products of 16,384 rows, all of
1024 columns; `--wide`: two layers of 24 experts and two products of Mistral Small 4's width, 4096 columns.
`attention:32x1x192` is 32 sequences, a token each, behind contexts of 192, through eight layers of 16 heads of bf16.
A build is what `pip wheel .` or cmake leaves as `_native*.so`. Both must give the same bits, but for --other-bits.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import statistics
import subprocess
import sys
import time

import torch

NARROW, WIDE = (8, 64, 1024, 512), (2, 24, 4096, 2048)  # layers, experts, hidden size, inner size
CHOSEN, ROWS = 4, 16384
HEADS, NOPE, ROPE, LATENT, VALUE, PAGE = 16, 64, 64, 256, 128, 16  # the published proportions
FORMATS = ("bf16", "fp8", "nvfp4")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("builds", nargs=2)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    parser.add_argument("--isa", default="", help="another instruction set than the best")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--other-bits", action="store_true")
    args = parser.parse_args()
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", build, args.format, args.isa, args.threads, "wide" * args.wide],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for build in args.builds
    ]
    print(
        f"{args.format}; GB/s of weights and latents, medians of {args.repeats} (best);"
        f" {ask(workers[0])}, {ask(workers[1])}"
    )
    for case in args.cases:
        rates: list[list[float]] = [[], []]
        for repeat in range(args.repeats + 1):
            results = []
            for worker, found in zip(workers, rates, strict=True):
                tell(worker, f"{case}:{repeat}")
                rate, digest = ask(worker).split()
                results.append(digest)
                if repeat:  # the first one touches the memory
                    found.append(float(rate))
            assert args.other_bits or results[0] == results[1], "the builds do not agree bit for bit"
        old, new = ([statistics.median(found), max(found)] for found in rates)
        ratio = statistics.median(n / o for o, n in zip(*rates, strict=True))
        print(
            f"{case:>10}: {old[0]:5.1f} ({old[1]:5.1f}), {new[0]:5.1f} ({new[1]:5.1f}), ratio {ratio:.3f}", flush=True
        )


def tell(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    print(line, file=worker.stdin, flush=True)


def ask(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def work(build: str, form: str, isa: str, threads: str, wide: str) -> None:
    """Says which operators it has, then answers `operator:tokens:seed` with GB/s and a hash of all results."""
    import ventoux.ops

    spec = importlib.util.spec_from_file_location("ventoux.ops._native", build)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["ventoux.ops._native"] = ventoux.ops._native = module  # type: ignore[attr-defined]
    from ventoux.ops.cpu import native_operators

    torch.set_num_threads(1)
    ops = native_operators(int(threads), isa or None)
    layers, experts, hidden, inner = WIDE if wide else NARROW
    seeds = torch.Generator().manual_seed(0)
    gate_up = [weight(form, (experts, 2 * inner, hidden), seeds) for _ in range(layers)]
    down = [weight(form, (experts, hidden, inner), seeds) for _ in range(layers)]
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    shared = [tuple(weight(form, shape, seeds) for shape in shapes) for _ in range(layers)]
    dense = [weight(form, (ROWS, hidden), seeds) for _ in range(layers)]
    expert = (gate_up[0].nbytes + down[0].nbytes) / experts
    attention = Attention()
    print(ops.name, flush=True)
    for line in sys.stdin:
        operator, count, seed = line.split(":")
        generator = torch.Generator().manual_seed(int(seed))
        if operator == "attention":
            print(*attention.run(ops, *map(int, count.split("x"))), flush=True)
            continue
        x = torch.randn(int(count), hidden, generator=generator).bfloat16()
        choices = [torch.rand(len(x), experts, generator=generator).topk(CHOSEN).indices for _ in range(layers)]
        shares = torch.rand(len(x), CHOSEN, generator=generator)
        started = time.perf_counter()
        if operator == "moe":
            calls = zip(choices, gate_up, down, shared, strict=True)
            results = [ops.moe(x, shares, chosen, *weights) for chosen, *weights in calls]
            nbytes = sum((len(chosen.unique()) + 1) * expert for chosen in choices)
        else:
            results = [ops.linear(x, weights) for weights in dense]
            nbytes = sum(weights.nbytes for weights in dense)
        seconds = time.perf_counter() - started
        bits = b"".join(result.view(torch.uint8).numpy().tobytes() for result in results)
        print(nbytes / seconds / 1e9, hashlib.sha256(bits).hexdigest(), flush=True)


class Attention:
    """Latent attention of eight layers, with the same queries and latents whenever a case comes again."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        rows = HEADS * (NOPE + VALUE)
        self.kv_b = [(torch.randn(rows, LATENT, generator=g) / LATENT**0.5).bfloat16() for _ in range(8)]
        self.made = {}

    def run(self, ops, sequences: int, tokens: int, context: int) -> tuple[float, str]:
        q, cache, positions, layout = self._inputs(sequences, tokens, context)
        started = time.perf_counter()
        results = [ops.latent_attention(q, kv_b, positions, cache, layout, 0.1) for kv_b in self.kv_b]
        seconds = time.perf_counter() - started
        bits = b"".join(result.view(torch.uint8).numpy().tobytes() for result in results)
        return sum(kv_b.nbytes + cache.nbytes for kv_b in self.kv_b) / seconds / 1e9, hashlib.sha256(bits).hexdigest()

    def _inputs(self, sequences: int, tokens: int, context: int):
        from ventoux.ops.spec import AttentionLayout, Positions

        case = sequences, tokens, context
        if case not in self.made:
            g = torch.Generator().manual_seed(1)
            total, pages = sequences * tokens, -(-context // PAGE)
            angles = torch.rand(total, ROPE // 2, generator=g)
            layout = AttentionLayout(
                (tokens,) * sequences,
                (context,) * sequences,
                torch.arange(sequences * pages).view(sequences, pages),
                torch.zeros(total, dtype=torch.int64),
            )
            self.made[case] = (
                torch.randn(total, HEADS, NOPE + ROPE, generator=g).bfloat16(),
                torch.randn(sequences * pages, PAGE, LATENT + ROPE, generator=g).bfloat16(),
                Positions(angles.cos(), angles.sin(), torch.ones(total)),
                layout,
            )
        return self.made[case]


def weight(form: str, shape: tuple[int, ...], generator: torch.Generator):
    """In memory as the loader takes it, codes of every value but FP8's NaN."""
    from ventoux.ops.formats import FP8, GROUP, Fp8Weight, Nvfp4Weight
    from ventoux.ops.native import empty

    if form == "bf16":
        return empty(shape, torch.bfloat16).normal_(generator=generator)
    *rows, cols = shape
    scales = torch.ones(rows)
    if form == "fp8":
        return Fp8Weight(empty(shape, torch.uint8).random_(0, 127, generator=generator).view(FP8), scales)
    codes = empty((*rows, cols // 2), torch.uint8).random_(0, 256, generator=generator)
    groups = empty((*rows, cols // GROUP), torch.uint8).random_(8, 127, generator=generator)
    return Nvfp4Weight(codes, groups.view(FP8), scales)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
