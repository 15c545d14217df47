"""Small exports to serve, and a server of them in this process."""

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import uvicorn
from numpy.typing import NDArray

from toolkit.config import default_serve
from toolkit.serving.app import make_app
from toolkit.serving.model import Model, load_model
from toolkit.tasks.demo import make_tokenizer

OPTIMUM = Path(__file__).parents[1] / "data" / "optimum"
HIDDEN, MAX_TOKENS = 16, 64


def write_export(folder: Path, head: str, num_labels: int = 2, **facts: Any) -> Path:
    """Write an export with random weights, without torch: a file of optimum's with another head.

    Args:
        folder: Not there yet.
        head: `qa`, `base` (hidden states), `tok`, `seq`.
        num_labels: Classes of the last two.
        facts: For `config.json`.
    """
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    kind = "text-classification-O2" if head == "seq" else "question-answering"
    model = onnx.load(OPTIMUM / f"bert-{kind}.onnx")
    random = np.random.default_rng(0)
    tables = {
        "bert.embeddings.word_embeddings.weight": (tokenizer.get_vocab_size(), HIDDEN),
        "bert.embeddings.position_embeddings.weight": (MAX_TOKENS, HIDDEN),
        "classifier.weight": (num_labels, HIDDEN),
        "classifier.bias": (num_labels,),
    }
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.name in tables:
            value = random.normal(size=tables[tensor.name]).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    if head in ("base", "tok"):
        _replace_head(graph, head, random.normal(size=(HIDDEN, num_labels)).astype(np.float32))
    onnx.save(model, folder / "model.onnx")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "bert", "pad_token_id": 0, "max_position_embeddings": MAX_TOKENS}
    (folder / "config.json").write_text(json.dumps(config | facts))
    return folder


def _replace_head(graph: onnx.GraphProto, head: str, weight: NDArray[np.float32]) -> None:
    """Put hidden states, or logits of tokens, in place of a question answering head."""
    first = next(i for i, node in enumerate(graph.node) if node.name == "/qa_outputs/MatMul")
    hidden = graph.node[first].input[0]
    del graph.node[first:], graph.output[:]
    if head == "base":
        (last,) = (node for node in graph.node if hidden in node.output)
        for node in graph.node:
            node.input[:] = ["last_hidden_state" if x == hidden else x for x in node.input]
        last.output[:] = ["last_hidden_state"]
        name, width = "last_hidden_state", HIDDEN
    else:
        graph.initializer.append(onnx.numpy_helper.from_array(weight, "tok"))
        graph.node.append(onnx.helper.make_node("MatMul", [hidden, "tok"], ["logits"], "logits"))
        name, width = "logits", weight.shape[1]
    shape: list[str | int | None] = ["batch_size", "sequence_length", width]
    graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))


@contextmanager
def serving(export: Path, load: Any = load_model, **changes: Any) -> Iterator[str]:
    """Serve an export on a free port of this machine, as `toolkit serve` would; yields its URL.

    Args:
        export: The folder.
        load: As of `make_app`.
        changes: Values of the group serve, such as `max_batch=4`.
    """
    named = {f"serve.{name}": value for name, value in changes.items()}
    config = default_serve(str(export), **{"engine.num_threads": 1}, **named)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(make_app(config, load), lifespan="on", access_log=False, log_config=None)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def slowly(seconds: float) -> Any:
    """Make a `load` whose engine takes `seconds` longer for every batch."""

    def load(config: Any) -> Model:
        from dataclasses import replace

        model = load_model(config)

        def run(inputs: Any) -> Any:
            time.sleep(seconds)
            return model.run(inputs)

        return replace(model, run=run)

    return load


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Send JSON (or bytes as they are); returns status and JSON of the answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def get(url: str, **headers: str) -> tuple[int, str]:
    """Return status and text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
