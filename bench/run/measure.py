"""The same faults under torchrun and under `elastic run`, with the same four unchanged scripts, side by side.

Each node is a process of its own on this machine (a torchrun, or an elastic agent), and a fault is the same real signal to
the same thing under both. What counts is whether rank 0 of a new generation says that it is under way, after how long, and
what the job ends with. Prints tables in Markdown on stdout, and how far it is on stderr.

    measure.py ELASTIC_BINARY [--into FILE.md] [FAULT|SCRIPT|ENDING ...]

--into replaces what stands between the two marks in that file. Words choose rows (kill-process, kill-agent,
kill-first-node, add-node, drain, terminate; exits, raises, launcher-killed) and columns (resume.py, …).
PATIENCE (75 s) bounds each wait, LIMIT (3600 s) all of it: what did not get its turn says so.
"""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parents[2]
TORCH = HERE / "examples" / "torch"
PYTHON = sys.executable
TORCHRUN = [PYTHON, "-m", "torch.distributed.run"]
# A start of a PyTorch process takes seconds; what has not gone on after this does not.
PATIENCE = float(os.environ.get("PATIENCE", "75"))
LIMIT = float(os.environ.get("LIMIT", "3600"))
# Failures after which both begin anew.
RESTARTS = "1"
MARKS = ("<!-- bench/run -->", "<!-- /bench/run -->")


class Script:
    """Arguments by which it lasts for some seconds behind its start, and what it says on its way."""

    def __init__(self, args, begins, under_way, world=None):
        self.args, self.begins, self.under_way, self.world = args, re.compile(begins), under_way, world


SCRIPTS = {
    "minimal.py": Script(["80", "0.1"], r"step 0 of", "step 10 of", "on 2 processes"),
    "loader.py": Script(["8", "0.05"], r"epoch 0:", "epoch 0:"),
    "resume.py": Script(["checkpoint.pt", "80", "0.1"], r"begins at step", "step 10 of", "on 2 processes"),
    # Its rank 1, where there is one, ends with code 7 at step 60, in every generation.
    "record.py": Script(["7", "60", "0.1"], r"step 0 of", "step 10 of", "on 2 processes"),
}


# ---- processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stat(pid):
    """State and parent; None: it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()
        return fields[0], int(fields[1])
    except (OSError, IndexError):
        return None


def alive(pid):
    found = stat(pid)
    return found is not None and found[0] != "Z"


def family(*roots):
    """All living descendants."""
    parents = {int(p.name): stat(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()}
    found, todo = [], list(roots)
    while todo:
        parent = todo.pop()
        children = [pid for pid, known in parents.items() if known and known[0] != "Z" and known[1] == parent]
        found += children
        todo += children
    return found


def kill(pids, number=signal.SIGKILL):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def words_of(pid, what):
    try:
        return pathlib.Path(f"/proc/{pid}/{what}").read_bytes().split(b"\0")
    except OSError:
        return []


def workers(pids):
    """Those among them that the launcher started to run the script; not their data loaders."""

    def runs_script(pid):
        line = words_of(pid, "cmdline")
        return b"-u" in line[:3] and any(word.endswith(b".py") for word in line) and b"torch.distributed.run" not in line

    found = {pid for pid in pids if runs_script(pid)}
    return [pid for pid in found if (stat(pid) or ("", 0))[1] not in found]


def world_of(pids):
    return {int(w.split(b"=")[1]) for pid in workers(pids) for w in words_of(pid, "environ") if w.startswith(b"WORLD_SIZE=")}


# ---- jobs


class Run:
    """A job on some nodes, by one of the two launchers."""

    def __init__(self, folder, script, args):
        self.folder, self.script, self.args, self.restarts = folder, script, args, RESTARTS
        self.nodes, self.others = {}, []

    def command(self):
        return [str(TORCH / self.script), *self.args]

    def spawn(self, name, command):
        log = open(self.folder / f"{name}.log", "ab")
        env = {**os.environ, "PYTHON_EXEC": PYTHON, "ELASTIC_COORDINATOR": ""}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=env)

    def text(self):
        return "".join(p.read_text(errors="replace") for p in sorted(self.folder.glob("*.log")))

    def all(self):
        return [*self.nodes.values(), *self.others]

    def pids(self):
        return family(*(process.pid for process in self.all()))

    def node_of_rank_0(self):
        for name, process in self.nodes.items():
            if any(b"RANK=0" in words_of(pid, "environ") for pid in workers(family(process.pid))):
                return name
        raise RuntimeError("rank 0 runs nowhere")

    def other_node(self):
        first = self.node_of_rank_0()
        return next(name for name in self.nodes if name != first)

    def end(self):
        left = self.pids()
        for process in self.all():
            process.kill()
            process.wait()
        kill(left)


class Torchrun(Run):
    name = "torchrun"

    def begin(self, nnodes, nodes):
        self.nnodes, self.port = nnodes, free_port()
        for name in nodes:
            self.join(name)

    def join(self, name):
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self.port}", "--rdzv-id", "bench"]
        # Else it waits 30 s for more nodes each time, and any node could hold the store where all meet, whose loss is another fault.
        meet += ["--rdzv-conf", f"last_call_timeout=1,is_host={int(name == 'a')}"]
        logs = ["--log-dir", str(self.folder / "logs"), "-t", "3"]
        flags = ["--nnodes", self.nnodes, "--nproc-per-node", "1", "--max-restarts", self.restarts]
        self.nodes[name] = self.spawn(name, [*TORCHRUN, *flags, *meet, *logs, *self.command()])

    def alone(self):
        self.nodes["a"] = self.spawn("a", [*TORCHRUN, "--standalone", "--nproc-per-node", "2", *self.command()])
        return self.nodes["a"]

    def ended(self):
        """What it ended with, over all launchers that were left to it; None: it runs."""
        codes = {process.poll() for process in self.nodes.values()}
        return None if None in codes or not codes else " and ".join(sorted(map(code, codes)))

    def kept(self, word):
        return any(word in p.read_text(errors="replace") for p in (self.folder / "logs").rglob("std*.log"))


class Elastic(Run):
    name = "elastic run"

    def begin(self, nnodes, nodes):
        port = free_port()
        self.where = ["--coordinator", f"http://127.0.0.1:{port}"]
        listen = ["--listen", f"127.0.0.1:{port}", "--http", "off", "--store", "memory"]
        listen += ["--data-dir", str(self.folder / "data")]
        self.others = [self.spawn("coordinator", [ELASTIC, "coordinator", "--allow-commands", *listen])]
        for name in nodes:
            self.join(name)
        until(lambda: subprocess.run([ELASTIC, "jobs", *self.where], capture_output=True).returncode == 0)
        flags = ["--nnodes", nnodes, "--nproc-per-node", "1", "--max-restarts", self.restarts]
        self.job = self.spawn("job", [ELASTIC, "run", *self.where, *flags, *self.command()])
        self.others.append(self.job)

    def join(self, name):
        state = ["--name", name, "--state-dir", str(self.folder / name)]
        self.nodes[name] = self.spawn(f"agent-{name}", [ELASTIC, "agent", "--allow-programs", *self.where, *state])

    def alone(self):
        self.nodes["a"] = self.spawn("a", [ELASTIC, "run", "--standalone", "--nproc-per-node", "2", *self.command()])
        return self.nodes["a"]

    def ended(self):
        return None if self.job.poll() is None else code(self.job.poll())

    def kept(self, word):
        return any(word in p.read_text(errors="replace") for p in self.folder.glob("*/logs/*/*.log"))


def until(ready, seconds=None):
    """Waits for something that is not None, False or empty; None: it does not come."""
    by = time.monotonic() + (PATIENCE if seconds is None else seconds)
    while time.monotonic() < by:
        found = ready()
        if found:
            return found
        time.sleep(0.05)
    return None


def code(returned):
    return str(returned) if returned >= 0 else f"signal {-returned}"


def counted(pids):
    left = sum(map(alive, pids))
    return f"{left} process{'' if left == 1 else 'es'} left" if left else "no process left"


# ---- faults: each gives the processes that are not to be there any more, and how many the job is to have then


def kill_process(run):
    victim = workers(family(run.nodes[run.other_node()].pid))[0]
    kill([victim])
    return [], 2


def kill_agent(run):
    agent = run.nodes.pop(run.other_node())
    struck = family(agent.pid)
    agent.kill()
    agent.wait()
    return struck, 1


def kill_first_node(run):
    agent = run.nodes.pop(run.node_of_rank_0())
    struck = family(agent.pid)
    kill([agent.pid, *struck])
    agent.wait()
    return struck, 2


def add_node(run):
    run.join("added")
    return [], 3


def drain(run):
    agent = run.nodes.pop(run.other_node())
    struck = family(agent.pid)
    agent.terminate()
    run.drained = agent
    run.others.append(agent)
    return struck, 1


# How a row is called, what is done, and the nodes that there are before.
FAULTS = {
    "kill-process": ("SIGKILL of a process", kill_process, "ab"),
    "kill-agent": ("SIGKILL of the launcher or agent of a node", kill_agent, "ab"),
    "kill-first-node": ("SIGKILL of the node of rank 0, of three", kill_first_node, "abc"),
    "add-node": ("a node joins", add_node, "ab"),
    "drain": ("drain: SIGTERM to the launcher or agent of a node", drain, "ab"),
    "terminate": ("SIGTERM to the launcher of a job on one node", None, "a"),
}


def begun(run):
    return len(SCRIPTS[run.script].begins.findall(run.text()))


def start(kind, folder, name, nodes):
    run = kind(folder, name, SCRIPTS[name].args)
    launcher = run.alone() if nodes == "a" else run.begin(f"1:{len(nodes) + 1}", nodes)
    count = 2 if nodes == "a" else len(nodes)
    ready = lambda: SCRIPTS[name].under_way in run.text() and world_of(run.pids()) == {count}
    if not until(ready):
        tail = " / ".join(run.text().splitlines()[-3:])
        run.end()
        raise RuntimeError(f"did not begin on {count} processes within {PATIENCE:.0f} s: {tail}")
    return run, launcher


def struck(kind, folder, name, fault):
    """How the job fares after the fault, in words."""
    _, strike, nodes = FAULTS[fault]
    run, launcher = start(kind, folder, name, nodes)
    try:
        return terminated(run, launcher) if strike is None else gone_on(run, strike, fault)
    finally:
        run.end()


def terminated(run, launcher):
    those, since = family(launcher.pid), time.monotonic()
    launcher.terminate()
    until(lambda: launcher.poll() is not None)
    if launcher.poll() is None:
        outcome = f"does not end within {PATIENCE:.0f} s"
    else:
        outcome = f"ends with {code(launcher.poll())} after {time.monotonic() - since:.1f} s"
    outcome += f"; {counted(those)}"
    kill(those)
    return outcome


def gone_on(run, strike, fault):
    before, since = begun(run), time.monotonic()
    victims, world = strike(run)
    goes_on = lambda: begun(run) > before and world in world_of(run.pids())
    until(lambda: goes_on() or run.ended() is not None)
    took, found = time.monotonic() - since, goes_on()
    ended = until(run.ended) if found else run.ended()
    over = time.monotonic() - since
    if found:
        outcome = f"goes on after {took:.1f} s, " + (f"ends with {ended}" if ended else f"is not over after {PATIENCE:.0f} s")
    elif ended:
        new = begun(run) > before
        outcome = f"{'goes on with others' if new else 'no new generation'}, ends with {ended} after {over:.1f} s"
    else:
        outcome = f"does not go on within {over:.0f} s"
    if fault == "drain":
        own = run.drained.poll()
        outcome += f"; the drained one {'does not end' if own is None else 'ends with ' + code(own)}"
    if victims:
        outcome += f"; {counted(victims)}"
        kill(victims)
    word = SCRIPTS[run.script].world
    if fault == "add-node" and word:
        outcome += f"; first log {'kept' if run.kept(word) else 'gone'}"
    return outcome


# ---- endings: what happens without a restart, of record.py on two nodes


def left_alone(kind, folder, args):
    """What record.py ends with, and all that was said."""
    run = kind(folder, "record.py", args)
    run.restarts = "0"
    try:
        run.begin("2", "ab")
        ended = until(run.ended)
        return f"ends with {ended}" if ended else f"does not end within {PATIENCE:.0f} s", run.text()
    finally:
        run.end()


def exits(kind, folder):
    return left_alone(kind, folder, ["7"])[0]


def raises(kind, folder):
    outcome, text = left_alone(kind, folder, [])
    words = "the batch of step 5 makes no sense"
    # What the process itself printed does not count.
    told = [line for line in text.splitlines() if words in line and not re.match(r"\[(rank ?1|default\d)\]", line)]
    return f"{outcome}; its last words {'name' if told else 'do not name'} the cause"


def launcher_killed(kind, folder):
    run, launcher = start(kind, folder, "minimal.py", "a")
    try:
        those = family(launcher.pid)
        launcher.kill()
        until(lambda: not any(map(alive, those)), 5)
        outcome = f"after 5 s {counted(those)}"
        kill(those)
        return outcome
    finally:
        run.end()


ENDINGS = {
    "exits": ("a process exits with code 7, no restart allowed", exits),
    "raises": ("a process raises, no restart allowed", raises),
    "launcher-killed": ("SIGKILL of the launcher of a job on one node", launcher_killed),
}


# ---- the tables


class Progress:
    def __init__(self, cells):
        self.cells, self.done, self.since = cells, 0, time.monotonic()

    def cell(self, kind, what, measure):
        self.done += 1
        spent = time.monotonic() - self.since
        if spent > LIMIT:
            return f"not run: {LIMIT:.0f} s were over"
        # Nodes that do not start within a second of each other do not begin together: no fault, so it is tried again.
        for _ in range(2):
            folder = pathlib.Path(tempfile.mkdtemp(prefix="elastic-bench-"))
            try:
                outcome = measure(kind, folder)
                break
            except RuntimeError as error:
                outcome = str(error)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        print(f"[{self.done}/{self.cells}, {spent:.0f} s] {kind.name}: {what}: {outcome}", file=sys.stderr, flush=True)
        return outcome.replace("|", "/")


def cpu():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(faults, scripts, endings):
    kinds = (Torchrun, Elastic)
    progress = Progress(len(kinds) * (len(faults) * len(scripts) + len(endings)))
    load = os.getloadavg()[0]
    lines = ["| Fault | Script | torchrun | elastic run |", "|---|---|---|---|"] if faults else []
    for fault in faults:
        for name in scripts:
            what, words = f"{fault}, {name}", FAULTS[fault][0]
            row = [progress.cell(kind, what, lambda k, f: struck(k, f, name, fault)) for kind in kinds]
            lines.append(f"| {words} | {name} | {row[0]} | {row[1]} |")
    if endings:
        lines += ["", "| Ending | torchrun | elastic run |", "|---|---|---|"]
    for ending in endings:
        words, act = ENDINGS[ending]
        row = [progress.cell(kind, ending, act) for kind in kinds]
        lines.append(f"| {words} | {row[0]} | {row[1]} |")
    took = time.monotonic() - progress.since
    import torch

    where = f"{cpu()}, {os.cpu_count()} cores, CPU only; Python {platform.python_version()}, torch {torch.__version__}."
    when = f"Measured once on {time.strftime('%Y-%m-%d')} in {took / 60:.0f} min, load average {load:.1f} at the beginning"
    waits = f"and {os.getloadavg()[0]:.1f} at the end; waits of {PATIENCE:.0f} s at most, `--max-restarts {RESTARTS}`."
    return [where, when, waits, "", *lines]


def main():
    words = sys.argv[2:]
    into = words.index("--into") if "--into" in words else None
    file = pathlib.Path(words[into + 1]) if into is not None else None
    if into is not None:
        del words[into : into + 2]
    unknown = [word for word in words if word not in {*FAULTS, *SCRIPTS, *ENDINGS}]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: there are {', '.join([*FAULTS, *ENDINGS, *SCRIPTS])}")
    scripts = [name for name in SCRIPTS if name in words] or list(SCRIPTS)
    rows = [word for word in words if word not in SCRIPTS]
    faults = [fault for fault in FAULTS if fault in rows or not rows]
    endings = [ending for ending in ENDINGS if ending in rows or not words]
    text = "\n".join(measure(faults, scripts, endings))
    print(text, flush=True)
    if file:
        old = file.read_text()
        before, rest = old.split(MARKS[0])
        file.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    ELASTIC = os.path.abspath(sys.argv[1])
    main()
