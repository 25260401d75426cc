#!/usr/bin/env python3
"""Our training step against PyTorch's, on one machine, in one run.

Each row is a model, a dtype and a number of threads. One process of PyTorch and one of ours for each number of shards
take turns: some steps each, the others asleep, 7 times or more. A turn counts as the median of its steps, a figure as
the median of its turns. Where others use the machine too, a team of OpenMP suffers more from it than one of ours, which
does not wait for the late: the second ratio is that of the best turns, which is fairer there. Rows of one thread
also have the ratio of CPU times, in which waiting for a core does not count. Both sides start from the same weights on the same batch; the parameters are counted and the
first loss is compared, so that both do the same work. In every step: zero the gradients, forward, loss, backward,
clipping where the row has it, update.

A ratio is PyTorch's time over ours: above 1 we are faster. The price of exactness is ours over ours with one shard;
price and GFLOP/s are those of the best turns. Memory is what our step needs besides state and moments (the planned arena
and one gradient), over the peak of live bytes that PyTorch's profiler sees in a step, in which gradients are made too.
The last line is JSON with --json.

With --device cuda it is another comparison: see gpu.py.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

from side import HERE, LOSS_OFF_MAX, OURS, Side

# (row, model, batch, threads, shards of ours, multiply-adds of one sample's forward pass in products)
ROWS = [
    *[(name, name, batch, threads, (1, 8)) for name, batch in [("gpt", 8), ("cnn", 64), ("mlp", 64), ("digits", 32)] for threads in (1, 2)],
    ("gpt-b16", "gpt", 16, 2, (1, 16)),
    ("cnn-v16", "cnn", 64, 2, (1, 16)),
    ("mlp-v16", "mlp", 64, 2, (1, 8, 16)),
]
# Causal attention counts half of the square.
GPT_BLOCK = 256 * 12 * 256 * 256 + 256 * 256 * 256
MACS = {
    "gpt": 6 * GPT_BLOCK + 256 * 256 * 256,
    "cnn": 9 * (1024 * 3 * 64 + 256 * 64 * 64 + 64 * 64 * 128 + 16 * 128 * 128) + 512 * 10,
    "mlp": 784 * 512 + 512 * 512 + 512 * 10,
    "digits": 64 * 128 + 128 * 10,
}


def start(model, dtype, batch, threads, shards, folder):
    ours = {v: Side([OURS, model, dtype, str(threads), str(v), str(batch)], threads) for v in shards}
    refused = next((side.first["unsupported"] for side in ours.values() if "unsupported" in side.first), None)
    if refused:
        for side in ours.values():
            side.end()
        return None, refused
    weights = folder / "weights.safetensors"
    ours[shards[0]].ask(f"export {weights}")
    peer = Side([sys.executable, str(HERE / "peer.py"), model, dtype, str(threads), str(batch), str(weights)], threads)
    return (ours, peer), None


def check(row, dtype, ours, peer):
    """The same parameters, and from the same weights the same first loss."""
    limit = LOSS_OFF_MAX[dtype]
    for shards, side in ours.items():
        assert side.first["params"] == peer.first["params"], f"{row}: {side.first} and PyTorch's {peer.first}"
        loss, wanted = side.ask("run 1")["loss"][0], peer.ask(f"loss {shards}")["loss"]
        assert abs(loss - wanted) < limit, f"{row}, {shards} shards: first loss {loss}, PyTorch's {wanted}"


def measure(row, model, batch, threads, shards, dtype, turns, folder):
    sides, refused = start(model, dtype, batch, threads, shards, folder)
    if refused:
        print(f"{row:8} {dtype:4}: left out: {refused}", flush=True)
        return []
    ours, peer = sides
    check(f"{row} {dtype}", dtype, ours, peer)
    everyone = [*ours.values(), peer]
    for side in everyone:
        side.choose_steps()
    times = [[side.turn() for side in everyone] for _ in range(turns)]
    planned = [side.ask(f"memory {v}") for v, side in ours.items()]
    peer_peak = peer.ask("memory 1")["peak_bytes"]
    for side in everyone:
        side.end()
    medians = [statistics.median(column) for column in zip(*times)]
    best = [min(column) for column in zip(*times)]
    peer_ms = medians[-1]
    cpu = [round(statistics.median(side.cpu), 4) if threads == 1 else None for side in everyone]
    rows = []
    for v, ms, best_ms, cpu_ms, memory in zip(shards, medians, best, cpu, planned):
        planned_bytes = memory["arena_bytes"] + memory["gradient_bytes"]
        gflops = 3 * 2 * MACS[model] * batch / best_ms / 1e6
        rows.append({
            "row": row, "model": model, "dtype": dtype, "threads": threads, "shards": v, "batch": batch,
            "ours_ms": round(ms, 4), "peer_ms": round(peer_ms, 4), "ratio": round(peer_ms / ms, 3),
            "ours_best_ms": round(best_ms, 4), "peer_best_ms": round(best[-1], 4), "best_ratio": round(best[-1] / best_ms, 3),
            "ours_cpu_ms": cpu_ms, "peer_cpu_ms": cpu[-1], "cpu_ratio": cpu_ms and round(cpu[-1] / cpu_ms, 3),
            "price": round(best_ms / best[0], 3), "gflops": round(gflops, 1),
            "arena_bytes": memory["arena_bytes"], "gradient_bytes": memory["gradient_bytes"], "peer_peak_bytes": peer_peak,
            "memory_ratio": round(planned_bytes / peer_peak, 3),
        })
    return rows


def peak(threads):
    done = subprocess.run([OURS, "peak", str(threads)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["gflops"]


def show(rows, peaks):
    for r in rows:
        share = 100 * r["gflops"] / peaks[r["threads"]]
        print(f"{r['row']:8} {r['dtype']:4} {r['batch']:5} {r['threads']:7} {r['shards']:6} {r['ours_ms']:9.3f} "
              f"{r['peer_ms']:9.3f} {r['ratio']:6.2f} {r['ours_best_ms']:9.3f} {r['peer_best_ms']:9.3f} {r['best_ratio']:6.2f} {r['cpu_ratio'] or '-':>6} {r['price']:6.2f} {r['gflops']:8.1f} {share:5.0f} %  {r['memory_ratio']:6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="turns of each side (7)")
    parser.add_argument("--only", help="rows whose names begin with this")
    parser.add_argument("--threads", type=int, choices=(1, 2), help="rows of so many threads")
    parser.add_argument("--dtype", choices=("f32", "bf16"), help="rows of this dtype")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides compute (cpu)")
    parser.add_argument("--steps", type=int, help="with cuda: steps of a turn, in place of what the row has")
    options = parser.parse_args()
    if options.device == "cuda":
        import gpu

        return gpu.compare(options)
    import torch

    chosen = [row for row in ROWS if row[0].startswith(options.only or "") and options.threads in (None, row[3])]
    if not chosen:
        raise SystemExit(f"no such row; there are {', '.join(dict.fromkeys(r[0] for r in ROWS))}")
    peaks = {threads: peak(threads) for threads in (1, 2)}
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, "
          f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}); "
          f"peak {peaks[1]:.0f} GFLOP/s with 1 thread, {peaks[2]:.0f} with 2")
    print("row      type batch threads shards   ours ms  torch ms  ratio best ours  b. torch  ratio    CPU  price  GFLOP/s  of peak  memory")
    found = []
    for dtype in (options.dtype,) if options.dtype else ("f32", "bf16"):
        for name, model, batch, threads, shards in chosen:
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(name, model, batch, threads, shards, dtype, options.turns, pathlib.Path(folder))
            show(rows, peaks)
            found += rows
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if options.json:
        print(json.dumps({"rows": found}))


if __name__ == "__main__":
    main()
