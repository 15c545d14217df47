"""Tensors in, tensors out: the open inference protocol, version 2, over HTTP.

A request's rows join other requests' texts in the queue, one by one. With its extension for binary
data, tensors follow the JSON as raw bytes; the header Inference-Header-Content-Length says where.

Source: https://github.com/kserve/open-inference-protocol, and Triton's binary data extension.
"""

import math
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from toolkit.serving.errors import RequestError
from toolkit.serving.journal import Trace
from toolkit.serving.service import Service

DATATYPES: dict[str, np.dtype[Any]] = {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8")}
LENGTH_HEADER = "Inference-Header-Content-Length"


class Parameters(BaseModel):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False


class InputTensor(BaseModel):
    name: str
    shape: list[int] = Field(min_length=2, max_length=2)
    datatype: Literal["INT32", "INT64"]
    parameters: Parameters = Parameters()
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    name: str
    parameters: Parameters = Parameters()


class InferRequest(BaseModel):
    id: str | None = None
    parameters: Parameters = Parameters()
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None


def tensor_routes(service: Service) -> APIRouter:
    """Make the routes of a served model."""
    router, model = APIRouter(prefix="/v2"), service.model

    def check_name(name: str, number: str = "1") -> None:
        if (name, number) != (model.name, "1"):
            raise RequestError("Validation", f"unknown model: there is {model.name}, 1", 404)

    @router.get("")
    async def server() -> dict[str, Any]:
        return {
            "name": "toolkit",
            "version": version("toolkit"),
            "extensions": ["binary_tensor_data"],
        }

    @router.get("/health/live")
    @router.get("/health/ready")
    async def ready() -> Response:
        if not service.batcher.is_alive:
            raise RequestError("Unhealthy", "unhealthy")
        return Response()

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/{number}/ready")
    async def model_ready(name: str, number: str = "1") -> Response:
        check_name(name, number)
        return await ready()

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{number}")
    async def metadata(name: str, number: str = "1") -> dict[str, Any]:
        check_name(name, number)
        outputs = {
            key: [-1, *(-1 if size is None else size for size in shape)]
            for key, shape in model.outputs.items()
        }
        return {
            "name": model.name,
            "versions": ["1"],
            "platform": "toolkit_sparse",
            "inputs": [
                {"name": key, "datatype": "INT64", "shape": [-1, -1]} for key in model.inputs
            ],
            "outputs": [
                {"name": key, "datatype": "FP32", "shape": shape} for key, shape in outputs.items()
            ],
        }

    @router.post("/models/{name}/infer")
    @router.post("/models/{name}/versions/{number}/infer")
    async def infer(name: str, request: Request, number: str = "1") -> Response:
        check_name(name, number)
        asked, arrays = read_request(await request.body(), request.headers.get(LENGTH_HEADER))
        for key in arrays:
            if key not in model.inputs:
                known = ", ".join(model.inputs)
                raise RequestError("Validation", f"an unknown input: expected {known}", 400)
        outputs = await _run(service, request.scope["trace"], arrays)
        wanted = asked.outputs or [RequestedOutput(name=key) for key in model.outputs]
        for output in wanted:
            if output.name not in outputs:
                known = ", ".join(outputs)
                raise RequestError("Validation", f"an unknown output: there is {known}", 400)
        return write_response(model.name, asked, {one.name: outputs[one.name] for one in wanted})

    return router


def read_request(body: bytes, header: str | None) -> tuple[InferRequest, dict[str, NDArray[Any]]]:
    """Read a request and its tensors (B, T).

    Args:
        body: JSON, then what tensors it announces as binary.
        header: Bytes of the JSON, as a number; None if that is all.

    Raises:
        RequestError: It is damaged.
    """
    length = len(body)
    if header is not None:
        if not header.isdigit() or int(header) > len(body):
            raise RequestError("Validation", f"{LENGTH_HEADER} must be in [0, {len(body)}]", 400)
        length = int(header)
    try:
        asked = InferRequest.model_validate(orjson.loads(body[:length]))
    except orjson.JSONDecodeError:
        raise RequestError("Validation", "the request is not JSON", 400) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RequestError("Validation", f"{place}: {first['msg']}", 400) from None
    arrays, offset = {}, length
    for tensor in asked.inputs:
        arrays[tensor.name], offset = _read_tensor(tensor, body, offset)
    if offset != len(body):
        raise RequestError("Validation", "there are more bytes than the tensors announce", 400)
    return asked, arrays


def write_response(model: str, asked: InferRequest, outputs: dict[str, NDArray[Any]]) -> Response:
    """Spell outputs as asked for: in the JSON, or as bytes behind it."""
    wanted = {output.name: output.parameters.binary_data for output in asked.outputs or []}
    tensors, tail = [], []
    for name, array in outputs.items():
        array = np.ascontiguousarray(array, "<f4")
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": array.shape}
        is_binary = wanted.get(name)
        if asked.parameters.binary_data_output if is_binary is None else is_binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        else:
            tensor["data"] = array.ravel()
        tensors.append(tensor)
    content = {"model_name": model, "model_version": "1", "outputs": tensors}
    if asked.id is not None:
        content["id"] = asked.id
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return Response(text, media_type="application/json")
    headers = {LENGTH_HEADER: str(len(text))}
    return Response(b"".join([text, *tail]), 200, headers, "application/octet-stream")


def _read_tensor(tensor: InputTensor, body: bytes, offset: int) -> tuple[NDArray[Any], int]:
    datatype, count = DATATYPES[tensor.datatype], math.prod(tensor.shape)
    if min(tensor.shape) < 1:
        raise RequestError("Validation", f"a shape must be positive; got {tensor.shape}", 400)
    size = tensor.parameters.binary_data_size
    if size is None:
        try:
            array = np.array(tensor.data or [0]).ravel()
        except ValueError:  # lists of different lengths
            array = np.array([""])
        if array.dtype.kind not in "iu":
            raise RequestError("Validation", "`data` must be a list of whole numbers", 400)
        array = array.astype(np.int64)
    else:
        if size != count * datatype.itemsize or offset + size > len(body):
            said = f"a tensor of shape {tensor.shape} has {count * datatype.itemsize} bytes"
            raise RequestError("Validation", f"{said}; got {min(size, len(body) - offset)}", 400)
        array = np.frombuffer(body, datatype, count, offset)
        offset += size
    if array.size != count:
        said = f"a tensor of shape {tensor.shape} has {count} numbers; got {array.size}"
        raise RequestError("Validation", said, 400)
    return array.reshape(tensor.shape), offset


async def _run(
    service: Service, trace: Trace, arrays: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run the rows of a request, and put their outputs together again."""
    inputs = service.model.inputs
    shapes = {array.shape for array in arrays.values()}
    if set(arrays) != set(inputs) or len(shapes) != 1:
        said = f"expected {', '.join(inputs)}, all of one shape"
        raise RequestError("Validation", said, 400)
    ((rows, _),) = shapes
    service.check_count(rows)
    features = [{name: arrays[name][row] for name in inputs} for row in range(rows)]
    answers = await service.run_features(trace, features)
    return {
        name: np.stack([answer.outputs[name] for answer in answers])
        for name in service.model.outputs
    }
