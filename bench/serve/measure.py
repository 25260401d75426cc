#!/usr/bin/env python3
"""`elastic serve` beside Triton (as nvidia-pytriton brings it) and FastAPI with torch, in one run, in turn.

Server and load have a core each. The load is ours and the same for all (load/); it checks every answer against
numbers that torch computed here from the weights that we exported. Models: `echo`, 16 numbers back as they came (ours is
a bundle whose one layer is the identity; Triton's and FastAPI's hand their input back), and the networks of
examples/digits and examples/cnn, trained here for an epoch.

Closed loop: 1, 8 and 32 connections that each ask again when they have their answer. The best rate of the three is the
server's capacity. Open loop: requests at random times at 80 and 120 % of that, times counted from when a request should
have gone out; at most 256 at once, what finds none of them free is turned away, as a proxy in front would do it.

`swap`: ours at half of its capacity, in turn undisturbed and with a new version in the middle; also `wide`, a larger mlp.

A figure is the median over turns, those of open loops over their parts too; a ratio is that of two medians. Triton's models are Python functions, which is what
pytriton offers: its own backends in C++ are not in that wheel.
"""

import argparse
import csv
import gzip
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ELASTIC, LOAD = os.environ["ELASTIC_BIN"], os.environ["ELASTIC_LOAD_BIN"]
SERVER_CORE, LOAD_CORE = "0", "1"
CALM = False
CONNECTIONS = (1, 8, 32)
OPEN_CONNECTIONS = 256
MANY_CONNECTIONS = 960
# A delay gives a model its own thread.
QUEUE = ["--queue", "64", "--batch-delay-us", "1"]
WIDTHS = {"echo": 16, "mlp": 64, "cnn": 64, "wide": 64}
EXAMPLES = {"mlp": "digits", "cnn": "cnn", "wide": "digits"}
# 1.7 million parameters: it has a thread that computes, and loading it takes 50 ms.
SETS = {"wide": ["--set", "model.hidden=[1536, 1024]"]}
# Its changes of versions alone are measured, in longer runs.
SWAPPED = {"wide": 2}
TOLERANCE = 1e-4
# Open loops are cut into so many, of which medians are taken: a stall of the machine shows in one.
PARTS = 3
# A stall of the machine is as long as a change of versions: many are seen.
SWAPS = 25
ROWS = 64


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def said(*command):
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Calm:
    """While it lasts, every other process, and the kernel's own work on memory, has the time that server and load leave
    (SCHED_IDLE), and with `aside` none of it on the server's core. Needs root, and Linux."""

    MEMORY = ("kdamond", "kcompactd", "khugepaged", "kswapd")

    def __init__(self, aside=False):
        self.aside, self.cores, self.policies = aside, {}, {}

    def __enter__(self):
        for tid, policy in self.tasks():
            try:
                os.sched_setscheduler(tid, os.SCHED_IDLE, os.sched_param(0))
                self.policies[tid] = policy
                if self.aside and tid != os.getpid():
                    cores = os.sched_getaffinity(tid)
                    os.sched_setaffinity(tid, {int(LOAD_CORE)})
                    self.cores[tid] = cores
            except OSError:
                continue

    def __exit__(self, *_):
        # Their children too, which began as they were.
        for tid, _ in self.tasks():
            try:
                os.sched_setscheduler(tid, self.policies.get(tid, os.SCHED_OTHER), os.sched_param(0))
                if self.aside and os.sched_getaffinity(tid) == {int(LOAD_CORE)}:
                    os.sched_setaffinity(tid, self.cores.get(tid, range(os.cpu_count())))
            except OSError:
                continue

    def tasks(self):
        for task in pathlib.Path("/proc").glob("[0-9]*/task/*") if CALM else ():
            try:
                policy = os.sched_getscheduler(int(task.name))
                is_usual = policy & ~os.SCHED_RESET_ON_FORK in (os.SCHED_OTHER, os.SCHED_IDLE)
                if is_usual and ((task / "comm").read_text().startswith(self.MEMORY) or (task / "cmdline").read_bytes()):
                    yield int(task.name), policy
            except OSError:
                continue


def first():
    """In a child: before all others, where the machine is calmed."""
    if CALM:
        os.sched_setaffinity(0, range(os.cpu_count()))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        # A session's, which Linux weighs before that of its processes.
        pathlib.Path("/proc/self/autogroup").write_text("-20")


class Model:
    """Rows, what is answered to them, and where the files are."""

    def __init__(self, name, folder, epochs):
        import torch

        import peer_models

        self.name, self.width = name, WIDTHS[name]
        self.registry, self.weights = folder / name / "registry", None
        bundle = self.registry / name / "1"
        bundle.parent.mkdir(parents=True)
        if name == "echo":
            subprocess.run([LOAD, "echo", bundle, str(self.width)], check=True)
            draw = random.Random(7)
            self.rows = [[f32(draw.uniform(-10, 10)) for _ in range(self.width)] for _ in range(ROWS)]
        else:
            job = ROOT / "examples" / EXAMPLES[name] / "job.toml"
            result = said(ELASTIC, "submit", job, "--local", "--json", "--runs", folder / name / "runs", "--set", f"train.epochs={epochs}",
                          *SETS.get(name, ()))
            said(ELASTIC, "export", result["run_dir"], "--out", bundle, "--json")
            out = folder / name / "weights"
            said(ELASTIC, "export", result["run_dir"], "--out", out, "--format", "safetensors", "--json")
            self.weights = out / "model.safetensors"
            with gzip.open(ROOT / "examples" / "digits" / "digits.csv.gz", "rt") as file:
                lines = [line for line, _ in zip(csv.reader(file), range(ROWS))]
            self.rows = [[float(x) for x in line[: self.width]] for line in lines]
        answer = peer_models.load(name, self.weights)
        self.expected = answer(torch.tensor(self.rows)).tolist()


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


class Server:
    """A process on the server's core."""

    def __init__(self, who, model, options=()):
        self.port = free_port()
        python = [sys.executable, HERE / f"{who}_app.py", model.name, model.width, self.port]
        ours = [ELASTIC, "serve", model.registry, "--http", f":{self.port}", "--grpc", "off", "--threads", "1", "--io-threads", "1", *options]
        command = ours if who == "elastic" else [*python, *([model.weights] if model.weights else [])]
        self.path = "/predict" if who == "fastapi" else f"/v2/models/{model.name}/infer"
        ready = "/ready" if who == "fastapi" else f"/v2/models/{model.name}/ready"
        self.log = tempfile.TemporaryFile()
        pinned = ["taskset", "-c", SERVER_CORE, *(str(word) for word in command)]
        self.process = subprocess.Popen(pinned, stdout=self.log, stderr=self.log, start_new_session=True, preexec_fn=first)
        until = time.time() + 60
        while not self.answers(ready):
            if self.process.poll() is not None or time.time() > until:
                self.end()
                self.log.seek(0)
                raise SystemExit(f"{who} does not start: {self.log.read().decode()[-3000:]}")
            time.sleep(0.1)

    def answers(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def end(self):
        """The whole session: Triton's processes are its own children."""
        for name in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, name)
                self.process.wait(10)
                break
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                break
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def load(self, model, way, runs, meanwhile=lambda: None):
        plan = {"address": f"127.0.0.1:{self.port}", "path": self.path, "way": way, "rows": model.rows,
                "expected": model.expected, "tolerance": TOLERANCE, "runs": runs}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(plan, file)
            file.flush()
            command = ["taskset", "-c", LOAD_CORE, LOAD, "run", file.name]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=first)
            meanwhile()
            out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the load ended with {process.returncode}")
        found = {figures["name"]: figures for figures in map(json.loads, out.splitlines())}
        for name, figures in found.items():
            if figures["wrong"]:
                raise SystemExit(f"{model.name} {name}: {figures['wrong']} answers have other numbers than torch's")
        return found


def closed(name, connections, seconds):
    return {"name": name, "shape": "closed", "warm_s": 0.3 * seconds, "seconds": seconds, "connections": connections}


def opened(name, rate, seconds, seed, connections=OPEN_CONNECTIONS):
    return {"name": name, "shape": {"open": {"rate": rate, "seed": seed}}, "warm_s": 0.3 * seconds, "seconds": seconds,
            "connections": connections}


def measure(who, model, seconds, turn):
    """All runs of one server with one model."""
    server = Server(who, model)
    way = "plain" if who == "fastapi" else "v2"
    try:
        found = server.load(model, way, [closed(f"closed {n}", n, seconds) for n in CONNECTIONS])
        capacity = max(figures["per_s"] for figures in found.values())
        parts = []
        for part in range(PARTS):
            runs = [opened(f"open {share}", capacity * share / 100, seconds * 0.6, turn * PARTS + part) for share in (80, 120)]
            parts.append(server.load(model, way, runs))
        found |= median(parts)
        if way == "v2" and model.name != "echo":
            found |= server.load(model, "v2-binary", [closed(f"binary {n}", n, seconds * 0.75) for n in (1, 32)])
    finally:
        server.end()
    found["capacity"] = {"per_s": capacity}
    found["goodput"] = {"share": found["open 120"]["per_s"] / capacity}
    return found


def many(model, seconds, turn):
    """Ours with more than it can do and nobody in front of it."""
    out = {}
    for name, options in {"many": [], "queue": QUEUE}.items():
        server = Server("elastic", model, options)
        try:
            most = server.load(model, "v2", [closed("closed 32", 32, seconds), closed(f"{name} closed", MANY_CONNECTIONS, seconds)])
            capacity = most["closed 32"]["per_s"]
            parts = []
            for part in range(PARTS):
                run = opened(name, capacity * 1.5, seconds * 0.6, turn * PARTS + part, MANY_CONNECTIONS)
                parts.append(server.load(model, "v2", [run]))
        finally:
            server.end()
        out |= median(parts)
        out[f"{name} closed"] = most[f"{name} closed"]
        out[f"{name} capacity"] = {"per_s": capacity}
        out[f"{name} share"] = {"share": out[name]["per_s"] / capacity}
    return out


def swap(model, seconds, turn):
    """Ours at half of its capacity, in turn undisturbed and with a new version in the middle."""
    server = Server("elastic", model, ["--poll-ms", "50"])
    home = model.registry / model.name
    ahead = home / ".next"

    def publish():
        time.sleep(0.6 * seconds)
        ahead.rename(home / str(newest))

    def answers():
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v2/models/{model.name}", timeout=2) as answer:
            return json.load(answer)["versions"]

    try:
        capacity = server.load(model, "v2", [closed("closed 32", 32, seconds)])["closed 32"]["per_s"]
        parts = []
        for newest in range(2, SWAPS + 2):
            seed = turn * SWAPS + newest
            # Who copies a version is not on the server's core: it lies there already.
            shutil.copytree(home / "1", ahead)
            os.sync()
            still = server.load(model, "v2", [opened("still", capacity / 2, seconds, seed)])
            swaps = server.load(model, "v2", [opened("swaps", capacity / 2, seconds, seed)], publish)
            assert answers() == [str(newest)], "the newest version answers alone before the run is over"
            parts.append(still | swaps)
    finally:
        server.end()
    for version in [path for path in home.iterdir() if path.name != "1"]:
        shutil.rmtree(version)
    pairs = [[round(part[run]["p99_us"]) for run in ("still", "swaps")] for part in parts]
    print(f"{model.name}: p99 without and with a new version, in us: {pairs}", flush=True)
    return median(parts)


def median(turns):
    """Of each figure over the turns of one server and model; of counts the sum."""
    out = {}
    for run in turns[0]:
        out[run] = {}
        for key, first in turns[0][run].items():
            values = [turn[run][key] for turn in turns]
            if key in ("failed", "wrong", "turned_away", "answered"):
                out[run][key] = sum(values)
            elif key == "refused":
                out[run][key] = {code: sum(v.get(code, 0) for v in values) for code in sorted({c for v in values for c in v})}
            elif key == "halves_p99_us":
                out[run][key] = [statistics.median(column) for column in zip(*values)]
            elif isinstance(first, (int, float)):
                out[run][key] = statistics.median(values)
    return out


def show(results, peers):
    print("model  server    load        answers/s     p50 us    p90 us    p99 us  p99.9 us    max us   refused turned away  failed")
    for (model, who), runs in results.items():
        for name, f in runs.items():
            if "p50_us" in f:
                print(f"{model:6} {who:9} {name:10} {f['per_s']:10.0f} {f['p50_us']:10.0f} {f['p90_us']:9.0f} {f['p99_us']:9.0f} {f['p999_us']:9.0f} "
                      f"{f['max_us']:9.0f} {sum(f['refused'].values()):9} {f['turned_away']:11} {f['failed']:7}")
    print()
    for model in dict.fromkeys(model for model, _ in results):
        ours = results.get((model, "elastic"))
        if not ours or "capacity" not in ours:
            continue
        for peer in peers:
            theirs = results.get((model, peer))
            if theirs:
                ratios = {name: ours[name]["per_s"] / theirs[name]["per_s"] for name in ours if name in theirs and ours[name].get("per_s") and not name.startswith("open")}
                print(f"{model}: times {peer}'s answers a second: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
        for who in ("elastic", *peers):
            if (model, who) in results:
                runs = results[model, who]
                halves = runs["open 120"]["halves_p99_us"]
                print(f"{model}: {who} at 120 %: goodput {100 * runs['goodput']['share']:.0f} % of its capacity, p99 of the first half {halves[0]:.0f} us, of the second {halves[1]:.0f} us")
    for (model, who), runs in results.items():
        for name in ("many", "queue"):
            if name in runs:
                found = runs[name]
                refused = sum(found["refused"].values())
                print(f"{model}: {name}: at 150 % with up to {MANY_CONNECTIONS} at once: goodput {100 * runs[f'{name} share']['share']:.0f} % of the capacity, p50 {found['p50_us']:.0f} us, "
                      f"{100 * found['per_s'] / runs[f'{name} closed']['per_s']:.0f} % of a closed loop's with as many, "
                      f"p99 {found['p99_us']:.0f} us, {refused} refused ({found['refused']}) and {found['turned_away']} turned away of {refused + found['turned_away'] + found['answered']}")
        if "swaps" in runs:
            still, swaps = runs["still"], runs["swaps"]
            lost = swaps["failed"] + sum(swaps["refused"].values())
            print(f"{model}: a version changes: p99 {still['p99_us']:.0f} us still, {swaps['p99_us']:.0f} us with them, "
                  f"{swaps['p99_us'] / still['p99_us']:.2f} times; {lost} of {swaps['answered'] + lost} requests failed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2, help="turns of each server (2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a closed loop; others in proportion (2)")
    parser.add_argument("--models", default="echo,mlp,cnn,wide", help="some of echo, mlp, cnn, wide")
    parser.add_argument("--servers", default="elastic,triton,fastapi", help="some of elastic, triton, fastapi")
    parser.add_argument("--parts", default="closed,many,swap", help="some of closed (with the open loops), many, swap")
    parser.add_argument("--calm", action="store_true", help="everything else on the machine runs only when server and load leave it time; needs root")
    parser.add_argument("--epochs", type=int, default=1, help="that the models are trained for (1)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    # So that a run that is ended ends its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    servers = options.servers.split(",")
    global CALM
    CALM = options.calm
    turns = {}
    with tempfile.TemporaryDirectory() as folder:
        models = [Model(name, pathlib.Path(folder), options.epochs) for name in options.models.split(",")]
        machine = pathlib.Path("/proc/cpuinfo").read_text().split("model name\t: ")[-1].split("\n")[0]
        print(f"{machine}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}", flush=True)
        whole = [model for model in models if model.name not in SWAPPED]
        for turn in range(options.turns):
            with Calm():
                for model in whole:
                    for who in servers if "closed" in options.parts else ():
                        turns.setdefault((model.name, who), []).append(measure(who, model, options.seconds, turn))
                if "elastic" in servers and "many" in options.parts:
                    for model in whole:
                        turns.setdefault((model.name, "elastic+many"), []).append(many(model, options.seconds, turn))
            if "elastic" in servers and "swap" in options.parts:
                with Calm(aside=True):
                    for model in models:
                        turns.setdefault((model.name, "elastic+swap"), []).append(swap(model, options.seconds * 0.4 * SWAPPED.get(model.name, 1), turn))
    results = {key: median(found) for key, found in turns.items()}
    show(results, [who for who in servers if who != "elastic"])
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if options.json:
        rows = [{"model": model, "server": who, "runs": runs} for (model, who), runs in results.items()]
        pathlib.Path(options.json).write_text(json.dumps({"rows": rows, "turns": options.turns, "seconds": options.seconds}, indent=1) + "\n")
    lost = sum(run.get("failed", 0) + run.get("wrong", 0) for (_, who), runs in results.items() if who.startswith("elastic") for run in runs.values())
    if lost:
        raise SystemExit(f"{lost} requests to ours came to nothing or were answered wrong")


if __name__ == "__main__":
    main()
