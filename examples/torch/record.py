"""A training whose rank 1 fails at step 5: `@record` writes why, and whoever started it tells.

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
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(10, 1))
    for step in range(100):
        if step == 5 and dist.get_rank() == 1:
            if code:
                sys.exit(code)
            raise ValueError("the batch of step 5 makes no sense")
        model(torch.randn(16, 10)).sum().backward()
        time.sleep(0.01)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
