"""Measures torchrun on the digits toy, two agents of one worker each, as two nodes would run it:

1. start of the agents to the first step;
2. SIGKILL of one worker with torchrun's defaults (--max-restarts 0): does training go on, and after how long;
3. the same with --max-restarts 3, the setting that its documentation shows for fault tolerance;
4. the same with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 besides, without which a surviving rank 0 does not publish its
   address again in torch 2.15 and the new workers wait for it.

The stall is what `cargo xtask bench stall` measures for elastic: (first step after the fault - fault) - median step,
at the worst survivor; for torchrun every process is new after a fault, so it is taken over all of them. Steps that
were done before the fault and are done again after it are counted as discarded.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent.parent / "examples" / "digits" / "digits.csv.gz"
LONG = 10_000_000
POLL_S = 0.005


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_trace(folder):
    """(time, step, rank, pid) in order of time."""
    rows = []
    for file in folder.glob("trace.*"):
        for line in file.read_text().splitlines():
            parts = line.split()
            if len(parts) == 4:
                rows.append((float(parts[0]), int(parts[1]), int(parts[2]), int(parts[3])))
    return sorted(rows)


@dataclasses.dataclass
class Setting:
    name: str
    arguments: list
    environment: dict


RESTARTS = ["--max-restarts", "3"]
SETTINGS = [
    Setting("defaults", [], {}),
    Setting("--max-restarts 3", RESTARTS, {}),
    Setting("--max-restarts 3, store not shared", RESTARTS, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}),
]


class Job:
    """Two agents on this machine, in a folder of their own."""

    def __init__(self, folder, data, setting):
        self.folder = folder
        environment = dict(os.environ, **setting.environment, TOY_STEPS=str(LONG), TOY_DATA=str(data), OMP_NUM_THREADS="1",
                           TOY_SNAPSHOT=str(folder / "snapshot.pt"), TOY_TRACE=str(folder / "trace"))
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                   "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}",
                   "--rdzv-id", "toy", *setting.arguments, str(HERE / "toy.py")]
        self.start = time.time()
        self.agents = [subprocess.Popen(command, env=environment, start_new_session=True,
                                        stdout=open(folder / f"agent{i}.log", "w"), stderr=subprocess.STDOUT)
                       for i in range(2)]

    def wait_for(self, found, limit_s):
        """Polls `found(trace)` until it is true, the agents are gone, or the time is up."""
        until = time.time() + limit_s
        while time.time() < until:
            trace = read_trace(self.folder)
            if found(trace):
                return trace
            if all(agent.poll() is not None for agent in self.agents):
                return None
            time.sleep(POLL_S)
        return None

    def end(self):
        """Kills the agents and, as torchrun gives workers sessions of their own, every process that has our trace."""
        mine = f"TOY_TRACE={self.folder / 'trace'}".encode()
        pids = {agent.pid for agent in self.agents}
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mine in (entry / "environ").read_bytes().split(b"\0"):
                    pids.add(int(entry.name))
            except OSError:
                continue
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for agent in self.agents:
            agent.wait()


def start_to_first_step(data):
    with tempfile.TemporaryDirectory() as folder:
        job = Job(pathlib.Path(folder), data, SETTINGS[0])
        trace = job.wait_for(lambda rows: rows, 120)
        job.end()
        return trace[0][0] - job.start if trace else None


def kill_one(data, setting, seed, limit_s):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        job = Job(folder, data, setting)
        target = 130 + random.Random(seed).randrange(60)
        if job.wait_for(lambda rows: rows and rows[-1][1] >= target, 180) is None:
            job.end()
            raise SystemExit("the toy did not start: " + (folder / "agent0.log").read_text()[-2000:])
        before = read_trace(folder)
        victim = random.Random(seed).choice(sorted({row[3] for row in before}))
        fault = time.time()
        os.kill(victim, signal.SIGKILL)
        done = max(row[1] for row in read_trace(folder))
        is_new = lambda rows: len({r[2] for r in rows if r[0] > fault + 0.001 and r[1] > done}) == 2
        trace = job.wait_for(is_new, limit_s)
        steps = [row for row in before if row[2] == 0]
        median_s = statistics.median(b[0] - a[0] for a, b in zip(steps, steps[1:]))
        rank = next(row[2] for row in before if row[3] == victim)
        result = {"killed_rank": rank, "goes_on": trace is not None, "median_step_ms": median_s * 1e3}
        if trace is not None:
            known = {row[3] for row in before}
            # A surviving process may finish the step that it was in; training goes on with the new ones.
            again = [row for row in trace if row[0] > fault and row[3] not in known]
            first = {rank: min(row[0] for row in again if row[2] == rank) for rank in (0, 1)}
            result["stall_ms"] = (max(first.values()) - fault - median_s) * 1e3
            result["discarded_steps"] = done + 1 - min(row[1] for row in again)
        else:
            result["waited_s"] = time.time() - fault
            result["agents_ended"] = [agent.poll() for agent in job.agents]
        job.end()
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=DATA)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--kills", type=int, default=5, help="kills for each setting")
    parser.add_argument("--limit-s", type=float, default=120, help="how long to wait for training to go on")
    options = parser.parse_args()
    import torch

    say = lambda **row: print(json.dumps(row), flush=True)
    say(torch=torch.__version__, machine=platform.machine(), cores=os.cpu_count(), load=os.getloadavg()[0])
    starts = [start_to_first_step(options.data) for _ in range(options.starts)]
    say(measured="start to first step, s", each=[round(s, 2) for s in starts], median=round(statistics.median(starts), 2))
    for setting in SETTINGS:
        name = setting.name
        kills = [kill_one(options.data, setting, seed, options.limit_s) for seed in range(options.kills)]
        for kill in kills:
            say(setting=name, **{k: round(v, 1) if isinstance(v, float) else v for k, v in kill.items()})
        went_on = sorted(kill["stall_ms"] for kill in kills if kill["goes_on"])
        say(setting=name, kills=len(kills), went_on=len(went_on),
            stall_ms_median=round(statistics.median(went_on)) if went_on else None,
            stall_ms_max=round(went_on[-1]) if went_on else None)


if __name__ == "__main__":
    main()
