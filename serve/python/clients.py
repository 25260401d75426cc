"""Unmodified clients of others ask a server: tritonclient, kserve's client, openai's, curl as TensorFlow Serving's documents
have it, Prometheus' parser.

    clients.py CLIENT HTTP GRPC CASE.json

CASE.json has "rows", "logits" and "classes" of the model "digits". Each answer must have exactly the logits' bits. For
openai's it has "text" besides: how the model "text" goes on with "Once upon", always by its likeliest token.
"""

import asyncio
import json
import subprocess
import sys
import urllib.request

import numpy as np


class Case:
    def __init__(self, path):
        case = json.load(open(path))
        self.rows = np.array(case["rows"], dtype=np.float32)
        self.logits = np.array(case["logits"], dtype=np.float32).reshape(len(self.rows), -1)
        self.classes = np.array(case["classes"], dtype=np.int64)
        self.text = case.get("text")

    def check(self, logits, what):
        found = np.array(logits, dtype=np.float32).reshape(self.logits.shape)
        assert np.array_equal(found, self.logits), f"{what}: {found} is not {self.logits}"


def triton_http(http, grpc, case):
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    with triton.InferenceServerClient(http) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
        assert client.get_server_metadata()["name"] == "elastic"
        assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 64]
        assert client.get_model_config("digits")["max_batch_size"] == 64
        assert client.get_model_repository_index()[0]["state"] == "READY"
        for binary_in in [True, False]:
            for binary_out in [True, False]:
                for packing in [None, "gzip", "deflate"]:
                    tensor = triton.InferInput("input", list(case.rows.shape), "FP32")
                    tensor.set_data_from_numpy(case.rows, binary_data=binary_in)
                    wanted = [
                        triton.InferRequestedOutput(name, binary_data=binary_out)
                        for name in ["logits", "class", "label"]
                    ]
                    answer = client.infer(
                        "digits",
                        [tensor],
                        outputs=wanted,
                        request_id="7",
                        timeout=10_000_000,
                        request_compression_algorithm=packing,
                        response_compression_algorithm=packing,
                    )
                    case.check(answer.as_numpy("logits"), f"http {binary_in} {binary_out} {packing}")
                    assert np.array_equal(answer.as_numpy("class"), case.classes)
                    label = answer.as_numpy("label")[0]
                    label = label.decode() if isinstance(label, bytes) else label
                    assert label == f"digit {case.classes[0]}", label
                    assert answer.get_response()["id"] == "7"
        tensor = triton.InferInput("input", list(case.rows.shape), "FP32").set_data_from_numpy(case.rows)
        top = triton.InferRequestedOutput("logits", class_count=2)
        best = client.infer("digits", [tensor], outputs=[top]).as_numpy("logits")[0][0].decode()
        assert best.split(":")[1] == str(case.classes[0]), best
        case.check(client.infer("digits", [tensor]).as_numpy("logits"), "all outputs")
        case.check(client.async_infer("digits", [tensor]).get_result().as_numpy("logits"), "async")
        assert client.get_inference_statistics("digits")["model_stats"][0]["inference_stats"]["success"]["count"] > 12
        try:
            client.infer("letters", [tensor])
            raise AssertionError("an unknown model answered")
        except InferenceServerException as error:
            assert "unknown model 'letters'" in str(error), error
        client.unload_model("digits")
        assert not client.is_model_ready("digits")
        client.load_model("digits")
        assert client.is_model_ready("digits")


def triton_grpc(http, grpc, case):
    import queue

    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    with triton.InferenceServerClient(grpc) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
        assert client.get_server_metadata().name == "elastic"
        assert list(client.get_model_metadata("digits").inputs[0].shape) == [-1, 64]
        assert client.get_model_config("digits").config.max_batch_size == 64
        assert client.get_model_repository_index().models[0].state == "READY"
        tensor = triton.InferInput("input", list(case.rows.shape), "FP32")
        tensor.set_data_from_numpy(case.rows)
        wanted = [triton.InferRequestedOutput("logits"), triton.InferRequestedOutput("label")]
        answer = client.infer("digits", [tensor], outputs=wanted, request_id="7", client_timeout=10)
        case.check(answer.as_numpy("logits"), "grpc")
        assert answer.as_numpy("label")[0].decode() == f"digit {case.classes[0]}"
        got = queue.Queue()
        client.start_stream(lambda result, error: got.put((result, error)))
        for _ in range(3):
            client.async_stream_infer("digits", [tensor])
        for _ in range(3):
            result, error = got.get(timeout=20)
            assert error is None, error
            case.check(result.as_numpy("logits"), "stream")
        client.stop_stream()
        assert client.get_inference_statistics("digits").model_stats[0].inference_stats.success.count >= 4
        try:
            client.infer("letters", [tensor])
            raise AssertionError("an unknown model answered")
        except InferenceServerException as error:
            assert "unknown model 'letters'" in str(error), error
        client.unload_model("digits")
        assert not client.is_model_ready("digits")
        client.load_model("digits")
        assert client.is_model_ready("digits")


def kserve(http, grpc, case):
    import logging

    logging.disable(logging.CRITICAL)
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
    from kserve.inference_client import RESTConfig

    def request():
        tensor = InferInput("input", list(case.rows.shape), "FP32")
        tensor.set_data_from_numpy(case.rows, binary_data=False)
        return InferRequest("digits", [tensor])

    async def ask():
        url = f"http://{http}"
        v2 = InferenceRESTClient(RESTConfig(protocol="v2"))
        assert await v2.is_server_live(url) and await v2.is_server_ready(url)
        assert await v2.is_model_ready(url, "digits")
        answer = await v2.infer(url, request(), model_name="digits")
        logits = next(output for output in answer.outputs if output.name == "logits")
        case.check(logits.as_numpy(), "kserve v2")
        v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
        assert await v1.is_server_live(url)
        assert await v1.is_model_ready(url, "digits")
        answer = await v1.infer(url, {"instances": case.rows.tolist()}, model_name="digits")
        case.check([row["logits"] for row in answer["predictions"]], "kserve v1")
        client = InferenceGRPCClient(grpc)
        assert await client.is_server_ready() and await client.is_model_ready("digits")
        answer = await client.infer(request())
        logits = next(output for output in answer.outputs if output.name == "logits")
        case.check(logits.as_numpy(), "kserve grpc")
        await client.close()

    asyncio.run(ask())


def curl(http, grpc, case):
    """The lines of TensorFlow Serving's page on its REST, with our model's name and numbers."""

    def run(*arguments):
        output = subprocess.run(["curl", "-sS", *arguments], check=True, capture_output=True, text=True).stdout
        return json.loads(output)

    base = f"http://{http}/v1/models/digits"
    status = run(base)["model_version_status"]
    expected = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert status == [expected], status
    metadata = run(f"{base}/metadata")
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert metadata["model_spec"]["name"] == "digits" and signature["inputs"]["input"]["dtype"] == "DT_FLOAT"
    rows = case.rows.tolist()
    body = json.dumps({"signature_name": "serving_default", "instances": rows})
    for path in [f"{base}:predict", f"{base}/versions/1:predict"]:
        answer = run("-d", body, "-X", "POST", path)
        case.check([row["logits"] for row in answer["predictions"]], path)
    named = run("-d", json.dumps({"instances": [{"input": row} for row in rows]}), f"{base}:predict")
    case.check([row["logits"] for row in named["predictions"]], "named")
    columns = run("-d", json.dumps({"inputs": {"input": rows}}), f"{base}:predict")
    case.check(columns["outputs"]["logits"], "columns")
    classes = run("-d", json.dumps({"examples": [{"input": row} for row in rows]}), f"{base}:classify")
    assert [row[0][0] for row in classes["results"]] == [f"digit {c}" for c in case.classes], classes
    wrong = run("-d", '{"instances": []}', f"{base}:predict")
    assert wrong == {"error": "No values in 'instances' array"}, wrong
    models = run(f"http://{http}/v1/models")
    assert models["models"] == ["digits"] and models["data"][0]["id"] == "digits" and models["object"] == "list", models


def openai(http, grpc, case):
    import openai

    with openai.OpenAI(base_url=f"http://{http}/v1", api_key="none", max_retries=0, timeout=30) as client:
        models = client.models.list()
        assert sorted(model.id for model in models) == ["digits", "text"], models
        card = client.models.retrieve("text")
        assert (card.id, card.object, card.owned_by) == ("text", "model", "elastic") and card.created > 1_600_000_000
        ask = {"model": "text", "prompt": "Once upon", "max_tokens": 20, "temperature": 0}
        whole = client.completions.create(**ask)
        assert whole.object == "text_completion" and whole.model == "text" and whole.id.startswith("cmpl-")
        choice = whole.choices[0]
        assert (choice.index, choice.text, choice.finish_reason) == (0, case.text, "length"), choice
        usage = whole.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (9, 20, 29), usage
        pieces = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        assert "".join(piece.choices[0].text for piece in pieces[:-1]) == case.text
        assert len(pieces) > 3 and pieces[-1].choices == [] and pieces[-1].usage == usage
        several = {**ask, "prompt": ["Once upon", "a"], "n": 2, "temperature": 0.9, "seed": 4, "stop": ["\n"]}
        first, second = client.completions.create(**several), client.completions.create(**several)
        assert [choice.index for choice in first.choices] == [0, 1, 2, 3] and first.choices == second.choices
        streamed = ["", "", "", ""]
        for piece in client.completions.create(**several, stream=True):
            streamed[piece.choices[0].index] += piece.choices[0].text
        assert streamed == [choice.text for choice in first.choices]
        scored = client.completions.create(model="text", prompt="Once upon", max_tokens=0, echo=True, logprobs=2)
        logs = scored.choices[0].logprobs
        assert len(logs.tokens) == 9 and logs.token_logprobs[0] is None and max(logs.token_logprobs[1:]) < 0
        assert len(logs.top_logprobs[1]) in (2, 3) and logs.text_offset == list(range(9))
        # A client that has heard enough.
        with client.completions.create(**{**ask, "max_tokens": 50}, stream=True) as stream:
            next(iter(stream))
        for wrong, kind, param in [
            ({"model": "letters"}, openai.NotFoundError, "model"),
            ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
            ({"prompt": "x" * 100}, openai.BadRequestError, "prompt"),
            ({"n": 1000}, openai.BadRequestError, "n"),
            ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ]:
            try:
                client.completions.create(**{**ask, **wrong})
                raise AssertionError(f"{wrong} was answered")
            except openai.APIStatusError as error:
                assert isinstance(error, kind) and error.param == param, (wrong, error, error.param)


def prometheus(http, grpc, case):
    from prometheus_client.parser import text_string_to_metric_families

    body = json.dumps({"instances": case.rows.tolist()}).encode()
    for _ in range(3):
        urllib.request.urlopen(f"http://{http}/v1/models/digits:predict", body).read()
    text = urllib.request.urlopen(f"http://{http}/metrics").read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(family.type != "unknown" and family.documentation for family in families.values())
    value = lambda name: [s.value for s in families[name].samples if s.labels.get("model") == "digits"]
    assert value("nv_inference_request_success") == [3.0], value("nv_inference_request_success")
    assert value("nv_inference_count") == [3.0 * len(case.rows)]
    assert 1 <= value("nv_inference_exec_count")[0] <= 3
    assert set(s.labels["reason"] for s in families["nv_inference_request_failure"].samples) == {
        "REJECTED",
        "CANCELED",
        "BACKEND",
        "OTHER",
    }
    assert families["elastic_serve_request_seconds"].type == "histogram"


if __name__ == "__main__":
    client, http, grpc, path = sys.argv[1:]
    {
        "triton-http": triton_http,
        "triton-grpc": triton_grpc,
        "kserve": kserve,
        "curl": curl,
        "openai": openai,
        "prometheus": prometheus,
    }[client](http, grpc, Case(path))
    print(f"{client}: ok")
