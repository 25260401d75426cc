"""PyTorch's side of the step: eager, the fastest plain way there is on a CPU. Speaks our example's protocol.

    peer.py MODEL DTYPE THREADS BATCH WEIGHTS [DEVICE WAY]

WEIGHTS is what our side exported: initial parameters by name, `x` and `y`. Commands on stdin, a line of JSON each:
`loss V` gives the loss of the initial weights with batch norm over V parts of the batch; `run N` makes N steps;
`memory N` gives the most bytes that were live at once of what N steps allocated.

DEVICE is cpu or cuda. WAY is eager, compile, graphs (compiled, and replayed as CUDA graphs), or padded (compiled, with a
vocabulary rounded up to a multiple of 64, as those who care for speed have it: the work is then not quite ours).
"""

import itertools
import json
import pathlib
import struct
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "I32": np.int32}
    body = data[8 + size :]
    return {
        name: torch.from_numpy(np.frombuffer(body[slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"]).copy())
        for name, t in header.items()
    }


class Mlp(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)


class Block(nn.Module):
    def __init__(self, inner, out):
        super().__init__()
        self.conv = nn.Conv2d(inner, out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        return F.max_pool2d(x, 2) if min(x.shape[2:]) >= 2 else x


class Cnn(nn.Module):
    def __init__(self, *channels, last):
        super().__init__()
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip(channels, channels[1:]))
        self.output = nn.Linear(last, 10)

    def forward(self, x):
        x = x.reshape(-1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        # Channels come first in the rows of the last layer, as in the exported weights.
        return self.output(x.contiguous().flatten(1))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        qkv = self.attn["c_attn"](self.ln_1(x)).split(x.shape[2], dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers, heads, width, context, vocab):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)

    def pad_vocabulary(self):
        """Rows of zeros behind the last token's, up to a multiple of 64."""
        weight = self.wte.weight.detach()
        self.wte = nn.Embedding.from_pretrained(F.pad(weight, (0, 0, 0, -len(weight) % 64)), freeze=False)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight
        for layer in self.h:
            x = layer(x)
        return F.linear(self.ln_f(x), self.wte.weight)


# tensor/models/examples/step/rows.rs has the same table.
MODELS = {
    "gpt": lambda: Gpt(6, 8, 256, 256, 256),
    "gpt2": lambda: Gpt(12, 12, 768, 1024, 50257),
    "cnn": lambda: Cnn(3, 64, 64, 128, 128, last=128 * 2 * 2),
    "mlp": lambda: Mlp(784, 512, 512, 10),
    "digits": lambda: Mlp(64, 128, 10),
}
CLIP = {"gpt": 1.0, "gpt2": 1.0, "digits": 1.0}
COMPILED = {"compile": {}, "padded": {}, "graphs": {"mode": "reduce-overhead"}}


def optimizer(name, model):
    """Decay for tensors of two and more axes, as our side has it."""
    decays = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = lambda decay: [{"params": decays, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if name == "cnn":
        return torch.optim.SGD(groups(5e-4), lr=0.01, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups(0.1), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, fused=True)


class Steps:
    def __init__(self, name, dtype, batch, weights, device="cpu", way="eager"):
        tensors = read_safetensors(weights)
        self.device = torch.device(device)
        self.x, self.y = tensors.pop("x").to(self.device), tensors.pop("y").long().flatten().to(self.device)
        self.x = self.x.long() if self.x.dtype == torch.int32 else self.x
        assert len(self.x) == batch, f"the exported batch has {len(self.x)} samples, not {batch}"
        self.name, self.low = name, dtype == "bf16"
        self.model = MODELS[name]()
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        missing = [n for n in missing if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        assert not missing and not unexpected, f"the models differ: {missing} {unexpected}"
        self.params = sum(p.numel() for p in self.model.parameters())
        if way == "padded":
            self.model.pad_vocabulary()
        self.model = self.model.to(self.device)
        if name == "cnn":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = optimizer(name, self.model)
        self.loss_in_steps = torch.compile(self.loss_of, **COMPILED[way]) if way in COMPILED else self.loss_of

    def loss_of(self, x, y):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            return F.cross_entropy(self.model(x).flatten(0, -2).float(), y)

    def initial_loss(self, parts):
        with torch.no_grad():
            pairs = zip(self.x.chunk(parts), self.y.chunk(parts))
            return sum(self.loss_of(x, y).item() for x, y in pairs) / parts

    def once(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_in_steps(self.x, self.y)
        loss.backward()
        if self.name in CLIP:
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP[self.name])
        self.optimizer.step()
        return loss.item()

    def run(self, count):
        ms, losses = [], []
        for _ in range(count):
            begin = time.perf_counter()
            losses.append(self.once())
            ms.append((time.perf_counter() - begin) * 1e3)
        return {"ms": ms, "loss": losses}

    def memory(self, count):
        """From the allocations and frees that the profiler sees; what lived before the step is not among them."""
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(count)
            return {"peak_bytes": torch.cuda.max_memory_allocated() - before}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.run(count)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "trace.json")
            profile.export_chrome_trace(str(path))
            events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
        live = [e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])]
        return {"peak_bytes": max(itertools.accumulate(live))}


def main():
    name, dtype, threads, batch, weights, *where = sys.argv[1:]
    torch.set_num_threads(int(threads))
    steps = Steps(name, dtype, int(batch), weights, *where)
    print(json.dumps({"ready": True, "params": steps.params}), flush=True)
    for line in sys.stdin:
        word, number = line.split()
        answer = {"loss": lambda n: {"loss": steps.initial_loss(n)}, "run": steps.run, "memory": steps.memory}[word](int(number))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
