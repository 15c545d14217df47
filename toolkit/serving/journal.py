"""What a server tells of its requests: one line of JSON each, and metrics. Never a user's text."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LOG = logging.getLogger("toolkit.serving")
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
OWN = "fields"  # of a log record: those of an event of ours


@dataclass
class Trace:
    """What became of one request, filled in on its way.

    Attributes:
        texts: Texts it brought.
        tokens: Tokens they had.
        tokenize_s: Seconds that took.
        queue_s: Seconds that its texts waited, on average.
        inference_s: Seconds that their batches took, on average.
        error: Kind of the error, if there was one.
    """

    texts: int = 0
    tokens: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    error: str | None = None


class Metrics:
    """Counters for Prometheus, by the names of text-embeddings-inference as far as it has them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.count = self._counter("te_request_count", "requests", "method")
        self.success = self._counter("te_request_success", "requests answered", "method")
        self.failure = self._counter("te_request_failure", "requests refused or failed", "err")
        self.duration = self._histogram("te_request_duration", SECONDS)
        self.tokenize = self._histogram("te_request_tokenization_duration", SECONDS)
        self.queue = self._histogram("te_request_queue_duration", SECONDS)
        self.inference = self._histogram("te_request_inference_duration", SECONDS)
        self.batch_size = self._histogram("te_batch_next_size", SIZES)
        self.batch_tokens = self._histogram("te_batch_next_tokens", SIZES)
        self.queue_size = Gauge("te_queue_size", "texts that wait", registry=self.registry)

    def note_batch(self, texts: int, tokens: int) -> None:
        """Count a batch."""
        self.batch_size.observe(texts)
        self.batch_tokens.observe(tokens)

    def note_request(self, method: str, status: int, seconds: float, trace: Trace) -> None:
        """Count a request; `method` is the route, one of few."""
        self.count.labels(method).inc()
        if status >= 400:
            self.failure.labels(trace.error or str(status)).inc()
            return
        self.success.labels(method).inc()
        if trace.texts:
            self.duration.observe(seconds)
            self.tokenize.observe(trace.tokenize_s)
            self.queue.observe(trace.queue_s)
            self.inference.observe(trace.inference_s)

    def render(self) -> bytes:
        """Return all of them in Prometheus' format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, label: str) -> Counter:
        return Counter(name, meaning, [label], registry=self.registry)

    def _histogram(self, name: str, buckets: Sequence[float]) -> Histogram:
        unit = "seconds" if buckets is SECONDS else "of a batch"
        return Histogram(name, unit, registry=self.registry, buckets=buckets)


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, and the event's fields.

    Of another library's event only its source is told: its words may hold a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage() if record.name == LOG.name else record.name,
            **getattr(record, OWN, {}),
        }
        if record.name.startswith("uvicorn"):
            line["message"] = record.msg  # the template alone
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def log(event: str, level: int = logging.INFO, **fields: object) -> None:
    """Write a line."""
    LOG.log(level, event, extra={OWN: fields})


def start_log() -> None:
    """Send this process's log to stdout as lines of JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    LOG.setLevel(logging.INFO)
