"""The comparison on a GPU: our step, captured, against PyTorch's eager and compiled ones, on one card in one run.

Each side has the card to itself, since several do not fit beside each other: our process for each number of shards,
PyTorch's ways, and at the end our first one again, whose ratio to its first time is the drift. A figure is the median of
a turn's steps, the least of some turns beside it. A step ends when its loss is known to the host, on both sides.

What PyTorch cannot do here (no torch, no compiler for its kernels) is left out with its reason; ours is measured all the
same. A ratio is PyTorch's time over ours: above 1 we are faster. Lines that begin with {"figure" are for machines.
"""

import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from side import HERE, LOSS_OFF_MAX, OURS, Side

# (model, dtype, batch, tokens of a sample, shards of ours, PyTorch's ways, steps of a turn)
ROWS = [
    ("digits", "f32", 32, 1, (1, 16), ("eager", "compile", "graphs"), 1000),
    ("digits", "bf16", 32, 1, (1, 16), ("eager", "compile", "graphs"), 1000),
    ("mlp", "bf16", 64, 1, (1, 16), ("eager", "compile", "graphs"), 500),
    ("gpt", "bf16", 8, 256, (1, 8), ("eager", "compile"), 50),
    ("gpt2", "bf16", 16, 1024, (1, 16), ("eager", "compile", "padded"), 20),
]
WARM_STEPS = 5
# (model, what, whether a figure reaches it)
GOALS = [
    ("digits", "a captured step under 40 us", lambda f: f["dtype"] == "f32" and f["ms"] < 0.04),
    ("gpt2", "0.8 of torch.compile", lambda f: f["ratios"].get("compile", 0) >= 0.8),
    ("gpt2", "1.1 of torch.compile", lambda f: f["ratios"].get("compile", 0) >= 1.1),
]
ABOUT_TORCH = """
import json, sys, torch
print(json.dumps({"python": sys.version.split()[0], "torch": torch.__version__, "torch_cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version(), "card": torch.cuda.get_device_name()}))
"""


def torch_versions():
    """PyTorch's, from a process of its own, which leaves no memory taken; or why there are none."""
    if importlib.util.find_spec("torch") is None:
        return None, "python3 has no torch"
    said = subprocess.run([sys.executable, "-c", ABOUT_TORCH], capture_output=True, text=True)
    if said.returncode:
        return None, (said.stderr.strip().splitlines() or ["torch ended without a word"])[-1]
    return json.loads(said.stdout), None


def timed(side, steps, turns):
    """The median step of each turn, in ms: the median of the turns, and the least of them."""
    side.ask(f"run {WARM_STEPS}")
    medians = [statistics.median(side.ask(f"run {steps}")["ms"]) for _ in range(turns)]
    return statistics.median(medians), min(medians)


class Row:
    """One model's sides, one after the other."""

    def __init__(self, row, options, folder):
        self.model, self.dtype, self.batch, self.tokens, self.shards, self.ways, self.steps = row
        self.steps = options.steps or self.steps
        self.turns = options.turns
        self.weights = folder / "weights.safetensors"

    def ours(self, shards):
        return Side([OURS, self.model, self.dtype, "1", str(shards), str(self.batch), "cuda"], 1)

    def measure_ours(self, shards):
        side = self.ours(shards)
        if "unsupported" in side.first:
            side.end()
            return {"left_out": side.first["unsupported"]}
        if not self.weights.exists():
            side.ask(f"export {self.weights}")
        loss = side.ask("run 1")["loss"][0]
        ms, best = timed(side, self.steps, self.turns)
        memory = side.ask(f"memory {shards}")
        side.end()
        return {"ms": ms, "best_ms": best, "loss": loss, "params": side.first["params"], **memory}

    def measure_torch(self, way, ours):
        command = [sys.executable, str(HERE / "peer.py"), self.model, self.dtype, "1", str(self.batch), str(self.weights), "cuda", way]
        try:
            side = Side(command, 4)
            assert side.first["params"] == ours["params"], f"PyTorch's model has {side.first['params']} parameters, not {ours['params']}"
            loss = side.ask("loss 1")["loss"]
            off = abs(loss - ours["loss"])
            assert off < LOSS_OFF_MAX[self.dtype], f"{self.model}: first loss {ours['loss']}, PyTorch's {loss}"
            ms, best = timed(side, self.steps, self.turns)
            peak = side.ask("memory 1")["peak_bytes"]
            side.end()
        except SystemExit as error:
            return {"left_out": str(error)}
        return {"ms": ms, "best_ms": best, "peak_bytes": peak}

    def measure(self, why_no_torch):
        ours = {shards: self.measure_ours(shards) for shards in self.shards}
        first = ours[self.shards[0]]
        if "left_out" in first:
            print(f"{self.model} {self.dtype}: left out: {first['left_out']}", flush=True)
            return []
        there = {way: {"left_out": why_no_torch} if why_no_torch else self.measure_torch(way, first) for way in self.ways}
        again = self.measure_ours(self.shards[0])["ms"]
        found = []
        for shards, side in ours.items():
            torch = {way: peer["ms"] for way, peer in there.items() if "ms" in peer}
            found.append({
                "figure": "step", "model": self.model, "dtype": self.dtype, "batch": self.batch, "shards": shards,
                "ms": round(side["ms"], 5), "best_ms": round(side["best_ms"], 5), "steps": self.steps,
                "tokens_per_s": round(self.batch * self.tokens / side["ms"] * 1e3) if self.tokens > 1 else None,
                "price": round(side["ms"] / first["ms"], 3), "drift": round(again / first["ms"], 3),
                "torch_ms": {way: round(ms, 5) for way, ms in torch.items()},
                "ratios": {way: round(ms / side["ms"], 3) for way, ms in torch.items()},
                "left_out": {way: peer["left_out"] for way, peer in there.items() if "left_out" in peer},
                "device_bytes": side["device_bytes"], "launches": side["launches"],
                "torch_peak_bytes": {way: peer["peak_bytes"] for way, peer in there.items() if "ms" in peer},
            })
        return found


def show(figure, tokens):
    rate = lambda ms: f", {figure['batch'] * tokens / ms * 1e3:,.0f} tokens/s" if tokens > 1 else ""
    name = f"{figure['model']} {figure['dtype']}, batch {figure['batch']}, {figure['shards']} shards"
    print(f"{name}: {figure['ms'] * 1e3:,.1f} us{rate(figure['ms'])}; {figure['price']:.2f} of the first row's time; {figure['launches']} kernels; drift {figure['drift']:.2f}")
    for way, ms in figure["torch_ms"].items():
        print(f"    torch {way}: {ms * 1e3:,.1f} us{rate(ms)}; ratio {figure['ratios'][way]:.2f}")
    for way, why in figure["left_out"].items():
        print(f"    torch {way}: left out: {why}")
    for model, goal, is_reached in GOALS:
        if model == figure["model"]:
            print(f"    goal: {goal}: {'reached' if is_reached(figure) else 'not reached'}")
    sys.stdout.flush()


def compare(options):
    chosen = [row for row in ROWS if options.only in (None, row[0]) and options.dtype in (None, row[1])]
    if not chosen:
        raise SystemExit(f"no such row; there are {', '.join(dict.fromkeys(row[0] for row in ROWS))}")
    versions, why_no_torch = torch_versions()
    print(json.dumps(versions) if versions else f"PyTorch is left out: {why_no_torch}", flush=True)
    for row in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found = Row(row, options, pathlib.Path(folder)).measure(why_no_torch)
        for figure in found:
            show(figure, row[3])
            print(json.dumps({**figure, **(versions or {})}), flush=True)
