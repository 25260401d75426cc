"""Triton with its Python backend, as pytriton sets it up: triton_app.py NAME WIDTH PORT [WEIGHTS]"""

import os
import signal
import sys
import sysconfig
import threading

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

import peer_models

# Triton's Python process links whichever libpython the system finds; it must be that of the Python around us, whose
# standard library it reads.
os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")

name, width, port, weights = [*sys.argv[1:], ""][:4]
width = int(width)
classes = width if name == "echo" else 10
model = peer_models.load(name, weights)


@batch
def infer(input):
    if name == "echo":
        return {"logits": input}
    return {"logits": model(torch.from_numpy(input)).numpy()}


config = TritonConfig(http_address="127.0.0.1", http_port=int(port), allow_grpc=False, allow_metrics=False, log_verbose=0)
with Triton(config=config) as triton:
    triton.bind(
        model_name=name,
        infer_func=infer,
        inputs=[Tensor(name="input", dtype=np.float32, shape=(width,))],
        outputs=[Tensor(name="logits", dtype=np.float32, shape=(classes,))],
        # What ours does by default: up to 64 rows, and no waiting for more.
        config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
    )
    triton.run()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()
