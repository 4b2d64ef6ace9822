"""OpenAI-compatible APIs (vLLM, llama.cpp and others): many requests in flight, and samples drawn through one.

The `openai` client sends the requests and repeats those that may succeed later (429 with its Retry-After, 408, 409,
5xx, time-outs, dropped connections); `tenacity` goes on with that for as long as the user has patience. The requests
run in an event loop in a thread of its own, so that callers stay synchronous, also where a loop runs already.

The key is read from the environment, kept while requests run, and what a server says is left out where it repeats it.
"""

import asyncio
import hashlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from queue import SimpleQueue
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from versatune_plugin.measuring.detection.detect import Sample

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

CLIENT_RETRIES = 2  # the client's own, within seconds, before the log says that we wait
CONNECT_SECONDS = 5.0
START_SECONDS = 10.0  # for the list of models, before anything else
LONGEST_PAUSE_SECONDS = 30.0
KEY_PART = 8  # characters
NUM_ATTEMPTS = 3
"""Times that something is asked where the answers cannot be used."""

_END = object()


class RefusedRequest(ValueError):
    """The server does not take this one request (too long, filtered, an option it does not know)."""


class Usage(BaseModel):
    """Tokens that a server counted for one answer."""

    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(ge=0)


class _Counted(BaseModel):
    usage: Usage | None = None


class _ModelName(BaseModel):
    id: str


class _ModelNames(BaseModel):
    data: list[_ModelName]


class Endpoint:
    """One model behind an OpenAI-compatible API.

    Args:
        base_url: Such as ``http://localhost:8000/v1``.
        model: The model's name there.
        api_key_env: Environment variable that holds the key; it need not be set for a server without keys.
        concurrency: Requests in flight.
        requests_per_minute: Limit on new requests; a repeated one is not counted.
        patience_seconds: How long the server may fail in the middle before that is an error.
        timeout_seconds: Without a byte from the server for so long, a request has failed.

    Attributes:
        counts: num_requests (answered), num_retries, num_prompt_tokens and num_completion_tokens so far.

    Raises:
        ImportError: The `openai` client is not installed.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str,
        concurrency: int,
        requests_per_minute: float | None,
        patience_seconds: float,
        timeout_seconds: float,
    ):
        _import_client()
        self.base_url = _checked_url(base_url)
        self.model = model
        self.api_key_env = api_key_env
        _check_positive(
            concurrency=concurrency, requests_per_minute=requests_per_minute, timeout_seconds=timeout_seconds
        )
        self.concurrency = concurrency
        self.requests_per_minute = requests_per_minute
        self.patience_seconds = patience_seconds
        self.timeout_seconds = timeout_seconds
        self.counts = Counter(num_requests=0, num_retries=0, num_prompt_tokens=0, num_completion_tokens=0)

    def try_out(self, test: "Callable[[Session], Awaitable[Result]]") -> Result:
        """Whether the server is there and has the model, then the result of `test`; nothing is waited for.

        Raises:
            ConnectionError: The server cannot be reached, or it fails.
            PermissionError: It does not accept the key.
            ValueError: It does not have the model, or it refuses the test's requests.
        """

        async def checked(session: Session, _) -> Result:
            await session.check_model()
            return await test(session)

        [(_, result)] = self.stream(checked, [None], patience_seconds=0)
        return result

    def stream(
        self,
        answer: "Callable[[Session, Job], Awaitable[Result]]",
        jobs: Sequence[Job],
        patience_seconds: float | None = None,
    ) -> Iterator[tuple[Job, Result]]:
        """Jobs and their results as they are done, `concurrency` at a time; closing the iterator ends the work.

        Raises:
            ConnectionError: The server has failed for longer than `patience_seconds`; all finished results have been
                yielded before.
            PermissionError: It does not accept the key.
        """
        session = Session(self, self.patience_seconds if patience_seconds is None else patience_seconds)
        results: SimpleQueue = SimpleQueue()
        begun: Future = Future()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="versatune-endpoint") as thread:
            work = thread.submit(asyncio.run, _answer_all(session, answer, jobs, results.put, begun))
            work.add_done_callback(lambda _: results.put(_END))
            try:
                while (result := results.get()) is not _END:
                    yield result
                work.result()
            finally:
                if not work.done():
                    loop, task = begun.result()
                    with suppress(RuntimeError):  # it has ended just now, and its loop is closed
                        loop.call_soon_threadsafe(task.cancel)


async def _answer_all(session, answer, jobs, put, begun) -> None:
    begun.set_result((asyncio.get_running_loop(), asyncio.current_task()))
    remaining = iter(jobs)

    async def work() -> None:
        for job in remaining:
            put((job, await answer(session, job)))

    failure = None
    async with session:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(session.endpoint.concurrency, len(jobs))):
                    group.create_task(work())
        except ExceptionGroup as failures:
            failure = failures.exceptions[0]
    if failure is not None:
        raise failure


class Session:
    """A connection to an endpoint, within one event loop."""

    def __init__(self, endpoint: Endpoint, patience_seconds: float):
        self.endpoint = endpoint
        self._patience_seconds = patience_seconds
        self._key = _read_key(endpoint.api_key_env)
        self._next_start = 0.0
        self._answered_at = -math.inf
        self._waiting = False

    async def __aenter__(self):
        openai, _ = _import_client()
        timeout = openai.Timeout(self.endpoint.timeout_seconds, connect=CONNECT_SECONDS)
        self._client = openai.AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self._key or "none",
            max_retries=CLIENT_RETRIES,
            timeout=timeout,
        )
        return self

    async def __aexit__(self, *exception) -> None:
        await self._client.close()

    async def chat(self, **body) -> bytes:
        """The answer to a chat, as the server sent it.

        Raises:
            RefusedRequest: The server does not take this request.
            ConnectionError: It has failed for longer than there is patience.
            PermissionError: It does not accept the key.
            ValueError: It does not know the model or the path.
        """
        return await self._send(self._client.chat.completions.with_raw_response.create, body)

    async def complete(self, **body) -> bytes:
        """The continuation of a prompt, as the server sent it; raises as `chat` does."""
        return await self._send(self._client.completions.with_raw_response.create, body)

    async def check_model(self) -> None:
        """Raise a ValueError where the server lists its models and ours is not among them."""
        names = await self._model_names()
        if names and self.endpoint.model not in names:
            raise ValueError(
                f"{self.endpoint.base_url} has no model {self.endpoint.model!r}; it has: {', '.join(names)}"
            )

    async def _model_names(self) -> list[str]:
        """The models that the server lists; empty where it has no such list, or one that fails."""
        openai, _ = _import_client()
        client = self._client.with_options(max_retries=1, timeout=min(START_SECONDS, self.endpoint.timeout_seconds))
        try:
            content = (await client.models.with_raw_response.list()).content
        except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
            problem = self._explained(error)
        except openai.APIStatusError as error:
            log.info("%s does not list its models (status %d)", self.endpoint.base_url, error.status_code)
            return []
        else:
            return _listed_models(content)
        raise problem

    async def _send(self, create, body: dict) -> bytes:
        openai, tenacity = _import_client()
        await self._pace()
        began = time.monotonic()
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(self._may_pass),
            wait=_pause,
            stop=tenacity.stop_before_delay(self._patience_seconds),
            before_sleep=self._note_failure,
            reraise=True,
        )
        try:
            response = await retrying(create, model=self.endpoint.model, **body)
        except openai.APIError as error:
            problem = self._explained(error)
            if self._is_alone(error, began):
                problem = RefusedRequest(f"{problem} (and answered others meanwhile)")
        else:
            self._note_answer(response)
            return response.content
        raise problem  # out here it does not carry the client's error, which holds the request and its key

    def _is_alone(self, error: Exception, began: float) -> bool:
        """Whether it is the request that fails and not the server: others were answered late in its attempts."""
        openai, _ = _import_client()
        is_failure = isinstance(error, (openai.InternalServerError, openai.APITimeoutError))
        return is_failure and self._answered_at - began > self._patience_seconds / 2

    async def _pace(self) -> None:
        if self.endpoint.requests_per_minute:
            now = time.monotonic()
            start = max(self._next_start, now)
            self._next_start = start + 60 / self.endpoint.requests_per_minute
            await asyncio.sleep(start - now)

    def _note_answer(self, response) -> None:
        self._answered_at = time.monotonic()
        if self._waiting:
            self._waiting = False
            log.warning("%s answers again", self.endpoint.base_url)
        counts = self.endpoint.counts
        counts["num_requests"] += 1
        counts["num_retries"] += response.retries_taken
        with suppress(ValueError):  # whoever needs the answer finds out what is wrong with it
            usage = _Counted.model_validate_json(response.content).usage
            if usage:
                counts.update(num_prompt_tokens=usage.prompt_tokens, num_completion_tokens=usage.completion_tokens)

    def _note_failure(self, state) -> None:
        self.endpoint.counts["num_retries"] += 1 + CLIENT_RETRIES
        if not self._waiting:
            self._waiting = True
            log.warning(
                "%s; waiting for it, %.0f s at most", self._explained(state.outcome.exception()), self._patience_seconds
            )

    @staticmethod
    def _may_pass(error: BaseException) -> bool:
        """Whether the same request may succeed later."""
        openai, _ = _import_client()
        if isinstance(error, openai.APIStatusError):
            return error.status_code in (408, 409, 429) or error.status_code >= 500
        return isinstance(error, openai.APIConnectionError)

    def _explained(self, error: Exception) -> Exception:
        """The client's error as one of ours, without the key."""
        openai, _ = _import_client()
        url, variable = self.endpoint.base_url, self.endpoint.api_key_env
        if isinstance(error, openai.APITimeoutError):
            return ConnectionError(f"{url} did not answer within {self.endpoint.timeout_seconds:g} s")
        if isinstance(error, openai.APIConnectionError):
            return ConnectionError(f"{url} cannot be reached ({self._without_key(str(error.__cause__ or error))})")
        if not isinstance(error, openai.APIStatusError):
            return RefusedRequest(f"{url}: {self._without_key(str(error))}")
        said = self._without_key(f"status {error.status_code}: {error.response.text}")
        if self._may_pass(error):
            return ConnectionError(f"{url} failed: {said}")
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            wrong = "the key in it was refused" if self._key else "it is not set, and the server wants a key"
            return PermissionError(f"{url}: environment variable {variable}: {wrong} (status {error.status_code})")
        if isinstance(error, openai.NotFoundError):
            return ValueError(
                f"{url} has no model {self.endpoint.model!r}, or not this path (base URLs usually end in /v1): {said}"
            )
        return RefusedRequest(f"{url} refused a request: {said}")

    def _without_key(self, text: str) -> str:
        """What a server says, left out where a part of the key is in it, in whatever way it is escaped."""
        key = self._key
        parts = {key[start : start + KEY_PART] for start in range(max(1, len(key) - KEY_PART + 1))} if key else ()
        return "(words that repeat the key)" if any(part in text for part in parts) else _printable(text)


def _pause(state) -> float:
    """Seconds until a failed request is sent again: rising at random, and what a Retry-After asks for."""
    _, tenacity = _import_client()
    backoff = tenacity.wait_random_exponential(max=LONGEST_PAUSE_SECONDS)(state)
    response = getattr(state.outcome.exception(), "response", None)
    asked = "" if response is None else response.headers.get("retry-after", "")
    return max(backoff, float(asked) if asked.isdigit() else 0.0)


def _listed_models(content: bytes) -> list[str]:
    try:
        return [_printable(model.id) for model in _ModelNames.model_validate_json(content).data]
    except ValueError:
        return []  # another kind of page; the first request tells whether the URL is right


def _printable(text: str, longest: int = 300) -> str:
    """What a server says, on one line and not too long."""
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= longest else text[:longest] + "..."


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def _checked_url(url: str) -> str:
    if any(sign in url for sign in "@?#"):
        raise ValueError(
            "the endpoint's URL must hold no user, password, query or fragment (so it is not shown here); a key comes "
            "from the environment variable that api_key_env names"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the endpoint's URL must look like http://localhost:8000/v1, got {url!r}")
    return url.rstrip("/")


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"environment variable {variable}: a key must be printable ASCII, and this one is not")
    return key


def _import_client():
    try:
        import openai
        import tenacity
    except ImportError as error:
        raise ImportError("endpoints need the openai client: pip install 'versatune_plugin[endpoint]'") from error
    return openai, tenacity


# --- samples ------------------------------------------------------------------------------------------------


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
        base_url: See `Endpoint`, as for all arguments that are not listed here.
        model: The base model's name there.
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
        *,
        base_url: str,
        model: str,
        start_token_id: int,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        base_model: str | None = None,
        fingerprint: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        requests_per_minute: float | None = None,
        patience_seconds: float = 600.0,
        timeout_seconds: float = 300.0,
    ):
        self._endpoint = Endpoint(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            patience_seconds=patience_seconds,
            timeout_seconds=timeout_seconds,
        )
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
        """Samples of one iteration, as they are done (see `versatune_plugin.measuring.detection.detect.Generator`).

        Raises:
            ConnectionError, PermissionError: As `Endpoint.stream`.
            ValueError: The server refuses the request, or its answers are no completions.
        """
        options = self._accepted_options()

        async def draw(session: Session, index: int) -> Sample:
            seed = _seed_of(self._seed, iteration, index)
            completed = await self._complete(session, options, seed=seed, **self._sampling)
            [completion] = completed.choices
            return Sample(completion.text, completed.usage.completion_tokens, completion.finish_reason == "stop")

        with closing(self._endpoint.stream(draw, wanted)) as samples:
            yield from samples

    async def _complete(self, session: Session, options: dict, **sampling) -> _Completed:
        for _ in range(NUM_ATTEMPTS):
            content = await session.complete(prompt=[self._start_token_id], extra_body=options, **sampling)
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

    async def _try_options(self, session: Session) -> dict:
        options = {"top_k": self._top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        try:
            await self._test(session, options)
        except RefusedRequest as refusal:
            refused = str(refusal)
        else:
            return options
        options = {"top_k": self._top_k} if self._top_k else {}
        try:
            await self._test(session, options)
        except RefusedRequest as refusal:
            raise ValueError(
                f"{refusal}; samples need a completions API that takes a prompt of token ids, as vLLM and llama.cpp do"
            ) from None
        log.warning("%s; so the server's own min_p, repetition_penalty and default top_k act on the samples", refused)
        return options

    async def _test(self, session: Session, options: dict) -> None:
        completed = await self._complete(session, options, **(self._sampling | {"max_tokens": 1}))
        if completed.usage.prompt_tokens != 1:
            raise ValueError(
                f"{self._endpoint.base_url} counted {completed.usage.prompt_tokens} tokens in a prompt of one token: "
                "its samples would not start from the start token alone"
            )


def _seed_of(seed: int, iteration: int, index: int) -> int:
    """A seed for one sample, in [0, 2**31)."""
    digest = hashlib.sha256(f"{seed} {iteration} {index}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
