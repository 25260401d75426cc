"""A training whose rank 1 fails at some step: `@record` writes why, and whoever started it tells.

    torchrun --nproc-per-node 2 record.py
    elastic run --nproc-per-node 2 record.py
"""

import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel


@record
def main():
    code = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    fails_at = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.01
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(torch.nn.Linear(10, 1))
    for step in range(100):
        if step == fails_at and rank == 1:
            if code:
                sys.exit(code)
            raise ValueError(f"the batch of step {step} makes no sense")
        model(torch.randn(16, 10)).sum().backward()
        if rank == 0 and step % 10 == 0:
            print(f"step {step} of 100 on {world} processes", flush=True)
        time.sleep(pause)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
