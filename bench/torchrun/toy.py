"""examples/digits/job.toml as one writes it for torchrun: the same network, batch and optimizer; DDP over gloo, a
snapshot every SNAPSHOT_EVERY steps by rank 0, taken up after a restart. Each step appends `<unix time> <step> <rank> <pid>` to the file named by TOY_TRACE.<rank>.
"""

import gzip
import os
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

GLOBAL_BATCH = 32
SNAPSHOT_EVERY = 50


def load(path):
    with gzip.open(path, "rt") as file:
        rows = [[float(x) for x in line.split(",")] for line in file if line[0].isdigit()]
    data = torch.tensor(rows)
    return data[:, :-1] / 16.0, data[:, -1].long()


def main():
    steps = int(os.environ["TOY_STEPS"])
    snapshot = os.environ["TOY_SNAPSHOT"]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    features, labels = load(os.environ["TOY_DATA"])
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.002)
    first = 0
    if os.path.exists(snapshot):
        kept = torch.load(snapshot, weights_only=True)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    parallel = DistributedDataParallel(network)
    trace = open(f"{os.environ['TOY_TRACE']}.{rank}", "a", buffering=1)
    mine = GLOBAL_BATCH // world
    for step in range(first, steps):
        pick = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:GLOBAL_BATCH]
        pick = pick[rank * mine : (rank + 1) * mine]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(parallel(features[pick]), labels[pick]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        trace.write(f"{time.time():.6f} {step} {rank} {os.getpid()}\n")
        if rank == 0 and (step + 1) % SNAPSHOT_EVERY == 0:
            kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(kept, snapshot + ".part")
            os.replace(snapshot + ".part", snapshot)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
