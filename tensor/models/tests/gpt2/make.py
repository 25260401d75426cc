"""A tiny GPT-2 in a folder as Hugging Face writes it, and the losses that its own formulas give: Python's floats only.

`python3 make.py` writes the files beside it again. The forward pass is that of `GPT2LMHeadModel`: Conv1D is x @ W + b
with W of (in, out), queries, keys and values lie in this order in `c_attn`, scores are divided by the root of a head's
width, GELU is the one with tanh, the output layer is the token table.
"""

import json
import math
import struct

LAYERS, HEADS, WIDTH, CONTEXT, VOCAB = 2, 2, 6, 5, 7
INNER = 4 * WIDTH

state = 12345


def number(spread, about=0.0):
    """The next one of a fixed sequence, as a float of 32 bits holds it."""
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    x = about + spread * ((state >> 40) / 2**23 - 1.0)
    return struct.unpack("<f", struct.pack("<f", x))[0]


def tensor(shape, spread, about=0.0):
    return shape, [number(spread, about) for _ in range(math.prod(shape))]


def weights():
    w = {"transformer.wte.weight": tensor([VOCAB, WIDTH], 0.8), "transformer.wpe.weight": tensor([CONTEXT, WIDTH], 0.5)}
    for i in range(LAYERS):
        at = f"transformer.h.{i}."
        for name in ["ln_1", "ln_2"]:
            w[f"{at}{name}.weight"] = tensor([WIDTH], 0.3, 1.0)
            w[f"{at}{name}.bias"] = tensor([WIDTH], 0.3)
        for name, rows, columns in [
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, INNER),
            ("mlp.c_proj", INNER, WIDTH),
        ]:
            w[f"{at}{name}.weight"] = tensor([rows, columns], 0.6)
            w[f"{at}{name}.bias"] = tensor([columns], 0.2)
    w["transformer.ln_f.weight"] = tensor([WIDTH], 0.3, 1.0)
    w["transformer.ln_f.bias"] = tensor([WIDTH], 0.3)
    return w


def conv1d(w, name, x):
    (rows, columns), data = w[name + ".weight"]
    bias = w[name + ".bias"][1]
    return [bias[c] + sum(x[r] * data[r * columns + c] for r in range(rows)) for c in range(columns)]


def layer_norm(w, name, x):
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    scale, shift = w[name + ".weight"][1], w[name + ".bias"][1]
    return [(v - mean) / math.sqrt(var + 1e-5) * s + b for v, s, b in zip(x, scale, shift)]


def gelu_new(x):
    return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    top = max(x)
    e = [math.exp(v - top) for v in x]
    return [v / sum(e) for v in e]


def attention(w, at, xs):
    qkv = [conv1d(w, at + "c_attn", x) for x in xs]
    size = WIDTH // HEADS
    out = [[0.0] * WIDTH for _ in xs]
    for head in range(HEADS):
        part = lambda row, which: row[which * WIDTH + head * size :][:size]
        for t, row in enumerate(qkv):
            q = part(row, 0)
            scores = [sum(a * b for a, b in zip(q, part(other, 1))) / math.sqrt(size) for other in qkv[: t + 1]]
            for p, other in zip(softmax(scores), qkv):
                for j, v in enumerate(part(other, 2)):
                    out[t][head * size + j] += p * v
    return [conv1d(w, at + "c_proj", x) for x in out]


def plus(a, b):
    return [x + y for x, y in zip(a, b)]


def losses(w, tokens, targets):
    """Cross entropy of each position."""
    table, places = w["transformer.wte.weight"][1], w["transformer.wpe.weight"][1]
    row = lambda data, i: data[i * WIDTH :][:WIDTH]
    xs = [plus(row(table, t), row(places, i)) for i, t in enumerate(tokens)]
    for i in range(LAYERS):
        at = f"transformer.h.{i}."
        xs = [plus(x, y) for x, y in zip(xs, attention(w, at + "attn.", [layer_norm(w, at + "ln_1", x) for x in xs]))]
        inner = [[gelu_new(v) for v in conv1d(w, at + "mlp.c_fc", layer_norm(w, at + "ln_2", x))] for x in xs]
        xs = [plus(x, conv1d(w, at + "mlp.c_proj", y)) for x, y in zip(xs, inner)]
    xs = [layer_norm(w, "transformer.ln_f", x) for x in xs]
    scores = [[sum(a * b for a, b in zip(x, row(table, t))) for t in range(VOCAB)] for x in xs]
    return [-math.log(softmax(s)[t]) for s, t in zip(scores, targets)]


def safetensors(tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def main():
    w = weights()
    stored = {name: ("F32", shape, struct.pack(f"<{len(data)}f", *data)) for name, (shape, data) in w.items()}
    stored["lm_head.weight"] = stored["transformer.wte.weight"]
    for i in range(LAYERS):
        mask = bytes(int(k <= q) for q in range(CONTEXT) for k in range(CONTEXT))
        stored[f"transformer.h.{i}.attn.bias"] = ("U8", [1, 1, CONTEXT, CONTEXT], mask)
        stored[f"transformer.h.{i}.attn.masked_bias"] = ("F32", [], struct.pack("<f", -1e4))
    names = sorted(stored)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    place = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        place |= {name: file for name in part}
        open(file, "wb").write(safetensors({name: stored[name] for name in part}))
    total = sum(len(raw) for _, _, raw in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    open("model.safetensors.index.json", "w").write(json.dumps(index, indent=2) + "\n")
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_embd": WIDTH,
        "n_inner": None,
        "n_positions": CONTEXT,
        "n_ctx": CONTEXT,
        "vocab_size": VOCAB,
        "layer_norm_epsilon": 1e-05,
        "torch_dtype": "float32",
    }
    open("config.json", "w").write(json.dumps(config, indent=2) + "\n")
    tokens = [[(3 * i + 5 * s + i * i) % VOCAB for i in range(CONTEXT)] for s in range(4)]
    targets = [[(5 * i + s + 1) % VOCAB for i in range(CONTEXT)] for s in range(4)]
    told = {"tokens": tokens, "targets": targets, "loss": [sum(losses(w, x, y)) for x, y in zip(tokens, targets)]}
    open("losses.json", "w").write(json.dumps(told) + "\n")


main()
