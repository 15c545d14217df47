"""The open inference protocol through its own client, in JSON and in binary."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from support.serving import get, post
from tritonclient.utils import InferenceServerException

from toolkit.engine import Engine

NAMES = ("input_ids", "attention_mask", "token_type_ids")
MASKS = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]  # whole, padded right, padded left


@pytest.fixture(scope="module")
def client(served: Callable[[str], str]) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served("embedding").removeprefix("http://")) as found:
        yield found


def tensors() -> dict[str, NDArray[Any]]:
    ids = np.random.default_rng(0).integers(5, 100, (3, 5))
    return dict(zip(NAMES, (ids, np.array(MASKS), np.zeros_like(ids)), strict=True))


def inputs_of(arrays: dict[str, NDArray[Any]], is_binary: bool) -> list[triton.InferInput]:
    inputs = []
    for name, array in arrays.items():
        kind = {"int64": "INT64", "int32": "INT32"}[str(array.dtype)]
        inputs.append(triton.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array, binary_data=is_binary)
    return inputs


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_the_client_gets_what_the_engine_computes(
    client: triton.InferenceServerClient,
    exports: Callable[[str], Path],
    is_binary: bool,
    kind: Any,
) -> None:
    arrays: dict[str, Any] = {name: array.astype(kind) for name, array in tensors().items()}
    output = triton.InferRequestedOutput("last_hidden_state", binary_data=is_binary)
    answer = client.infer("embedding", inputs_of(arrays, is_binary), outputs=[output],
                          request_id="7")  # fmt: skip
    expected = Engine.load(exports("embedding"), num_threads=1).run(arrays)["last_hidden_state"]
    found = answer.as_numpy("last_hidden_state")
    assert answer.get_response()["id"] == "7"
    real = np.array(MASKS) == 1
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)
    assert found.dtype == np.float32
    if is_binary:
        unasked = client.infer("embedding", inputs_of(arrays, True))  # all outputs, in binary
        np.testing.assert_array_equal(unasked.as_numpy("last_hidden_state")[real], found[real])


def test_the_client_learns_what_there_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("embedding")
    assert client.is_model_ready("embedding", "1")
    assert not client.is_model_ready("another")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    found = client.get_model_metadata("embedding")
    assert [one["name"] for one in found["inputs"]] == list(NAMES)
    assert found["outputs"] == [
        {"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, 16]}
    ]


def test_a_wrong_id_is_told_and_fails_nobody_else(client: triton.InferenceServerClient) -> None:
    arrays = tensors()
    arrays["input_ids"][1, 1] = 10**6
    with pytest.raises(InferenceServerException, match="input_ids"):
        client.infer("embedding", inputs_of(arrays, True))
    with pytest.raises(InferenceServerException, match="unknown model: there is embedding"):
        client.infer("another", inputs_of(tensors(), True))


def changed(**changes: Any) -> dict[str, Any]:
    """A request of one text of two tokens, with another first input."""
    first = {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": [5, 6]} | changes
    others = [
        {"name": name, "shape": [1, 2], "datatype": "INT64", "data": [1, 1] if i else [0, 0]}
        for i, name in enumerate(("token_type_ids", "attention_mask"))
    ]
    return {"inputs": [first, *others]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (changed(data=[5]), "has 2 numbers; got 1"),
        (changed(data=["x", 6]), "`data` must be a list of whole numbers"),
        (changed(data=["5", 6]), "`data` must be a list of whole numbers"),
        (changed(data=[5.5, 6]), "`data` must be a list of whole numbers"),
        (changed(data=[5, 2**40]), "32-bit"),
        (changed(data=[5, 2**64 - 1]), "`data` must be a list of whole numbers"),
        (changed(data=[5, 2**70]), "`data` must be a list of whole numbers"),
        (changed(data=[[[5], 6]]), "`data` must be a list of whole numbers"),
        (changed(shape=[1, -2]), "a shape must be positive"),
        (changed(shape=[2]), "inputs.0.shape"),
        (changed(datatype="FP32"), "inputs.0.datatype"),
        (changed(shape=[2, 1]), "all of one shape"),
        (changed(name="words"), "an unknown input"),
        (changed() | {"outputs": [{"name": "logits"}]}, "an unknown output"),
        (changed(parameters={"binary_data_size": 16}, data=None), "has 16 bytes; got 0"),
        (b"{", "not JSON"),
        ({"inputs": []}, "expected input_ids, attention_mask, token_type_ids"),
    ],
)
def test_a_damaged_request_gets_a_sentence(
    served: Callable[[str], str], body: Any, says: str
) -> None:
    status, answer = post(f"{served('embedding')}/v2/models/embedding/infer", body)
    assert status == 400
    assert says in answer["error"]


def test_a_right_request_passes_and_a_wrong_header_does_not(served: Callable[[str], str]) -> None:
    url = f"{served('embedding')}/v2/models/embedding/infer"
    status, answer = post(url, changed(data=[[5, 6]]))
    assert status == 200
    assert answer["outputs"][0]["shape"] == [1, 2, 16]
    for header in ("9999999", "x", "-1"):
        found = post(url, changed(), **{"Inference-Header-Content-Length": header})
        assert found[0] == 400
        assert "Inference-Header-Content-Length must be in" in found[1]["error"]
    assert post(url, json.dumps(changed()).encode() + b"\0", **{
        "Inference-Header-Content-Length": str(len(json.dumps(changed())))
    })[1] == {"error": "there are more bytes than the tensors announce"}  # fmt: skip
    assert json.loads(get(f"{served('embedding')}/v2")[1])["name"] == "toolkit"
