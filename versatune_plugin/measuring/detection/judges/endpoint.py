"""A chat model behind an OpenAI-compatible API as the judge.

One test question at the first use finds out how the model can be read, and that becomes part of the identity:

- ``logprobs``: the probabilities of the option letters as the first token of the answer. This is preferred: one
  token per question, and graded.
- ``json_schema``: a JSON object that names a domain, in a format that the server was asked to enforce.
- ``json``: the same where the server refuses such a format.

A named domain counts as probability 1; with `orders` above 1 the names given under different orders are averaged.
"""

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from versatune_plugin.measuring.detection.endpoint import NUM_ATTEMPTS, Endpoint, RefusedRequest, Session
from versatune_plugin.measuring.detection.judges.prompt import (
    MIN_LETTER_MASS,
    PROMPT_VERSION,
    check_question,
    in_domain_order,
    letters,
    messages,
    rotations,
)

log = logging.getLogger(__name__)

Mode = Literal["logprobs", "json_schema", "json"]
NUM_ALTERNATIVES = 20  # OpenAI's and vLLM's limit
JSON_TOKENS = 64  # and the longest name, which takes at most a token per byte
TEST_TEXT = "The weather was fine, and we walked along the river until the evening."
LOW_MASS = 0.5
# Strict schemas ask for it; an answer with more in it is still read
CLOSED = ConfigDict(json_schema_extra={"additionalProperties": False})


class _Alternative(BaseModel):
    token: str
    logprob: float = Field(le=0.01)  # -inf is possible, more than rounding above 0 is not


class _Token(BaseModel):
    top_logprobs: Annotated[list[_Alternative], Field(min_length=1)]


class _Logprobs(BaseModel):
    content: Annotated[list[_Token], Field(min_length=1)]


class _Graded(BaseModel):
    logprobs: _Logprobs


class _GradedAnswer(BaseModel):
    choices: Annotated[list[_Graded], Field(min_length=1)]


class _Message(BaseModel):
    content: str


class _Written(BaseModel):
    message: _Message


class _WrittenAnswer(BaseModel):
    choices: Annotated[list[_Written], Field(min_length=1)]


def letter_masses(answer: bytes, num_domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each option's letter as the first token, and which letters were listed.

    All spellings of a letter count ("A", " A", "a"). A letter that is not among the alternatives has at most the
    probability of the least of them, and all such letters together at most what the alternatives leave over: it gets
    the smaller of that probability and an equal part of what is left over.

    Args:
        answer: A chat completion with log-probabilities, as the server sent it.
        num_domains: Number of options.

    Returns:
        Probabilities, with a sum of 1 at most, and whether each was listed; both of shape (num_domains,).

    Raises:
        ValueError: It is no such answer, or the letters have together less than `MIN_LETTER_MASS`.
    """
    alternatives = _GradedAnswer.model_validate_json(answer).choices[0].logprobs.content[0].top_logprobs
    options = {letter: option for option, letter in enumerate(letters(num_domains))}
    masses, listed = np.zeros(num_domains), np.zeros(num_domains, dtype=bool)
    probabilities = [math.exp(alternative.logprob) for alternative in alternatives]
    for alternative, probability in zip(alternatives, probabilities, strict=True):
        option = options.get(alternative.token.strip().upper())
        if option is not None:
            masses[option] += probability
            listed[option] = True
    if masses.sum() < MIN_LETTER_MASS:
        raise ValueError(f"the option letters have a probability below {MIN_LETTER_MASS} as the first token")
    num_unlisted = num_domains - listed.sum()
    if num_unlisted:
        masses[~listed] = min(min(probabilities), max(0.0, 1 - sum(probabilities)) / num_unlisted)
    return masses, listed


class EndpointJudge:
    """Asks a chat model behind an API for the domain of each text (see `judges.Judge`).

    An answer that cannot be used (not JSON, no domain or letter in it) is asked for again with the options in the next
    order, twice at most, since the same question would be answered in the same way; then the text's row is NaN.

    Args:
        endpoint: Where the chat model is served.
        domains: Domain names in their order, at most 26.
        descriptions: What some or all of them hold, a line each.
        max_text_tokens: The text shown is cut (see `judges.prompt.harmless`).
        orders: Orders of the options in which each text is asked, in [1, num_domains].

    Raises:
        ValueError: An argument is wrong.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        domains: Sequence[str],
        descriptions: Mapping[str, str],
        *,
        max_text_tokens: int = 512,
        orders: int = 1,
    ):
        self.domains = check_question(domains, descriptions, orders=orders, max_text_tokens=max_text_tokens)
        self._endpoint = endpoint
        self._descriptions = dict(descriptions)
        self._max_text_tokens = max_text_tokens
        self._orders = orders
        fields: dict[str, Any] = {"domain": (Literal[self.domains], ...)}
        self._named_domain: Any = create_model("Domain", __config__=CLOSED, **fields)
        self._mode: Mode | None = None
        self._lock = threading.Lock()  # on what answers are counted with: they come in several threads
        self._forget_answers()

    def identity(self) -> dict:
        """What a judgement depends on. The same model name at another URL is taken for the same model.

        Raises:
            ConnectionError, PermissionError, ValueError: As `Endpoint.try_out`, at the first use.
        """
        return {
            "kind": "endpoint",
            "model": self._endpoint.model,
            "mode": self._found_mode(),
            "prompt_version": PROMPT_VERSION,
            "domains": list(self.domains),
            "descriptions": self._descriptions,
            "orders": self._orders,
            "max_text_tokens": self._max_text_tokens,
        }

    def report(self) -> dict:
        """What was asked so far.

        `num_unusable_answers` were asked for again; `num_refused_requests` could not be. `letter_mass` is the mean
        probability that lay on the option letters: the rest was on other first tokens, and is left out.
        """
        return {
            "url": self._endpoint.base_url,
            "mode": self._mode,
            **self._endpoint.counts,
            **self._counts,
            "letter_mass": float(np.mean(self._letter_masses)) if self._letter_masses else None,
        }

    def judge(self, texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
        """Judge the texts (see `judges.Judge`).

        Raises:
            ConnectionError, PermissionError, ValueError: As `Endpoint.try_out` at the first use and `Endpoint.stream`
                later; all finished rows have been yielded before.
        """
        self._found_mode()
        num_missing = 0
        with closing(self._endpoint.stream(self._row, list(enumerate(texts)))) as judged:
            for (position, _), row in judged:
                num_missing += bool(np.isnan(row).any())
                yield position, row
        self._warn_of_trouble(num_missing, len(texts))

    def _warn_of_trouble(self, num_missing: int, num_texts: int) -> None:
        if num_missing:
            log.warning(
                "%d of %d texts got no judgement from %s and are left out", num_missing, num_texts, self._endpoint.model
            )
        if self._letter_masses and np.mean(self._letter_masses) < LOW_MASS:
            log.warning(
                "only %.0f %% of %s's first token is on the option letters: it hardly follows the question",
                100 * np.mean(self._letter_masses),
                self._endpoint.model,
            )

    def _row(self, session: Session, job: tuple[int, str]) -> np.ndarray:
        """The mean over the text's orders, shape (num_domains,); NaN where one of them got no answer."""
        _, text = job
        asked = [self._ask(session, text, rotation) for rotation in rotations(text, len(self.domains), self._orders)]
        row = np.mean(asked, axis=0)
        self._count("num_without_answer" if np.isnan(row).any() else "num_judged")
        return row

    def _ask(self, session: Session, text: str, rotation: int) -> np.ndarray:
        mode = self._found_mode()
        for attempt in range(NUM_ATTEMPTS):
            shown_first = (rotation + attempt) % len(self.domains)
            try:
                answer = self._answer(session, text, shown_first, mode)
            except RefusedRequest as refusal:
                if self._count("num_refused_requests") == 1:
                    log.warning("%s; texts that are refused get no judgement", refusal)
                break
            try:
                return self._read(answer, shown_first, mode)
            except ValueError:
                self._count("num_unusable_answers")
        return np.full(len(self.domains), np.nan)

    def _answer(self, session: Session, text: str, rotation: int, mode: Mode) -> bytes:
        as_json = mode != "logprobs"
        chat = messages(
            text,
            self.domains,
            self._descriptions,
            rotation,
            max_text_tokens=self._max_text_tokens,
            as_json=as_json,
        )
        if as_json:
            form: dict[str, Any] = {"max_tokens": JSON_TOKENS + max(len(domain.encode()) for domain in self.domains)}
        else:
            form = {"max_tokens": 1, "logprobs": True, "top_logprobs": NUM_ALTERNATIVES}
        if mode == "json_schema":
            schema = {"name": "domain", "strict": True, "schema": self._named_domain.model_json_schema()}
            form["response_format"] = {"type": "json_schema", "json_schema": schema}
        return session.chat(messages=chat, temperature=0, **form)

    def _read(self, answer: bytes, rotation: int, mode: Mode) -> np.ndarray:
        """The answer's probabilities in domain order; a ValueError where it has none."""
        if mode == "logprobs":
            masses, listed = letter_masses(answer, len(self.domains))
            self._letter_masses.append(float(masses.sum()))
            self._count("num_unlisted_letters", int((~listed).sum()))
            return in_domain_order(masses / masses.sum(), rotation)
        content = _WrittenAnswer.model_validate_json(answer).choices[0].message.content
        written = content[content.find("{") : content.rfind("}") + 1]  # some models fence it
        named = self._named_domain.model_validate_json(written).domain
        return np.array([float(domain == named) for domain in self.domains])

    def _found_mode(self) -> Mode:
        if self._mode is not None:
            return self._mode
        self._mode = mode = self._endpoint.try_out(self._find_mode)
        self._forget_answers()  # those to the test question
        return mode

    def _find_mode(self, session: Session) -> Mode:
        """The first mode in which the test question gets an answer that can be read."""
        problems: list[str] = []
        for mode in get_args(Mode):
            problem = self._try_mode(session, mode)
            if problem is None:
                why = f" ({'; '.join(problems)})" if problems else ""
                log.info("%s at %s: answers are read as %s%s", self._endpoint.model, self._endpoint.base_url, mode, why)
                return mode
            problems.append(f"{mode}: {problem}")
        raise ValueError(
            f"{self._endpoint.model} at {self._endpoint.base_url} answers the test question in no form that can be "
            f"read: {'; '.join(problems)}"
        )

    def _try_mode(self, session: Session, mode: Mode) -> str | None:
        """Why the mode cannot be used, or None."""
        for attempt in range(NUM_ATTEMPTS):
            rotation = attempt % len(self.domains)
            try:
                answer = self._answer(session, TEST_TEXT, rotation, mode)
            except RefusedRequest as refusal:
                return str(refusal)
            try:
                self._read(answer, rotation, mode)
            except ValidationError as error:
                problem = f"the answer has no valid {'.'.join(map(str, error.errors()[0]['loc'])) or 'JSON'}"
            except ValueError as error:
                problem = str(error)
            else:
                return None
        return problem

    def _count(self, name: str, number: int = 1) -> int:
        """Add to one of the counts, and give the sum."""
        with self._lock:
            self._counts[name] += number
            return self._counts[name]

    def _forget_answers(self) -> None:
        self._counts = Counter(
            num_judged=0, num_without_answer=0, num_unusable_answers=0, num_refused_requests=0, num_unlisted_letters=0
        )
        self._letter_masses: list[float] = []
