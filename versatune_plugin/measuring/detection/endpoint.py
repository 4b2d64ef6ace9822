"""OpenAI-compatible APIs (vLLM, llama.cpp and others), with many requests in flight.

The synchronous `openai` client sends each request in a thread and repeats it where it may succeed later (429 with its
Retry-After, 408, 409, 5xx, time-outs, dropped connections). That takes it seconds; a server that is down for longer is
waited for here, as long as the user has patience. The threads are daemons: one that waits for an answer keeps neither
Control-C nor the end of the program waiting, as a pool of `concurrent.futures` would.

The key is read from the environment, and what a server says is left out where it repeats it.
"""

import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

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
        concurrency: Requests in flight, >= 1.
        requests_per_minute: Limit on new requests, above 0; a repeated one is not counted.
        patience_seconds: How long the server may fail in the middle before that is an error.
        timeout_seconds: Without a byte from the server for so long, a request has failed.

    Attributes:
        counts: num_requests (answered), num_retries, num_prompt_tokens and num_completion_tokens so far.

    Raises:
        ImportError: The `openai` client is not installed.
        ValueError: The URL is none, or the key cannot be sent.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        requests_per_minute: float | None = None,
        patience_seconds: float = 600.0,
        timeout_seconds: float = 60.0,
    ):
        openai = _import_client()
        self.base_url = _checked_url(base_url)
        self.model = model
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.requests_per_minute = requests_per_minute
        self.patience_seconds = patience_seconds
        self.timeout_seconds = timeout_seconds
        self.counts = Counter(num_requests=0, num_retries=0, num_prompt_tokens=0, num_completion_tokens=0)
        self._key = _read_key(api_key_env)
        self.client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            max_retries=CLIENT_RETRIES,
            timeout=openai.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
        )

    def try_out(self, test: "Callable[[Session], Result]") -> Result:
        """Whether the server is there and has the model, then the result of `test`; nothing is waited for.

        Raises:
            ConnectionError: The server cannot be reached, or it fails.
            PermissionError: It does not accept the key.
            ValueError: It does not have the model, or it refuses the test's requests.
        """
        session = Session(self, patience_seconds=0)
        session.check_model()
        return test(session)

    def stream(
        self, answer: "Callable[[Session, Job], Result]", jobs: Sequence[Job]
    ) -> Generator[tuple[Job, Result], None, None]:
        """Jobs and their results as they are done, `concurrency` at a time; closing the iterator ends the work.

        Args:
            answer: Called in a thread of its own for each job.
            jobs: What is to be asked.

        Raises:
            ConnectionError: The server has failed for longer than there is patience; all finished results have been
                yielded before.
            PermissionError: It does not accept the key.
        """
        session = Session(self, self.patience_seconds)
        waiting: SimpleQueue = SimpleQueue()
        done: SimpleQueue = SimpleQueue()
        for job in jobs:
            waiting.put(job)
        for _ in range(min(self.concurrency, len(jobs))):
            threading.Thread(
                target=_work, args=(session, answer, waiting, done), name="versatune-endpoint", daemon=True
            ).start()
        failure = None
        try:
            for _ in jobs:
                job, result, failure = done.get()
                if failure is not None:
                    break
                yield job, result
        finally:
            session.ended.set()
        if failure is not None:
            yield from _finished(done)
            raise failure

    def explained(self, error: Exception) -> Exception:
        """The client's error as one of ours, without the key."""
        openai = _import_client()
        url, variable = self.base_url, self.api_key_env
        if isinstance(error, openai.APITimeoutError):
            return ConnectionError(f"{url} did not answer within {self.timeout_seconds:g} s")
        if isinstance(error, openai.APIConnectionError):
            return ConnectionError(f"{url} cannot be reached ({self._without_key(str(error.__cause__ or error))})")
        if not isinstance(error, openai.APIStatusError):
            return RefusedRequest(f"{url}: {self._without_key(str(error))}")
        said = self._without_key(f"status {error.status_code}: {error.response.text}")
        if _may_pass(error):
            return ConnectionError(f"{url} failed: {said}")
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            wrong = "the key in it was refused" if self._key else "it is not set, and the server wants a key"
            return PermissionError(f"{url}: environment variable {variable}: {wrong} (status {error.status_code})")
        if isinstance(error, openai.NotFoundError):
            return ValueError(
                f"{url} has no model {self.model!r}, or not this path (base URLs usually end in /v1): {said}"
            )
        return RefusedRequest(f"{url} refused a request: {said}")

    def _without_key(self, text: str) -> str:
        """What a server says, left out where a part of the key is in it, in whatever way it is escaped."""
        key = self._key
        parts = {key[start : start + KEY_PART] for start in range(max(1, len(key) - KEY_PART + 1))} if key else ()
        return "(words that repeat the key)" if any(part in text for part in parts) else _printable(text)


class Session:
    """Requests to an endpoint that belong together: they share their pace and what is known of the server's health.

    Args:
        endpoint: Where they go.
        patience_seconds: How long the server may fail before that is an error.

    Attributes:
        ended: To be set when no answer is wanted any more.
    """

    def __init__(self, endpoint: Endpoint, patience_seconds: float):
        self.ended = threading.Event()
        self._endpoint, self._patience_seconds = endpoint, patience_seconds
        self._lock = threading.Lock()
        self._next_start, self._answered_at = 0.0, -math.inf
        self._server_fails = False

    def chat(self, **body) -> bytes:
        """The answer to a chat, as the server sent it.

        Raises:
            RefusedRequest: The server does not take this request.
            ConnectionError: It has failed for longer than there is patience.
            PermissionError: It does not accept the key.
            ValueError: It does not know the model or the path.
        """
        return self._send(self._endpoint.client.chat.completions.with_raw_response.create, body)

    def complete(self, **body) -> bytes:
        """The continuation of a prompt, as the server sent it; raises as `chat` does."""
        return self._send(self._endpoint.client.completions.with_raw_response.create, body)

    def check_model(self) -> None:
        """Raise a ValueError where the server lists its models and ours is not among them."""
        names, model = self._model_names(), self._endpoint.model
        if names and model not in names:
            raise ValueError(f"{self._endpoint.base_url} has no model {model!r}; it has: {', '.join(names)}")

    def _model_names(self) -> list[str]:
        """The models that the server lists; empty where it has no such list, or one that fails."""
        openai, endpoint = _import_client(), self._endpoint
        client = endpoint.client.with_options(max_retries=1, timeout=min(START_SECONDS, endpoint.timeout_seconds))
        try:
            content = client.models.with_raw_response.list().content
        except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
            problem = endpoint.explained(error)
        except openai.APIStatusError as error:
            log.info("%s does not list its models (status %d)", endpoint.base_url, error.status_code)
            return []
        else:
            return _listed_models(content)
        raise problem

    def _send(self, create, body: dict) -> bytes:
        openai = _import_client()
        self._pace()
        began, pause = time.monotonic(), 1.0
        while True:
            try:
                response = create(model=self._endpoint.model, **body)
            except openai.APIError as error:
                problem = self._endpoint.explained(error)
                is_over = time.monotonic() + pause > began + self._patience_seconds
                if not _may_pass(error) or is_over:
                    if self._is_alone(error, began):
                        problem = RefusedRequest(f"{problem} (and answered others meanwhile)")
                    break
            else:
                self._note_answer(response)
                return response.content
            self._note_failure(problem)
            if self.ended.wait(pause):
                break
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise problem  # out here it does not carry the client's error, which holds the request and its key

    def _is_alone(self, error: Exception, began: float) -> bool:
        """Whether it is the request that fails and not the server: others were answered late in its attempts."""
        openai = _import_client()
        is_failure = isinstance(error, (openai.InternalServerError, openai.APITimeoutError))
        return is_failure and self._answered_at - began > self._patience_seconds / 2

    def _pace(self) -> None:
        """Wait until the limit per minute allows another request."""
        if self._endpoint.requests_per_minute:
            with self._lock:
                now = time.monotonic()
                start = max(self._next_start, now)
                self._next_start = start + 60 / self._endpoint.requests_per_minute
            self.ended.wait(start - now)

    def _note_answer(self, response) -> None:
        usage = None
        with suppress(ValueError):  # whoever needs the answer finds out what is wrong with it
            usage = _Counted.model_validate_json(response.content).usage
        with self._lock:
            self._answered_at = time.monotonic()
            if self._server_fails:
                self._server_fails = False
                log.warning("%s answers again", self._endpoint.base_url)
            counts = self._endpoint.counts
            counts.update(num_requests=1, num_retries=response.retries_taken)
            if usage:
                counts.update(num_prompt_tokens=usage.prompt_tokens, num_completion_tokens=usage.completion_tokens)

    def _note_failure(self, problem: Exception) -> None:
        with self._lock:
            self._endpoint.counts["num_retries"] += 1 + CLIENT_RETRIES
            if not self._server_fails:
                self._server_fails = True
                log.warning("%s; waiting for it, %.0f s at most", problem, self._patience_seconds)


def _work(session: Session, answer: Callable, waiting: SimpleQueue, done: SimpleQueue) -> None:
    """Answer jobs until none is left or an answer has failed; (job, result, error) goes into `done`."""
    while not session.ended.is_set():
        try:
            job = waiting.get_nowait()
        except Empty:
            return
        try:
            done.put((job, answer(session, job), None))
        except Exception as error:
            done.put((job, None, error))
            return


def _finished(done: SimpleQueue) -> Iterator[tuple]:
    """What was done by the time that another answer failed."""
    with suppress(Empty):
        while True:
            job, result, failure = done.get_nowait()
            if failure is None:
                yield job, result


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    openai = _import_client()
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def _listed_models(content: bytes) -> list[str]:
    try:
        return [_printable(model.id) for model in _ModelNames.model_validate_json(content).data]
    except ValueError:
        return []  # another kind of page; the first request tells whether the URL is right


def _printable(text: str, longest: int = 300) -> str:
    """What a server says, on one line and not too long."""
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= longest else text[:longest] + "..."


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
    except ImportError as error:
        raise ImportError("endpoints need the openai client: pip install 'versatune_plugin[endpoint]'") from error
    return openai
