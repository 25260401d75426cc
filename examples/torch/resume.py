"""A training that goes on where it was: a checkpoint every 10 steps, taken up at the start.

    torchrun --nproc-per-node 2 --max-restarts 3 resume.py checkpoint.pt
    elastic run --nproc-per-node 2 --max-restarts 3 resume.py checkpoint.pt
"""

import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def save(path, step, model, optimizer):
    """Whole or not at all: a process may be killed at any time."""
    state = {"step": step, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def main():
    path = sys.argv[1]
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(10, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    first = 0
    if os.path.exists(path):
        state = torch.load(path)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    if rank == 0:
        print(f"begins at step {first} on {world} processes", flush=True)
    for step in range(first, steps):
        torch.manual_seed(step * 1000 + rank)
        x = torch.randn(16, 10)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step + 1) % 10 == 0:
            save(path, step + 1, model, optimizer)
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", flush=True)
        time.sleep(pause)
    dist.destroy_process_group()
    if rank == 0:
        print(f"done at step {steps}", flush=True)


if __name__ == "__main__":
    main()
