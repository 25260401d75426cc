"""The smallest training with DistributedDataParallel: a linear model on random numbers.

    torchrun --nproc-per-node 2 minimal.py
    elastic run --nproc-per-node 2 minimal.py
"""

import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    model = DistributedDataParallel(torch.nn.Linear(10, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        x = torch.randn(16, 10)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 10 == 0:
            print(f"step {step} of {steps} on {world} processes: loss {loss.item():.4f}", flush=True)
        time.sleep(pause)
    if rank == 0:
        print(f"done on {world} processes, restart {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
