"""How a request ends badly: a status, and a body that says why, as each protocol spells it."""

import orjson

# The kinds and their statuses are text-embeddings-inference's.
STATUS = {"Validation": 413, "Tokenizer": 422, "Backend": 424, "Overloaded": 429, "Unhealthy": 503}


class RequestError(Exception):
    """A request that is refused, or failed.

    Attributes:
        kind: A key of `STATUS`.
        sentence: What was expected, and found; without any text of the user's.
        status: HTTP status.
    """

    def __init__(self, kind: str, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.kind, self.sentence, self.status = kind, sentence, status or STATUS[kind]


def body_of(error: RequestError, path: str) -> bytes:
    """Spell an error as the clients of a path expect it."""
    if path.startswith(("/v1/", "/embeddings")):
        said = {"message": error.sentence, "code": error.status, "type": error.kind}
        return orjson.dumps(said | {"error": said})  # the second is where OpenAI's client looks
    if path == "/v2" or path.startswith("/v2/"):
        return orjson.dumps({"error": error.sentence})
    return orjson.dumps({"error": error.sentence, "error_type": error.kind})
