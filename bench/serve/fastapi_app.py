"""FastAPI with torch on uvicorn (uvloop and httptools): fastapi_app.py NAME WIDTH PORT [WEIGHTS]

The handler is async and computes in place, which is the fastest for models as small as these: a thread pool costs more.
"""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

import peer_models

name, width, port, weights = [*sys.argv[1:], ""][:4]
model = peer_models.load(name, weights)
app = FastAPI()


class Ask(BaseModel):
    inputs: list[list[float]]


class Answer(BaseModel):
    outputs: list[list[float]]


@app.get("/ready")
async def ready() -> dict:
    return {"ready": True}


@app.post("/predict")
async def predict(ask: Ask) -> Answer:
    if name == "echo":
        return Answer(outputs=ask.inputs)
    return Answer(outputs=model(torch.tensor(ask.inputs)).tolist())


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False, backlog=2048)
