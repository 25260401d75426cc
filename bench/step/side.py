"""A side of the comparison: a process that makes steps when it is asked to, ours or PyTorch's."""

import json
import os
import pathlib
import statistics
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OURS = os.environ.get("ELASTIC_STEP_BIN", str(ROOT / "target" / "release" / "examples" / "step"))
# bfloat16 keeps 8 bits: the two sides round at other places (PyTorch under autocast rounds results as well).
LOSS_OFF_MAX = {"f32": 1e-4, "bf16": 2e-2}
TURN_S = 0.4
PAUSE_S = 0.1


class Side:
    """A process that makes steps when it is asked to."""

    def __init__(self, command, threads):
        # Idle threads of OpenMP spin for some milliseconds and then sleep: PAUSE_S keeps them out of the other's turn.
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        self.name = " ".join(command[:3])
        self.cpu = []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.first = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()} and no answer")
        return json.loads(line)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)

    def turn(self):
        """The median step of a turn; short steps are made warm first."""
        time.sleep(PAUSE_S)
        if self.steps > 1:
            self.ask("run 1")
        before = self.cpu_ms()
        ms = statistics.median(self.ask(f"run {self.steps}")["ms"])
        self.cpu.append((self.cpu_ms() - before) / self.steps)
        return ms

    def cpu_ms(self):
        """What the process's first thread has had of a core; the kernel counts it in ns."""
        return int(pathlib.Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e6

    def choose_steps(self):
        ms = self.ask("run 1")["ms"][0]
        if ms < TURN_S * 1000:
            ms = min(self.ask("run 5")["ms"])
        self.steps = max(1, min(200, round(TURN_S * 1000 / ms)))
