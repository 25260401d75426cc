"""Compares exported models with the logits of the bundles that they were made of.

check.py onnx|hf PLACE: in every folder of PLACE lie the exports, each in a folder called as its format, and answers.npz:
inputs x0, x1, ... and our logits y0, y1, ...; of a job in bf16 also the logits that the bundle itself answers, bf16_y0, ...
One line `ok NAME: ...` for each folder. The first that differs ends it.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

# Of max|ours|. What f32 and bf16 differ by is measured and only kept from growing.
TOLERANCE = 1e-5
BF16_TOLERANCE = 5e-2


def safetensors(path):
    """By hand: what is checked is the file, not a library."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert length % 8 == 0 and list(header) == sorted(header)
    tensors, at = {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert begin == at and entry["dtype"] == "F32", name
        at = end
        tensors[name] = np.frombuffer(raw[8 + length + begin : 8 + length + end], "<f4").reshape(entry["shape"])
    assert 8 + length + at == len(raw)
    return tensors


def same_weights(folder):
    ours = safetensors(folder / "safetensors" / "model.safetensors")
    with np.load(folder / "npz" / "weights.npz", allow_pickle=False) as npz:
        assert npz.files == sorted(ours)
        for name, tensor in ours.items():
            assert npz[name].dtype == np.float32 and npz[name].tobytes() == tensor.tobytes(), name
            assert npz[name].shape == tensor.shape, name
    return len(ours)


def differences(folder, answer):
    """The largest difference of any input from ours, and from the bundle's own answer of a job in bf16."""
    answers = np.load(folder / "answers.npz")
    count = int(answers["count"][0])
    worst = {"y": 0.0, "bf16_y": 0.0}
    for at in range(count):
        x = answers[f"x{at}"]
        theirs = answer(x)
        for kind in worst:
            if f"{kind}{at}" not in answers.files:
                continue
            ours = answers[f"{kind}{at}"]
            assert theirs.shape == ours.shape and theirs.dtype == np.float32, (theirs.shape, ours.shape, theirs.dtype)
            assert np.isfinite(theirs).all() and np.abs(ours).max() > 0
            worst[kind] = max(worst[kind], float(np.abs(theirs - ours).max() / np.abs(ours).max()))
    said = f"{count} inputs within {worst['y']:.1e} of the largest logit"
    if worst["bf16_y"]:
        said += f", {worst['bf16_y']:.1e} of the bundle's own in bf16"
    return worst["y"] <= TOLERANCE and worst["bf16_y"] <= BF16_TOLERANCE, said


def check_onnx(folder):
    import onnx
    import onnxruntime

    said = ""
    if (folder / "npz").exists():
        said = f"{same_weights(folder)} tensors the same in npz and safetensors, "
    path = folder / "onnx" / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)] and model.ir_version == 8
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (wanted,) = session.get_outputs()
    assert given.name in ("input", "tokens") and given.shape[0] == "batch" and wanted.name == "logits"
    assert given.name == "input" or (given.type, given.shape) == ("tensor(int64)", ["batch", "sequence"])
    fine, rest = differences(folder, lambda x: session.run(None, {given.name: x})[0])
    return fine, said + rest


def check_hf(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    path = folder / "hf"
    model, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    model.eval()
    left = {key: names for key, names in loading.items() if names}
    assert not left, left
    assert type(model).__name__ == json.loads((path / "config.json").read_text())["architectures"][0]
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = json.loads((folder / "texts.json").read_text())
    for text, tokens in texts:
        theirs = tokenizer(text)["input_ids"]
        assert theirs == tokens, (text, theirs, tokens)
        assert tokenizer.decode(tokens) == text, (text, tokenizer.decode(tokens))
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == model.config.eos_token_id
    with torch.no_grad():
        fine, said = differences(folder, lambda x: model(torch.from_numpy(x)).logits.numpy())
        start = torch.tensor([[1, 2, 3]])
        greedy = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=4, do_sample=False)
        assert greedy.shape[1] <= 7
    return fine, f"{type(model).__name__}, {len(texts)} texts, {said}"


def main():
    what, place = sys.argv[1:]
    for folder in sorted(Path(place).iterdir()):
        fine, said = {"onnx": check_onnx, "hf": check_hf}[what](folder)
        print("ok" if fine else "DIFFERS", f"{folder.name}: {said}", flush=True)
        if not fine:
            sys.exit(1)


main()
