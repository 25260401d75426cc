"""Makes numpy.safetensors: what NumPy says of 1,200 random operations on tensors.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6
    venv/bin/python tensor/tests/golden/numpy_cases.py

400 cases of broadcasting, 300 of slicing, 300 of reductions, 200 of whatever else moves or multiplies. Only results are
stored, and what the cases are (the file's metadata). Inputs are made again by `draw`, which tests/numpy.rs has as well.
Where our promotion differs from NumPy's (an integer beside a float), operands are cast before NumPy sees them.
"""

import json
import pathlib
import random
import struct
import warnings

import numpy as np

assert np.__version__ == "2.4.6", np.__version__
DTYPES = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "bool": np.bool_}
NAMES = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
SPECIAL = [float("nan"), float("inf"), float("-inf"), -0.0]
chance = random.Random(20)
cases, results = [], []


def draw(case, slot, spec):
    """Numbers of input `slot` of a case: a 64-bit LCG, of which the upper 24 bits count."""
    state = (case * 8 + slot + 1) * 0x9E3779B97F4A7C15 % 2**64
    out = []
    for _ in range(int(np.prod(spec["shape"], dtype=np.int64))):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        n = state >> 40
        kind = spec["dtype"]
        if kind in ("f32", "f64", "f16"):
            x = (n % 2001 - 1000) / 64.0
            if spec.get("special") and n % 7 == 0:
                x = SPECIAL[n // 7 % 4]
            out.append(x)
        elif kind == "bool":
            out.append(bool(n & 1))
        elif kind == "u8":
            out.append(n % 256)
        else:
            out.append(n % spec.get("under", 201) - (0 if "under" in spec else 100))
    return np.array(out, dtype=DTYPES[spec["dtype"]]).reshape(spec["shape"])


def case(op, specs, args, f):
    inputs = [draw(len(cases), slot, spec) for slot, spec in enumerate(specs)]
    with np.errstate(all="ignore"):
        y = np.asarray(f(*inputs))
    if y.dtype == np.uint64:
        y = y.astype(np.int64)
    cases.append({"op": op, "in": specs, "args": args})
    results.append(np.ascontiguousarray(y).reshape(y.shape))


def shape(axes, low=1, high=5):
    return [chance.randint(low, high) if chance.random() > 0.05 else 0 for _ in range(axes)]


def thinner(wide):
    """A shape that broadcasts to `wide`."""
    lead = chance.randint(0, len(wide)) if chance.random() < 0.5 else 0
    return [1 if chance.random() < 0.3 else n for n in wide[lead:]]


def broadcasting():
    ops = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": np.maximum, "minimum": np.minimum,
           "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    for _ in range(360):
        name = chance.choice(list(ops))
        wide = shape(chance.randint(0, 4))
        kinds = ["f32", "f32", "f64", "i64", "i32", "u8", "bool", "f16"]
        a = chance.choice(kinds)
        b = a if chance.random() < 0.6 else chance.choice(kinds)
        if name == "sub" and a == b == "bool":
            a = b = "i32"
        special = name not in ("maximum", "minimum") or chance.random() < 0.5
        specs = [{"dtype": k, "shape": thinner(wide), "special": special} for k in (a, b)]
        floats = [k for k in (a, b) if k.startswith("f")]

        def f(x, y, name=name, floats=floats):
            if floats or name == "div":
                both = max(floats, key=lambda k: np.dtype(DTYPES[k]).itemsize) if floats else "f32"
                x, y = x.astype(DTYPES[both]), y.astype(DTYPES[both])
            return ops[name](x, y)

        case(name, specs, {}, f)
    for _ in range(40):
        wide = shape(chance.randint(0, 4))
        kind = chance.choice(["f32", "f64", "i64", "u8"])
        specs = [{"dtype": "bool", "shape": thinner(wide)}] + [{"dtype": kind, "shape": thinner(wide), "special": True} for _ in range(2)]
        case("select", specs, {}, np.where)


def subscript(wide):
    index, said = [], []
    spoken = chance.randint(0, len(wide))
    rest = chance.random() < 0.3
    gap = chance.randint(0, spoken) if rest else None
    axes = list(range(spoken)) if not rest else list(range(gap)) + list(range(len(wide) - (spoken - gap), len(wide)))
    for place, axis in enumerate(axes):
        if place == gap:
            index.append(Ellipsis)
            said.append("rest")
        if chance.random() < 0.15:
            index.append(None)
            said.append("new")
        n = wide[axis]
        if n > 0 and chance.random() < 0.25:
            at = chance.randint(-n, n - 1)
            index.append(at)
            said.append(at)
        else:
            some = lambda: chance.choice([None, chance.randint(-n - 2, n + 2)])
            start, end, step = some(), some(), chance.choice([1, 1, 1, 2, 3, -1, -1, -2])
            index.append(slice(start, end, step))
            said.append([start, end, step])
    if gap is not None and gap == len(axes):
        index.append(Ellipsis)
        said.append("rest")
    return tuple(index), said


def slicing():
    for _ in range(300):
        wide = shape(chance.randint(1, 4), 1, 7)
        index, said = subscript(wide)
        kind = chance.choice(["f32", "f32", "f64", "i64", "u8", "bool", "f16"])
        case("slice", [{"dtype": kind, "shape": wide, "special": True}], {"index": said}, lambda x, index=index: x[index])


def reductions():
    ops = {"sum": np.sum, "mean": np.mean, "amax": np.max, "amin": np.min, "any": np.any, "all": np.all, "var": np.var,
           "argmax": np.argmax, "argmin": np.argmin}
    for i in range(300):
        name = chance.choice(list(ops))
        chooses = name in ("amax", "amin", "argmax", "argmin")
        wide = shape(chance.randint(1, 4), 1, 6)
        if i % 10 == 0:
            # Longer than a block of the fixed order, along either end.
            wide = chance.choice([[2, 5000], [4500, 3], [9001], [4097, 70]])
        if chooses:
            wide = [n or 1 for n in wide]
        kind = chance.choice(["f32", "f32", "f64"] if name == "var" else ["f32", "f32", "f64", "i64", "i32", "u8", "bool"])
        count = 1 if name.startswith("arg") else chance.randint(1, len(wide))
        axes = chance.sample(range(len(wide)), count)
        axes = [a - len(wide) if chance.random() < 0.3 else a for a in axes]
        keep = chance.random() < 0.3
        special = chooses or name in ("any", "all")
        # Results of the longest would be most of the file.
        if int(np.prod(wide, dtype=np.int64)) > 20000:
            axes = [0]
        specs = [{"dtype": kind, "shape": wide, "special": special}]

        def f(x, name=name, axes=axes, keep=keep):
            axis = axes[0] if name.startswith("arg") else tuple(axes)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                y = ops[name](x, axis=axis, keepdims=keep)
            return y.astype(np.float32) if name == "mean" and x.dtype.kind in "iub" else y

        case(name, specs, {"axes": axes, "keep": keep}, f)


def others():
    for _ in range(40):
        wide = shape(chance.randint(1, 4))
        order = chance.sample(range(len(wide)), len(wide))
        case("permute", [{"dtype": chance.choice(["f32", "i64", "u8"]), "shape": wide}], {"axes": order}, lambda x, o=order: np.transpose(x, o))
    for _ in range(20):
        wide = shape(chance.randint(1, 4))
        case("broadcast_to", [{"dtype": chance.choice(["f32", "i32", "bool"]), "shape": thinner(wide)}], {"shape": wide},
             lambda x, w=wide: np.broadcast_to(x, w))
    for _ in range(30):
        wide, axis = shape(chance.randint(1, 3)), 0
        axis = chance.randint(0, len(wide) - 1)
        kind = chance.choice(["f32", "f64", "i64", "u8"])
        specs = [{"dtype": kind, "shape": wide[:axis] + [chance.randint(0, 4)] + wide[axis + 1:]} for _ in range(chance.choice([1, 2, 3]))]
        case("concat", specs, {"axis": axis}, lambda *xs, a=axis: np.concatenate(xs, a))
    for _ in range(30):
        wide = [n or 1 for n in shape(chance.randint(1, 3))]
        axis = chance.randint(0, len(wide) - 1)
        places = {"dtype": "i64", "shape": shape(chance.randint(0, 2), 1, 4), "under": wide[axis]}
        case("take", [{"dtype": chance.choice(["f32", "i32"]), "shape": wide}, places], {"axis": axis}, lambda x, i, a=axis: np.take(x, i, a))
    for _ in range(20):
        wide = [n or 1 for n in shape(chance.randint(1, 3))]
        axis = chance.randint(0, len(wide) - 1)
        places = {"dtype": "i64", "shape": wide[:axis] + [chance.randint(1, 4)] + wide[axis + 1:], "under": wide[axis]}
        case("gather", [{"dtype": chance.choice(["f64", "i64"]), "shape": wide}, places], {"axis": axis},
             lambda x, i, a=axis: np.take_along_axis(x, i, a))
    for _ in range(60):
        m, k, n = (chance.choice([0, 1, 2, 3, 5, 7, 17]) for _ in range(3))
        lead = shape(chance.randint(0, 2), 1, 3)
        a, b = thinner(lead) + [m, k], thinner(lead) + [k, n]
        a, b = chance.choice([(a, b), (a, b), ([k], b), (a, [k]), ([k], [k])])
        kind = chance.choice(["f32", "f64"])
        case("matmul", [{"dtype": kind, "shape": s} for s in (a, b)], {}, np.matmul)


broadcasting()
slicing()
reductions()
others()
header, data, at = {"__metadata__": {"numpy": np.__version__, "cases": json.dumps(cases, separators=(",", ":"))}}, b"", 0
for i, y in enumerate(results):
    raw = y.tobytes()
    header[str(i)] = {"dtype": NAMES[str(y.dtype)], "shape": list(y.shape), "data_offsets": [at, at + len(raw)]}
    data, at = data + raw, at + len(raw)
head = json.dumps(header, separators=(",", ":")).encode()
head += b" " * (-len(head) % 8)
path = pathlib.Path(__file__).with_name("numpy.safetensors")
path.write_bytes(struct.pack("<Q", len(head)) + head + data)
print(len(cases), "cases,", path.stat().st_size, "bytes")
