"""Makes the golden files that tests/golden.rs compares the engine with.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 numpy==2.4.6 safetensors==0.8.0
    venv/bin/python make.py         # all files but the next
    venv/bin/python make.py bf16    # bf16.json: the training curves' losses under autocast

Everything is seeded; the files hold inputs as well as PyTorch's results. Ops in f64, optimizers and the
training curves in f32. Batch norm is called once per shard, over the shard's valid samples, as the engine
defines it; the loss is PyTorch's full-batch mean over valid targets.
"""

import json
import math
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
IGNORE = -1
# Whether the training curves are those of bf16: products under autocast, the weights in f32.
LOW = sys.argv[1:] == ["bf16"]
CURVES = {}


def ops():
    """Value and gradients of each op, in f64: `<case>.x<i>`, `.ints`, `.dy`, `.y`, `.dx<i>`."""
    torch.manual_seed(1)
    tensors = {}

    def case(name, fn, *shapes, ints=None):
        x = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
        y = fn(*x) if ints is None else fn(*x, ints)
        dy = torch.randn(y.shape, dtype=torch.float64)
        grads = torch.autograd.grad(y, x, dy)
        for i, (x, dx) in enumerate(zip(x, grads)):
            tensors[f"{name}.x{i}"] = x.detach()
            tensors[f"{name}.dx{i}"] = dx.clone().contiguous()
        if ints is not None:
            tensors[f"{name}.ints"] = ints.to(torch.int32)
        tensors[f"{name}.y"] = y.detach().contiguous()
        tensors[f"{name}.dy"] = dy

    def attention(qkv, heads=3):
        m, t, c3 = qkv.shape
        q, k, v = (p.reshape(m, t, heads, -1).transpose(1, 2) for p in qkv.split(c3 // 3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(m, t, c3 // 3)

    def rotary(qkv, heads=2):
        m, t, c3 = qkv.shape
        d = c3 // 3 // heads
        angle = torch.arange(t).double()[:, None] * 1e4 ** (-torch.arange(0, d, 2).double() / d)
        cos, sin = (torch.cat([f(angle)] * 2, dim=1) for f in (torch.cos, torch.sin))

        def turn(x):
            x = x.reshape(m, t, heads, d).transpose(1, 2)
            half = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], dim=-1)
            return (x * cos + half * sin).transpose(1, 2).reshape(m, t, -1)

        q, k, v = qkv.split(c3 // 3, dim=2)
        return torch.cat([turn(q), turn(k), v], dim=2)

    def cross_entropy(smoothing):
        return lambda x, t: F.cross_entropy(x, t, ignore_index=IGNORE, label_smoothing=smoothing, reduction="none")

    targets = torch.tensor([2, IGNORE, 0, 5, IGNORE, 1])
    case("linear", F.linear, (4, 7), (5, 7), (5,))
    case("add", lambda a, b: a + b, (2, 3, 5), (3, 5))
    case("mul", lambda a, b: a * b, (2, 5), (2, 5))
    case("matmul", torch.matmul, (3, 7), (7, 4))
    case("relu", F.relu, (4, 9))
    case("gelu", lambda x: F.gelu(x, approximate="tanh"), (4, 9))
    case("conv2d", lambda x, w, b: F.conv2d(x, w, b, stride=1, padding=1), (2, 3, 6, 5), (4, 3, 3, 3), (4,))
    case("conv2d_stride", lambda x, w: F.conv2d(x, w, None, stride=2, padding=2), (2, 2, 7, 7), (3, 2, 5, 5))
    case("max_pool", lambda x: F.max_pool2d(x, 2, 2), (2, 3, 5, 6))
    case("avg_pool", lambda x: F.avg_pool2d(x, 3, 2), (2, 3, 5, 7))
    def batch_norm(x, w, b, _):
        return F.batch_norm(x, None, None, w, b, training=True)

    case("batch_norm", batch_norm, (4, 3, 2, 2), (3,), (3,), ints=torch.zeros(4))
    case("layer_norm", lambda x, w, b: F.layer_norm(x, (6,), w, b), (3, 2, 6), (6,), (6,))
    case("embedding", lambda w, t: F.embedding(t, w), (6, 5), ints=torch.tensor([[1, 5, 1], [0, 1, 3]]))
    case("attention", attention, (2, 7, 18))
    case("cross_entropy", cross_entropy(0.0), (6, 7), ints=targets)
    case("cross_entropy_smooth", cross_entropy(0.1), (6, 7), ints=targets)
    case("rms_norm", lambda x, w: F.rms_norm(x, (6,), w, 1e-5), (3, 2, 6), (6,))
    case("rotary", rotary, (2, 5, 24))
    save_file(tensors, HERE / "ops.safetensors")


OPTIMIZERS = {
    "sgd": {"sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}},
    "sgd_decay": {"sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.1}},
    "momentum": {"sgd": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.05}},
    "nesterov": {"sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}},
    "adam": {"adam": {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.05}},
    "adamw": {"adam_w": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.1}},
}


def optimizer(spec, groups, lr):
    (kind, o), = spec.items()
    for group in groups:
        group["weight_decay"] = o["weight_decay"] if group.pop("decays") else 0.0
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=o["momentum"], nesterov=o["nesterov"])
    make = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return make(groups, lr=lr, betas=(o["beta1"], o["beta2"]), eps=o["eps"])


def optimizers():
    """Six steps of each optimizer over given gradients, clipped to norm 1.5: `<case>` is the end."""
    torch.manual_seed(2)
    start, grads = torch.randn(3, 4), torch.randn(6, 3, 4)
    tensors = {"start": start, "grads": grads}
    for name, spec in OPTIMIZERS.items():
        p = start.clone().requires_grad_()
        opt = optimizer(spec, [{"params": [p], "decays": True}], lr=0.03)
        for g in grads:
            p.grad = g.clone()
            torch.nn.utils.clip_grad_norm_([p], 1.5)
            opt.step()
        tensors[name] = p.detach()
    save_file(tensors, HERE / "optimizers.safetensors", {"optimizers": json.dumps(OPTIMIZERS)})


SCHEDULES = {
    "constant": {"constant": {"warmup": 0}},
    "constant_warm": {"constant": {"warmup": 10}},
    "linear": {"linear": {"warmup": 10, "end": 0.1}},
    "cosine": {"cosine": {"warmup": 10, "end": 0.0}},
    "cosine_end": {"cosine": {"warmup": 0, "end": 0.25}},
    "step": {"step": {"warmup": 5, "every": 30, "gamma": 0.3}},
}


def scheduler(opt, schedule, steps):
    """PyTorch's own schedules, after a linear warm-up whose last step has the whole rate."""
    from torch.optim import lr_scheduler as lr

    (kind, s), = schedule.items()
    warmup, base = s["warmup"], opt.param_groups[0]["lr"]
    rest = steps - 1 - warmup
    main = {
        "constant": lambda: lr.ConstantLR(opt, factor=1.0),
        "linear": lambda: lr.LinearLR(opt, 1.0, s["end"], rest),
        "cosine": lambda: lr.CosineAnnealingLR(opt, rest, eta_min=base * s["end"]),
        "step": lambda: lr.StepLR(opt, s["every"], s["gamma"]),
    }[kind]
    if warmup == 0:
        return main()
    warm = lr.LinearLR(opt, 1.0 / warmup, 1.0, warmup - 1)
    return lr.SequentialLR(opt, [warm, main()], [warmup])


def long_optimizers():
    """100 steps of each optimizer with a matrix (decayed) and a vector (not), under each schedule, in f64.

    `<optimizer>.<schedule>` is the end, `<optimizer>.first` the state after the first step, `rate.<schedule>` the rates.
    The norm to clip to is above some gradients' norms and below others'.
    """
    torch.manual_seed(6)
    steps, matrix = 100, 12
    start = torch.randn(16, dtype=torch.float32).double()
    scales = torch.logspace(-6, 1, steps)[torch.randperm(steps)][:, None]
    grads = (torch.randn(steps, 16) * scales).float().double()
    tensors = {"start": start.float(), "grads": grads.float()}
    for name, spec in OPTIMIZERS.items():
        for schedule_name, schedule in SCHEDULES.items():
            weight = start[:matrix].reshape(3, 4).clone().requires_grad_()
            bias = start[matrix:].clone().requires_grad_()
            groups = [{"params": [weight], "decays": True}, {"params": [bias], "decays": False}]
            opt = optimizer(spec, groups, lr=0.03)
            plan = scheduler(opt, schedule, steps)
            rates = []
            for step, g in enumerate(grads):
                weight.grad, bias.grad = g[:matrix].reshape(3, 4).clone(), g[matrix:].clone()
                torch.nn.utils.clip_grad_norm_([weight, bias], 1.5)
                rates.append(opt.param_groups[0]["lr"])
                opt.step()
                plan.step()
                if step == 0 and schedule_name == "constant":
                    tensors[f"{name}.first"] = torch.cat([weight.detach().flatten(), bias.detach()])
            tensors[f"{name}.{schedule_name}"] = torch.cat([weight.detach().flatten(), bias.detach()])
            tensors[f"rate.{schedule_name}"] = torch.tensor(rates, dtype=torch.float64)
    about = {"optimizers": json.dumps(OPTIMIZERS), "schedules": json.dumps(SCHEDULES)}
    save_file(tensors, HERE / "long_optimizers.safetensors", about)


def rate(schedule, step, steps):
    """The job file's schedules, as a factor on the base rate."""
    (kind, s), = schedule.items()
    if step < s["warmup"]:
        return (step + 1) / s["warmup"]
    way = (step - s["warmup"]) / (steps - 1 - s["warmup"])
    if kind == "cosine":
        return s["end"] + (1 - s["end"]) * 0.5 * (1 + math.cos(math.pi * way))
    return {"constant": 1.0, "linear": 1 + (s.get("end", 0) - 1) * way}[kind]


def batches(samples, size, steps):
    """Sample indices of each step: a new order every epoch, the last batch of one padded with -1."""
    rows = []
    while len(rows) < steps:
        order = torch.randperm(samples)
        for at in range(0, samples, size):
            row = torch.full((size,), -1, dtype=torch.int64)
            part = order[at : at + size]
            row[: len(part)] = part
            rows.append(row)
    return torch.stack(rows[:steps])


def train(job, params, x, y, forward):
    """Twenty steps, then one evaluation of all samples; both go into `job`. Returns the batches.

    `forward(params, x, shards)` gives scores of the valid samples; shards None: as in evaluation.
    """
    steps, rows = job["steps"], batches(len(x), job["batch"], job["steps"])
    groups = [
        {"params": [p for p in params.values() if (p.dim() >= 2) == decays], "decays": decays}
        for decays in (True, False)
    ]
    opt = optimizer(job["optimizer"], groups, job["lr"])
    losses = []
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = job["lr"] * rate(job["schedule"], step, steps)
        shards = [part[part >= 0] for part in rows[step].chunk(job["shards"])]
        chosen = torch.cat(shards)
        with torch.autocast("cpu", torch.bfloat16, enabled=LOW):
            scores = forward(params, x[chosen], [len(s) for s in shards if len(s)]).float()
        loss = F.cross_entropy(
            scores.flatten(0, -2), y[chosen].flatten(), ignore_index=IGNORE, label_smoothing=job["label_smoothing"]
        )
        opt.zero_grad()
        loss.backward()
        if job["clip_norm"] is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), job["clip_norm"])
        opt.step()
        losses.append(loss.item())
    job["losses"] = losses
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=LOW):
            scores = forward(params, x, None).float()
        loss = F.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=IGNORE)
        job["validation"] = {"loss": loss.item(), "correct": (scores.argmax(-1) == y).sum().item()}
    return rows


def save(name, job, start, params, x, y, rows, buffers=None):
    if LOW:
        CURVES[name] = {"losses": job["losses"], "validation": job["validation"]}
        return
    tensors = {f"start.{k}": v for k, v in start.items()}
    tensors |= {f"end.{k}": v.detach().clone() for k, v in params.items()}
    tensors |= {f"end.{k}": v for k, v in (buffers or {}).items()}
    tensors |= {"x": x if x.dtype == torch.float32 else x.to(torch.int32), "y": y.to(torch.int32)}
    tensors["batches"] = rows.to(torch.int32)
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / f"{name}.safetensors", {"job": json.dumps(job)})


def uniform(shape, fan_in):
    return (torch.rand(shape) * 2 - 1) / math.sqrt(fan_in)


def clusters(samples, features, classes):
    centres = torch.randn(classes, features)
    y = torch.randint(classes, (samples,))
    return (centres[y] + torch.randn(samples, features)).contiguous(), y


def ready(params):
    return {k: v.clone() for k, v in params.items()}, {k: v.requires_grad_() for k, v in params.items()}


def mlp():
    """An epoch of 3 B + 1 samples: every fourth batch has one sample and B - 1 of padding."""
    torch.manual_seed(3)
    job = {
        "model": {"mlp": {"hidden": [24, 16], "activation": "relu"}},
        "batch": 32, "shards": 8, "steps": 20, "lr": 0.1, "clip_norm": None, "label_smoothing": 0.0,
        "optimizer": OPTIMIZERS["nesterov"], "schedule": {"cosine": {"warmup": 4, "end": 0.1}},
    }
    x, y = clusters(97, 20, 5)
    widths = [20, 24, 16, 5]
    start = {}
    for i, (inner, out) in enumerate(zip(widths, widths[1:])):
        start |= {f"layers.{i}.weight": uniform((out, inner), inner), f"layers.{i}.bias": uniform((out,), inner)}
    start, params = ready(start)

    def forward(p, x, _):
        for i in range(3):
            x = F.linear(x, p[f"layers.{i}.weight"], p[f"layers.{i}.bias"])
            x = F.relu(x) if i < 2 else x
        return x

    save("mlp", job, start, params, x, y, train(job, params, x, y, forward))


def cnn():
    """Batch norm once per shard, running statistics pooled once per step; padded last batches."""
    torch.manual_seed(4)
    job = {
        "model": {"cnn": {"image": [1, 8, 8], "channels": [6, 8], "kernel": 3, "hidden": 12, "batch_norm": True}},
        "batch": 32, "shards": 4, "steps": 20, "lr": 0.01, "clip_norm": 1.0, "label_smoothing": 0.1,
        "optimizer": OPTIMIZERS["adam"], "schedule": {"linear": {"warmup": 3, "end": 0.2}},
    }
    x, y = clusters(65, 64, 4)
    start = {}
    for i, (inner, out) in enumerate([(1, 6), (6, 8)]):
        start[f"blocks.{i}.conv.weight"] = uniform((out, inner, 3, 3), inner * 9)
        start[f"blocks.{i}.norm.weight"] = 1 + 0.1 * torch.randn(out)
        start[f"blocks.{i}.norm.bias"] = 0.1 * torch.randn(out)
    start |= {"hidden.weight": uniform((12, 32), 32), "hidden.bias": uniform((12,), 32)}
    start |= {"output.weight": uniform((4, 12), 12), "output.bias": uniform((4,), 12)}
    start, params = ready(start)
    running = {}
    for i, out in enumerate([6, 8]):
        running |= {f"blocks.{i}.norm.running_mean": torch.zeros(out), f"blocks.{i}.norm.running_var": torch.ones(out)}

    def norm(x, shards, name, p):
        """PyTorch's batch norm on each shard; then one running update from the pooled statistics."""
        if shards is None:
            stats = running[f"{name}.running_mean"], running[f"{name}.running_var"]
            return F.batch_norm(x, *stats, p[f"{name}.weight"], p[f"{name}.bias"])
        mean, square = 0, 0
        old = running[f"{name}.running_mean"]
        parts = []
        for part in x.split(shards):
            own = {"mean": torch.zeros_like(old), "var": torch.zeros_like(old)}
            parts.append(F.batch_norm(
                part, own["mean"], own["var"], p[f"{name}.weight"], p[f"{name}.bias"], training=True, momentum=1.0))
            share = len(part) / sum(shards)
            n, whole = part[:, 0].numel(), job["batch"] * part[0, 0].numel()
            own["var"] = own["var"] * (n - 1) / n * (1 + n / (whole * (n - 1)))
            mean = mean + share * (own["mean"] - old)
            square = square + share * (own["var"] + (own["mean"] - old) ** 2)
        running[f"{name}.running_mean"] = old + 0.1 * mean
        var = running[f"{name}.running_var"]
        running[f"{name}.running_var"] = var + 0.1 * (square - mean**2 - var)
        return torch.cat(parts)

    def forward(p, x, shards):
        x = x.reshape(-1, 1, 8, 8)
        for i in range(2):
            x = F.conv2d(x, p[f"blocks.{i}.conv.weight"], None, padding=1)
            x = F.max_pool2d(F.relu(norm(x, shards, f"blocks.{i}.norm", p)), 2)
        x = F.relu(F.linear(x.flatten(1), p["hidden.weight"], p["hidden.bias"]))
        return F.linear(x, p["output.weight"], p["output.bias"])

    rows = train(job, params, x, y, forward)
    save("cnn", job, start, params, x, y, rows, running)


def gpt():
    """Labels ignored unevenly: from none to all but one of a window's, so that shards weigh differently."""
    torch.manual_seed(5)
    layers, heads, width, context, vocab = 2, 2, 16, 12, 19
    job = {
        "model": {"gpt": {"layers": layers, "heads": heads, "width": width, "context": context, "dropout": 0.0}},
        "vocab": vocab,
        "batch": 16, "shards": 4, "steps": 20, "lr": 0.01, "clip_norm": 1.0, "label_smoothing": 0.0,
        "optimizer": OPTIMIZERS["adamw"], "schedule": {"cosine": {"warmup": 5, "end": 0.0}},
    }
    text = torch.cumsum(torch.randint(1, 3, (49, context + 1)), 1) % vocab
    x, y = text[:, :-1].contiguous(), text[:, 1:].clone()
    for i in range(len(y)):
        y[i, : i % context] = IGNORE
    std = 0.2
    start = {"wte.weight": std * torch.randn(vocab, width), "wpe.weight": std * torch.randn(context, width)}
    for i in range(layers):
        for ln in ("ln_1", "ln_2"):
            start |= {f"h.{i}.{ln}.weight": torch.ones(width), f"h.{i}.{ln}.bias": torch.zeros(width)}
        for name, inner, out in [("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)]:
            start[f"h.{i}.{name}.weight"] = std * torch.randn(out * width, inner * width)
            start[f"h.{i}.{name}.bias"] = torch.zeros(out * width)
    start |= {"ln_f.weight": torch.ones(width), "ln_f.bias": torch.zeros(width)}
    start, params = ready(start)

    def layer(p, name, x):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(p, name, x):
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"])

    def forward(p, x, _):
        x = F.embedding(x, p["wte.weight"]) + p["wpe.weight"]
        for i in range(layers):
            at = f"h.{i}"
            qkv = layer(p, f"{at}.attn.c_attn", norm(p, f"{at}.ln_1", x))
            q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in qkv.split(width, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + layer(p, f"{at}.attn.c_proj", y)
            y = F.gelu(layer(p, f"{at}.mlp.c_fc", norm(p, f"{at}.ln_2", x)), approximate="tanh")
            x = x + layer(p, f"{at}.mlp.c_proj", y)
        return F.linear(norm(p, "ln_f", x), p["wte.weight"])

    save("gpt", job, start, params, x, y, train(job, params, x, y, forward))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for make in (mlp, cnn, gpt) if LOW else (ops, optimizers, long_optimizers, mlp, cnn, gpt):
        make()
    if LOW:
        (HERE / "bf16.json").write_text(json.dumps(CURVES, indent=1) + "\n")
    for path in sorted(HERE.glob("*.safetensors")):
        print(path.name, path.stat().st_size)
