"""Reads a folder with TensorBoard's own reader and prints what it found, as JSON: for each tag [[step, value], ...]."""

import json
import math
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


def main(folder):
    # 0: keep all, where the reader would else keep a sample.
    everything = {"scalars": 0, "tensors": 0}
    found = EventAccumulator(folder, size_guidance=everything)
    found.Reload()
    tags = found.Tags()
    number = lambda x: x if math.isfinite(x) else None
    scalars = {tag: [[e.step, number(e.value)] for e in found.Scalars(tag)] for tag in tags["scalars"]}
    text = {tag: [make_ndarray(e.tensor_proto).item().decode() for e in found.Tensors(tag)] for tag in tags["tensors"]}
    plugins = {tag: found.SummaryMetadata(tag).plugin_data.plugin_name for tag in tags["tensors"]}
    print(json.dumps({"scalars": scalars, "text": text, "plugins": plugins}))


main(sys.argv[1])
