"""Makes the folder `sums` and the text `times.txt` of this example. Needs Python alone.

    python3 make.py RUN/checkpoints/STEP/weights.safetensors

takes the weights that `examples/gpt` trained and writes them as Hugging Face's GPT-2 does: its names, linear weights
as (in, out), here in 16 bits.
"""

import json
import pathlib
import random
import struct
import sys

HERE = pathlib.Path(__file__).parent
LINEAR = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
ONES = (ONES + " seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def read(path):
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for name, of in header.items():
        if name != "__metadata__":
            start, end = of["data_offsets"]
            yield name, of["shape"], struct.unpack(f"<{(end - start) // 4}f", body[start:end])


def write(path, tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (shape, numbers) in tensors.items():
        raw = struct.pack(f"<{len(numbers)}e", *numbers)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def turned(shape, numbers):
    rows, columns = shape
    return [columns, rows], [numbers[r * columns + c] for c in range(columns) for r in range(rows)]


def in_words(n):
    if n >= 100:
        return "one hundred" + (f" and {in_words(n - 100)}" if n > 100 else "")
    if n < 20:
        return ONES[n]
    return TENS[n // 10 - 2] + (f" {ONES[n % 10]}" if n % 10 else "")


def main():
    tensors = {}
    for name, shape, numbers in sorted(read(sys.argv[1])):
        tensors[f"transformer.{name}"] = turned(shape, numbers) if name.endswith(LINEAR) else (shape, numbers)
    folder = HERE / "sums"
    folder.mkdir(exist_ok=True)
    write(folder / "model.safetensors", tensors)
    vocab, width = tensors["transformer.wte.weight"][0]
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": sum(name.endswith(".c_fc.weight") for name in tensors),
        "n_head": 4,
        "n_embd": width,
        "n_positions": tensors["transformer.wpe.weight"][0][0],
        "vocab_size": vocab,
        "layer_norm_epsilon": 1e-05,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    lines = [f"{in_words(a)} times {in_words(b)} makes {in_words(a * b)}.\n" for a in range(13) for b in range(13)]
    random.Random(1).shuffle(lines)
    (HERE / "times.txt").write_text("".join(lines))


main()
