"""Texts in, answers out: the routes of text-embeddings-inference, OpenAI's, and two of our own.

Fields, answers and errors are those of its OpenAPI description. `POST /` is the route of the
model's kind, as there; a body with `parameters` is the hub's, whose clients expect lists of lists.
"""

import base64
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from toolkit.serving.answers import Aggregation, normalized, pooled, scores_of, tags
from toolkit.serving.errors import RequestError
from toolkit.serving.journal import Trace
from toolkit.serving.model import Kind, Text
from toolkit.serving.service import Service
from toolkit.tasks.answers import likely_answers

Ids = list[int]
Input = str | Ids | list[str | Ids]
Side = Literal["left", "right", "Left", "Right"]
Pair = Annotated[list[str], Field(min_length=1, max_length=2)]


class Cut(BaseModel):
    """What every request on texts may say about those that are too long."""

    truncate: bool | None = None
    truncation_direction: Side = "right"


class EmbedRequest(Cut):
    inputs: Input
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: int | None = None


class EmbedAllRequest(Cut):
    inputs: Input
    prompt_name: str | None = None


class SimilarityInput(BaseModel):
    source_sentence: str
    sentences: list[str]


class SimilarityParameters(Cut):
    prompt_name: str | None = None


class SimilarityRequest(BaseModel):
    inputs: SimilarityInput
    parameters: SimilarityParameters | None = None


class OpenAIRequest(BaseModel):
    input: Input
    model: str | None = None
    user: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class PredictParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None


class PredictRequest(Cut):
    inputs: str | Pair | list[Pair]
    raw_scores: bool = False
    parameters: PredictParameters | None = None


class RerankRequest(Cut):
    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


class TokenizeRequest(BaseModel):
    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(BaseModel):
    ids: Ids | list[Ids]
    skip_special_tokens: bool = True


class Question(BaseModel):
    question: str
    context: str


class AnswerParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    top_k: Annotated[int, Field(ge=1, le=100)] = 1
    max_answer_len: Annotated[int, Field(ge=1)] = 15
    handle_impossible_answer: bool = False
    align_to_words: bool = True


class AnswerRequest(BaseModel):
    inputs: Question
    parameters: AnswerParameters = AnswerParameters()


class TagParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    aggregation_strategy: Aggregation = "simple"
    ignore_labels: list[str] = ["O"]


class TagRequest(Cut):
    inputs: str | list[str]
    parameters: TagParameters = TagParameters()


def text_routes(service: Service) -> APIRouter:
    """Make the routes of a served model."""
    router, model = APIRouter(), service.model

    async def vectors_of(request: Request, body: Any, inputs: Input) -> NDArray[np.float32]:
        """Return the embeddings (B, D) of a request, not normalized."""
        service.expect(Kind.embedding)
        texts = _prompted(service, _texts(service, inputs), getattr(body, "prompt_name", None))
        side = body.truncation_direction.lower() if isinstance(body, Cut) else "right"
        truncate = body.truncate if isinstance(body, Cut) else None
        _, answers = await service.run_texts(_trace(request), texts, truncate, side)
        return np.stack([pooled(a.outputs["last_hidden_state"], model.pooling) for a in answers])

    @router.post("/embed")
    async def embed(body: EmbedRequest, request: Request) -> Response:
        vectors = _cut_dimensions(await vectors_of(request, body, body.inputs), body.dimensions)
        return _json(normalized(vectors) if body.normalize else vectors)

    @router.post("/embed_all")
    async def embed_all(body: EmbedAllRequest, request: Request) -> Response:
        service.expect(Kind.embedding)
        texts = _prompted(service, _texts(service, body.inputs), body.prompt_name)
        side = body.truncation_direction.lower()
        _, answers = await service.run_texts(_trace(request), texts, body.truncate, side)
        return _json([np.ascontiguousarray(a.outputs["last_hidden_state"]) for a in answers])

    @router.post("/similarity")
    async def similarity(body: SimilarityRequest, request: Request) -> Response:
        said, parameters = body.inputs, body.parameters or SimilarityParameters()
        if not said.sentences:
            raise RequestError("Validation", "`inputs.sentences` cannot be empty", 422)
        texts: list[str | list[int]] = [said.source_sentence, *said.sentences]
        vectors = await vectors_of(request, parameters, texts)
        unit = normalized(vectors)
        return _json(unit[1:] @ unit[0])

    @router.post("/v1/embeddings")
    @router.post("/embeddings")
    async def openai_embed(body: OpenAIRequest, request: Request) -> Response:
        vectors = _cut_dimensions(await vectors_of(request, body, body.input), body.dimensions)
        found: list[Any] = list(normalized(vectors))
        if body.encoding_format == "base64":
            found = [base64.b64encode(vector.astype("<f4")).decode() for vector in found]
        data = [{"object": "embedding", "embedding": v, "index": i} for i, v in enumerate(found)]
        tokens = _trace(request).tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "data": data, "model": model.name, "usage": usage})

    @router.post("/predict")
    async def predict(body: PredictRequest, request: Request) -> Response:
        service.expect(Kind.classifier, Kind.reranker)
        is_batch = not isinstance(body.inputs, str) and not isinstance(body.inputs[0], str)
        inputs: Any = body.inputs if is_batch else [body.inputs]
        texts = [_text_or_pair(text) for text in inputs]
        side = body.truncation_direction.lower()
        _, answers = await service.run_texts(_trace(request), texts, body.truncate, side)
        wanted = body.parameters or PredictParameters()
        function = wanted.function_to_apply or ("none" if body.raw_scores else None)
        predictions = []
        for answer in answers:
            scores = scores_of(answer.outputs["logits"], function, model.is_multi_label)
            order = np.argsort(-scores, kind="stable")[: wanted.top_k]
            predictions.append([{"score": scores[i], "label": model.labels[i]} for i in order])
        is_flat = not is_batch and body.parameters is None
        return _json(predictions[0] if is_flat else predictions)

    @router.post("/rerank")
    async def rerank(body: RerankRequest, request: Request) -> Response:
        service.expect(Kind.reranker)
        pairs: list[Text] = [(body.query, text) for text in body.texts]
        side = body.truncation_direction.lower()
        _, answers = await service.run_texts(_trace(request), pairs, body.truncate, side)
        function = "none" if body.raw_scores else None
        scores = np.array([scores_of(a.outputs["logits"], function, False)[0] for a in answers])
        ranks = [
            {"index": int(i), "score": scores[i]}
            | ({"text": body.texts[i]} if body.return_text else {})
            for i in np.argsort(-scores, kind="stable")
        ]
        return _json(ranks)

    @router.post("/answer")
    async def answer(body: AnswerRequest, request: Request) -> Response:
        service.expect(Kind.question_answering)
        said, wanted = body.inputs, body.parameters
        windows, answers = await service.run_question(_trace(request), said.question, said.context)
        found = likely_answers(
            said.context,
            [
                (window, a.outputs["start_logits"], a.outputs["end_logits"])
                for window, a in zip(windows, answers, strict=True)
            ],
            wanted.top_k,
            wanted.max_answer_len,
            wanted.handle_impossible_answer,
            wanted.align_to_words,
        )
        return _json(found[0] if wanted.top_k == 1 else found)

    @router.post("/tags")
    async def tag(body: TagRequest, request: Request) -> Response:
        service.expect(Kind.token_classifier)
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        side = body.truncation_direction.lower()
        encodings, answers = await service.run_texts(_trace(request), texts, body.truncate, side)
        wanted = body.parameters
        found = [
            tags(
                text,
                encoding,
                scores_of(answer.outputs["logits"], "softmax", False),
                model.labels,
                wanted.aggregation_strategy,
                wanted.ignore_labels,
            )
            for text, encoding, answer in zip(texts, encodings, answers, strict=True)
        ]
        return _json(found[0] if isinstance(body.inputs, str) else found)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        service.check_count(len(texts))
        texts = _prompted(service, texts, body.prompt_name)
        trace = _trace(request)
        encodings = await service.tokenize(trace, texts, None, body.add_special_tokens)
        return _json([_tokens(*pair) for pair in zip(texts, encodings, strict=True)])

    @router.post("/decode")
    async def decode(body: DecodeRequest) -> Response:
        is_one = not body.ids or isinstance(body.ids[0], int)
        rows: Any = [body.ids] if is_one else body.ids
        return _json([_decode(service, row, body.skip_special_tokens) for row in rows])

    @router.get("/info")
    async def info() -> Response:
        return _json(describe(service))

    @router.get("/health")
    @router.get("/ping")
    async def health() -> Response:
        if not service.batcher.is_alive:
            raise RequestError("Unhealthy", "unhealthy")
        return Response()

    route: dict[Kind, Any] = {
        Kind.embedding: embed,
        Kind.classifier: predict,
        Kind.reranker: rerank,
        Kind.question_answering: answer,
        Kind.token_classifier: tag,
    }
    if model.kind in route:
        router.post("/", include_in_schema=False)(route[model.kind])
        router.post("/invocations", include_in_schema=False)(route[model.kind])
    return router


def describe(service: Service) -> dict[str, Any]:
    """Tell what is served, within which limits."""
    model, config = service.model, service.config
    kind: dict[str, Any] = {}
    if model.kind is Kind.embedding:
        kind = {"pooling": model.pooling.value}
    elif model.labels:
        kind = {"id2label": {str(i): label for i, label in enumerate(model.labels)}}
        kind["label2id"] = {label: i for i, label in enumerate(model.labels)}
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": model.precision,
        "model_type": {model.kind.value: kind},
        "max_concurrent_requests": config.max_queue,
        "max_input_length": model.max_tokens,
        "max_batch_tokens": config.max_batch_tokens,
        "max_batch_requests": config.max_batch,
        "max_client_batch_size": config.max_texts,
        "auto_truncate": config.auto_truncate,
        "tokenization_workers": 1,
        "version": version("toolkit"),
        "sha": None,
        "docker_label": None,
    }


def _json(content: Any) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


def _trace(request: Request) -> Trace:
    trace = request.scope["trace"]
    assert isinstance(trace, Trace)
    return trace


def _texts(service: Service, inputs: Input) -> list[str]:
    """Make a list of texts of what a request may hold: one or several, spelled or as token ids."""
    if isinstance(inputs, str):
        return [inputs]
    rows: Any = [inputs] if inputs and isinstance(inputs[0], int) else inputs
    return [row if isinstance(row, str) else _decode(service, row, True) for row in rows]


def _decode(service: Service, ids: Ids, skips_special: bool) -> str:
    if not all(0 <= number < 2**32 for number in ids):
        raise RequestError("Tokenizer", "token ids must be 32-bit numbers from 0")
    return service.model.tokenizers[None].decode(ids, skip_special_tokens=skips_special)


def _prompted(service: Service, texts: Sequence[str], name: str | None) -> list[str]:
    """Put a prompt in front of each text.

    Raises:
        RequestError: The model has no prompt of that name.
    """
    prompts = service.model.prompts
    if name is None:
        return list(texts)
    if name not in prompts:
        known = ", ".join(prompts) or "none"
        raise RequestError("Validation", f"no such `prompt_name`: the model has {known}", 422)
    return [prompts[name] + text for text in texts]


def _text_or_pair(text: str | Sequence[str]) -> Text:
    if isinstance(text, str):
        return text
    return text[0] if len(text) == 1 else (text[0], text[1])


def _cut_dimensions(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    size = vectors.shape[1]
    if dimensions is None:
        return vectors
    if not 1 <= dimensions <= size:
        raise RequestError("Validation", f"`dimensions` must be in [1, {size}]", 422)
    return vectors[:, :dimensions]


def _tokens(text: str, encoding: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "text": token if is_special else text[start:stop],
            "special": bool(is_special),
            "start": None if is_special else start,
            "stop": None if is_special else stop,
        }
        for number, token, is_special, (start, stop) in zip(
            encoding.ids,
            encoding.tokens,
            encoding.special_tokens_mask,
            encoding.offsets,
            strict=True,
        )
    ]
