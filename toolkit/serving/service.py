"""From a request's texts to the model's outputs, within the server's limits."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from toolkit.config import ServeConfig
from toolkit.serving.batcher import Answer, Batcher, OverloadedError
from toolkit.serving.errors import RequestError
from toolkit.serving.journal import Trace
from toolkit.serving.model import Kind, Model, Text, encode
from toolkit.tasks.features import Feature, feature_of

# Fewer characters are tokenized at once, in about 1 ms; a thread for it would cost more than that.
FEW_CHARACTERS = 4096


@dataclass(frozen=True)
class Service:
    """What the routes share."""

    model: Model
    batcher: Batcher
    config: ServeConfig

    def expect(self, *kinds: Kind) -> None:
        """Refuse what this model does not answer.

        Raises:
            RequestError: It is of none of these kinds.
        """
        if self.model.kind not in kinds:
            wanted = " or ".join(kind.value for kind in kinds)
            said = f"this route needs a model of kind {wanted}; this one is {self.model.kind.value}"
            raise RequestError("Backend", said)

    def check_count(self, texts: int) -> None:
        """Refuse a request of too many texts, before anything is made of them.

        Raises:
            RequestError: There are too many, or none, or the queue has no room for them.
        """
        most = self.config.max_texts
        if texts > most:
            said = f"batch size {texts} > maximum allowed batch size {most}"
            raise RequestError("Validation", said)
        if texts == 0:
            raise RequestError("Validation", "expected at least one text; found none", 422)
        try:
            self.batcher.check_room(texts)
        except OverloadedError as error:
            raise RequestError("Overloaded", str(error)) from None

    async def run_texts(
        self, trace: Trace, texts: Sequence[Text], truncate: bool | None, side: str = "right"
    ) -> tuple[list[Encoding], list[Answer]]:
        """Tokenize texts or pairs and run them.

        Args:
            trace: Filled in.
            texts: B texts.
            truncate: Cut those that are too long at `side`; None does as configured.

        Raises:
            RequestError: A limit is passed, or the model failed.
        """
        self.check_count(len(texts))
        is_cut = self.config.auto_truncate if truncate is None else truncate
        encodings = await self.tokenize(trace, texts, side if is_cut else None)
        features = [feature_of(encoding, i) for i, encoding in enumerate(encodings)]
        return encodings, await self.run_features(trace, features)

    async def run_question(
        self, trace: Trace, question: str, context: str
    ) -> tuple[list[Encoding], list[Answer]]:
        """Run a question with all windows of its context.

        Raises:
            RequestError: The question leaves no room for a context, the context has more windows
                than the queue takes, or as of `run_texts`.
        """
        self.check_count(1)
        began, cut = time.monotonic(), self.model.cut_windows
        assert cut is not None
        try:
            # leading blanks of a question would count as tokens that are never cut off
            (windows,) = await asyncio.to_thread(cut, [(question.lstrip(), context)])
        except ValueError:
            said = f"the question leaves no room for a context in {self.model.max_tokens} tokens"
            raise RequestError("Validation", said) from None
        trace.tokenize_s = time.monotonic() - began
        if len(windows) > self.config.max_queue:
            said = f"the context fills {len(windows)} windows, more than {self.config.max_queue}"
            raise RequestError("Validation", said)
        features = [feature_of(window, i) for i, window in enumerate(windows)]
        return windows, await self.run_features(trace, features)

    async def tokenize(
        self, trace: Trace, texts: Sequence[Text], side: str | None, special_tokens: bool = True
    ) -> list[Encoding]:
        """Tokenize texts or pairs; many characters in another thread, so that others go on."""
        began = time.monotonic()
        characters = sum(len(part) for text in texts for part in _parts(text))
        if characters <= FEW_CHARACTERS:
            encodings = encode(self.model, texts, side, special_tokens)
        else:
            encodings = await asyncio.to_thread(encode, self.model, texts, side, special_tokens)
        trace.tokenize_s = time.monotonic() - began
        return encodings

    async def run_features(self, trace: Trace, features: Sequence[Feature]) -> list[Answer]:
        """Run model inputs, and note what that took.

        Raises:
            RequestError: One is too long or not of the model's, the queue is full, or it failed.
        """
        longest = max(len(feature["input_ids"]) for feature in features)
        if longest > self.model.max_tokens:
            raise RequestError(
                "Validation",
                f"`inputs` must have at most {self.model.max_tokens} tokens. Given: {longest}",
            )
        try:
            answers = await self.batcher.infer(features)
        except OverloadedError as error:
            raise RequestError("Overloaded", str(error)) from None
        except ValueError as error:  # the engine's word on ids, types and masks: numbers only
            raise RequestError("Validation", str(error), 400) from None
        trace.texts = len(features)
        trace.tokens = sum(len(feature["input_ids"]) for feature in features)
        trace.queue_s = sum(answer.queue_s for answer in answers) / len(answers)
        trace.inference_s = sum(answer.inference_s for answer in answers) / len(answers)
        return answers


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text
