"""The same faults under torchrun and under `elastic run`, with the same unchanged script, side by side.

Each node is a process of its own on this machine (a torchrun, or an elastic agent). A fault is made with a real
signal; what counts is whether rank 0 of a new generation says that it begins, and after how long.
Prints a table in Markdown. Usage: measure.py ELASTIC_BINARY [SCENARIO ...]
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ELASTIC = os.path.abspath(sys.argv[1])
HERE = pathlib.Path(__file__).resolve().parents[2]
TORCH = HERE / "examples" / "torch"
PYTHON = sys.executable
TORCHRUN = [PYTHON, "-m", "torch.distributed.run"]
# A start of a PyTorch process takes seconds; what has not gone on after this does not.
PATIENCE = float(os.environ.get("PATIENCE", "75"))
STEPS, PAUSE = "100000", "0.05"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def family(pid):
    """All descendants of a process."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        out = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout.split()
        found += [int(p) for p in out]
        todo += [int(p) for p in out]
    return found


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def kill(pids, number=signal.SIGKILL):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def workers(pids):
    """Those among them that run the script itself."""
    found = []
    for pid in pids:
        try:
            line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-u" in line[:3] and any(word.endswith(b".py") for word in line) and b"torch.distributed.run" not in line:
            found.append(pid)
    return found


class Run:
    """A job on some nodes, by one of the two launchers."""

    def __init__(self, folder, script, args, nnodes, restarts):
        self.folder, self.nnodes, self.restarts = folder, nnodes, restarts
        self.command = [str(TORCH / script), *args]
        self.nodes = {}
        self.start()

    def spawn(self, name, command, **more):
        log = open(self.folder / f"{name}.log", "ab")
        env = {**os.environ, "PYTHON_EXEC": PYTHON, "ELASTIC_COORDINATOR": ""}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=env, **more)

    def text(self):
        return "".join(p.read_text(errors="replace") for p in sorted(self.folder.glob("*.log")))

    def begins(self):
        """World sizes in which rank 0 has begun so far."""
        return [int(n) for n in re.findall(r"begins at step \d+ on (\d+) processes", self.text())]

    def wait_begin(self, count, world=None):
        """Seconds until so many generations have begun, the last one of `world` processes; None: they do not."""
        since = time.monotonic()
        while time.monotonic() - since < PATIENCE:
            begins = self.begins()
            if len(begins) >= count and (world is None or begins[-1] == world):
                return time.monotonic() - since
            time.sleep(0.05)
        return None

    def node_of_rank_0(self):
        for name, process in self.nodes.items():
            for pid in workers(family(process.pid)):
                env = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if b"RANK=0" in env:
                    return name
        raise SystemExit("rank 0 runs nowhere")

    def kill_node(self, name):
        process = self.nodes.pop(name)
        kill([process.pid, *family(process.pid)])
        process.wait()

    def end(self):
        left = []
        for process in self.all():
            left += family(process.pid)
            process.kill()
            process.wait()
        kill(left)


class Torchrun(Run):
    name = "torchrun"

    def start(self):
        self.port = free_port()

    def join(self, name):
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self.port}", "--rdzv-id", "bench"]
        timing = ["--rdzv-conf", "last_call_timeout=1"]
        logs = ["--log-dir", str(self.folder / "logs"), "-t", "3"]
        flags = ["--nnodes", self.nnodes, "--nproc-per-node", "1", "--max-restarts", str(self.restarts)]
        self.nodes[name] = self.spawn(name, [*TORCHRUN, *flags, *rendezvous, *timing, *logs, *self.command])

    def all(self):
        return list(self.nodes.values())

    def launcher(self):
        return next(iter(self.nodes.values()))

    def kept(self, word):
        return any(word in p.read_text(errors="replace") for p in (self.folder / "logs").rglob("std*.log"))


class Elastic(Run):
    name = "elastic run"

    def start(self):
        self.port, self.job = free_port(), None
        listen = ["--listen", f"127.0.0.1:{self.port}", "--store", "memory", "--data-dir", str(self.folder / "data")]
        self.coordinator = self.spawn("coordinator", [ELASTIC, "coordinator", "--allow-commands", *listen])

    def join(self, name):
        where = ["--coordinator", f"http://127.0.0.1:{self.port}"]
        state = ["--name", name, "--state-dir", str(self.folder / name)]
        self.nodes[name] = self.spawn(f"agent-{name}", [ELASTIC, "agent", "--allow-programs", *where, *state])
        if self.job is None:
            flags = ["--nnodes", self.nnodes, "--nproc-per-node", "1", "--max-restarts", str(self.restarts)]
            while subprocess.run([ELASTIC, "jobs", *where], capture_output=True).returncode:
                time.sleep(0.05)
            self.job = self.spawn("job", [ELASTIC, "run", *where, *flags, *self.command])

    def all(self):
        return [*self.nodes.values(), self.job, self.coordinator]

    def launcher(self):
        return self.job

    def kept(self, word):
        return any(word in p.read_text(errors="replace") for p in self.folder.glob("*/logs/*/*.log"))


def code(process, seconds=PATIENCE):
    try:
        returned = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "does not end"
    return str(returned) if returned >= 0 else f"signal {-returned}"


def said(seconds):
    return f"no, not within {PATIENCE:.0f} s" if seconds is None else f"yes, after {seconds:.1f} s"


def resume(kind, folder, nnodes, nodes, restarts=3):
    run = kind(folder, "resume.py", [str(folder / "checkpoint.pt"), STEPS, PAUSE], nnodes, restarts)
    for node in nodes:
        run.join(node)
    if run.wait_begin(1, len(nodes)) is None:
        raise RuntimeError(f"{kind.name} did not begin on {len(nodes)}:\n{run.text()[-2000:]}")
    time.sleep(2)
    return run


def joins(kind, folder):
    run = resume(kind, folder, "1:2", ["a"])
    run.join("b")
    seconds = run.wait_begin(2, 2)
    logs = "kept" if run.kept("on 1 processes") else "gone"
    codes = "" if seconds is not None else f"; ends with {code(run.launcher(), 5)}"
    return run, f"{said(seconds)}{codes}; log of the first generation {logs}"


def process_killed(kind, folder):
    run = resume(kind, folder, "2", ["a", "b"])
    victim = workers(family(run.nodes[next(n for n in run.nodes if n != run.node_of_rank_0())].pid))[0]
    kill([victim])
    return run, said(run.wait_begin(2, 2))


def node_killed(kind, folder):
    run = resume(kind, folder, "1:2", ["a", "b"])
    run.kill_node(next(n for n in run.nodes if n != run.node_of_rank_0()))
    return run, said(run.wait_begin(2, 1))


def first_node_killed(kind, folder):
    run = resume(kind, folder, "1:3", ["a", "b", "c"])
    run.kill_node(run.node_of_rank_0())
    return run, said(run.wait_begin(2, 2))


def exits(kind, folder):
    run = kind(folder, "record.py", ["7"], "2", 0)
    run.join("a")
    run.join("b")
    return run, f"exit code {code(run.launcher())}"


def raises(kind, folder):
    run = kind(folder, "record.py", [], "2", 0)
    run.join("a")
    run.join("b")
    ended = code(run.launcher())
    words = "the batch of step 5 makes no sense"
    tells = [line for line in run.text().splitlines() if words in line and "rank1]" not in line]
    return run, f"exit code {ended}; its last words name the cause: {'yes' if tells else 'no'}"


def terminated(kind, folder):
    run = resume(kind, folder, "1:1", ["a"])
    target = run.launcher() if kind is Torchrun else run.nodes["a"]
    those = workers(family(run.nodes["a"].pid))
    target.terminate()
    ended = code(target, 30)
    return run, f"exit code {ended}; processes left: {sum(map(alive, those))}"


def launcher_killed(kind, folder):
    run = resume(kind, folder, "1:1", ["a"])
    those = workers(family(run.nodes["a"].pid))
    run.nodes["a"].kill()
    time.sleep(5)
    left = sum(map(alive, those))
    kill(those)
    return run, f"processes left after 5 s: {left}"


SCENARIOS = {
    "a second node joins": joins,
    "SIGKILL of a process, 3 restarts allowed": process_killed,
    "SIGKILL of a node (2 nodes, `--nnodes 1:2`)": node_killed,
    "SIGKILL of the node of rank 0 (3 nodes, `--nnodes 1:3`)": first_node_killed,
    "a process exits with code 7, no restart": exits,
    "a process raises, no restart": raises,
    "SIGTERM to the launcher of a node": terminated,
    "SIGKILL of the launcher of a node": launcher_killed,
}


def measure(kind, scenario):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="elastic-bench-"))
    try:
        run, outcome = scenario(kind, folder)
        run.end()
    except RuntimeError as error:
        outcome = str(error).splitlines()[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{kind.name}: {scenario.__name__}: {outcome}", file=sys.stderr, flush=True)
    return outcome


def main():
    wanted = sys.argv[2:]
    print(f"Load at the beginning: {os.getloadavg()[0]:.1f}.\n")
    print("| | torchrun | elastic run |\n|---|---|---|")
    for words, scenario in SCENARIOS.items():
        if not wanted or scenario.__name__ in wanted:
            outcomes = [measure(kind, scenario) for kind in (Torchrun, Elastic)]
            print(f"| {words} | {outcomes[0]} | {outcomes[1]} |", flush=True)


if __name__ == "__main__":
    main()
