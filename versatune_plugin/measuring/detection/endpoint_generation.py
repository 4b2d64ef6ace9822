"""Samples of a base model that is served behind an OpenAI-compatible completions API."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from versatune_plugin.measuring.detection.endpoint import NUM_ATTEMPTS, Endpoint, RefusedRequest, Session, Usage
from versatune_plugin.measuring.detection.samples import Sample

log = logging.getLogger(__name__)


class _Completion(BaseModel):
    text: str
    finish_reason: Literal["stop", "length"]


class _Completed(BaseModel):
    choices: Annotated[list[_Completion], Field(min_length=1, max_length=1)]
    usage: Usage


class EndpointGenerator:
    """Samples from a base model behind an API, whose prompt is the start token alone.

    One test request at the first use finds out whether the server takes the options that turn its own sampling
    defaults off (`top_k`, `min_p`, `repetition_penalty`; llama.cpp has a top-k of 40, vLLM reads the model's
    generation config). Where it does not, that is logged and part of the identity.

    Args:
        endpoint: Where the base model is served.
        start_token_id: The token that starts a document: BOS, or the end-of-text token of a model without one.
        max_new_tokens: Length limit of a sample.
        temperature: 1 samples from the model's own distribution.
        top_p: 1: no limit.
        top_k: 0: no limit.
        base_model: What is served under that name, as far as the user knows; for the record.
        fingerprint: What tells it from others of that name; None where unknown.
        seed: Together with the iteration and the index it seeds each sample, as far as the server honours seeds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        start_token_id: int,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        base_model: str | None = None,
        fingerprint: str | None = None,
    ):
        self._endpoint = endpoint
        self._served = {"base_model": base_model, "fingerprint": fingerprint}
        self._start_token_id = start_token_id
        self._seed = seed
        self._sampling = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self._top_k = top_k
        self._options: dict | None = None

    def identity(self) -> dict:
        """What the samples depend on. The same name at another URL is taken for the same model.

        Raises:
            ConnectionError, PermissionError, ValueError: As `Endpoint.try_out`, at the first use.
        """
        return {
            "kind": "endpoint",
            "name": self._endpoint.model,
            **self._served,
            "start_token_id": self._start_token_id,
            "max_new_tokens": self._sampling["max_tokens"],
            "temperature": self._sampling["temperature"],
            "top_p": self._sampling["top_p"],
            "options": self._accepted_options(),
            "seed": self._seed,
        }

    def report(self) -> dict:
        """The URL, requests answered, retries and tokens so far."""
        return {"url": self._endpoint.base_url, **self._endpoint.counts}

    def generate(self, iteration: int, wanted: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """Samples of one iteration, as they are done (see `samples.Generator`).

        Raises:
            ConnectionError, PermissionError: As `Endpoint.stream`.
            ValueError: The server refuses the request, or its answers are no completions.
        """
        options = self._accepted_options()

        def draw(session: Session, index: int) -> Sample:
            seed = _seed_of(self._seed, iteration, index)
            completed = self._complete(session, options, seed=seed, **self._sampling)
            [completion] = completed.choices
            return Sample(completion.text, completed.usage.completion_tokens, completion.finish_reason == "stop")

        with closing(self._endpoint.stream(draw, wanted)) as samples:
            yield from samples

    def _complete(self, session: Session, options: dict, **sampling) -> _Completed:
        for _ in range(NUM_ATTEMPTS):
            content = session.complete(prompt=[self._start_token_id], extra_body=options, **sampling)
            with suppress(ValueError):
                return _Completed.model_validate_json(content)
        raise ValueError(
            f"{self._endpoint.base_url}: {NUM_ATTEMPTS} answers in a row were no completion with a text, a finish "
            "reason (stop or length) and a usage"
        )

    def _accepted_options(self) -> dict:
        """What turns the server's own sampling defaults off, as far as it takes that."""
        if self._options is None:
            self._options = self._endpoint.try_out(self._try_options)
        return self._options

    def _try_options(self, session: Session) -> dict:
        options = {"top_k": self._top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        try:
            self._test(session, options)
        except RefusedRequest as refusal:
            refused = str(refusal)
        else:
            return options
        options = {"top_k": self._top_k} if self._top_k else {}
        try:
            self._test(session, options)
        except RefusedRequest as refusal:
            raise ValueError(
                f"{refusal}; samples need a completions API that takes a prompt of token ids, as vLLM and llama.cpp do"
            ) from None
        log.warning("%s; so the server's own min_p, repetition_penalty and default top_k act on the samples", refused)
        return options

    def _test(self, session: Session, options: dict) -> None:
        completed = self._complete(session, options, **(self._sampling | {"max_tokens": 1}))
        if completed.usage.prompt_tokens != 1:
            raise ValueError(
                f"{self._endpoint.base_url} counted {completed.usage.prompt_tokens} tokens in a prompt of one token: "
                "its samples would not start from the start token alone"
            )


def _seed_of(seed: int, iteration: int, index: int) -> int:
    """A seed for one sample, in [0, 2**31)."""
    digest = hashlib.sha256(f"{seed} {iteration} {index}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
