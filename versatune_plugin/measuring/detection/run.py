"""A detection as a `versatune:` block asks for it: choose generator and judge, detect, write the file, read it back."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_plugin.config.block import DETECTION_FILE, VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.config.sections import DetectionConfig
from versatune_plugin.files.fingerprints import model_fingerprint, texts_fingerprint
from versatune_plugin.measuring.detection.detect import detect
from versatune_plugin.measuring.detection.document import DetectionDocument
from versatune_plugin.measuring.detection.judges import Judge
from versatune_plugin.measuring.detection.models import SampledModel, load_causal_lm, start_token
from versatune_plugin.measuring.detection.samples import Generator
from versatune_plugin.tables import in_a_line

Texts = Mapping[str, Sequence[str]]
"""Raw texts of the training rows per domain, in domain order."""

# Of an endpoint: the same model gives the same answers elsewhere, and at another pace
_OF_THE_TRANSPORT = ("endpoint", "api_key_env", "concurrency", "requests_per_minute")
REMEDY = "Measure again: `versatune detect CONFIG --refresh`"


def make_detection(config: VersaTuneConfig, file: Path, base: SampledModel, texts: Texts) -> DetectionDocument:
    """Detect, and write the file.

    Args:
        config: The `versatune:` block.
        file: Where detection.json goes; the cache lies beside it.
        base: The model to sample from.
        texts: Raw texts of the training rows per domain, in domain order.
    """
    settings = config.detection or DetectionConfig()
    judge = build_judge(settings, texts)
    generator, start = build_generator(settings, base)
    detection = detect(
        generator,
        judge,
        num_samples=settings.num_samples,
        iterations=settings.iterations,
        count=settings.count,
        tolerance=settings.tolerance or None,
        folder=cache_folder(file),
        seed=settings.seed,
        data_fingerprints=None if settings.judge.model else _fingerprints(texts),
    )
    document = DetectionDocument(**dict(detection), base_model=base.description(), start=start, asked=_asked(settings))
    document.write(file)
    return document


def cache_folder(file: Path) -> Path:
    """Where the samples and judgements behind a detection.json are kept."""
    return file.parent / "cache"


def read_detection(
    path: Path,
    domains: Sequence[str],
    base: SampledModel,
    texts: Callable[[], Texts] | None,
    asked: DetectionConfig | None,
    remedy: str = REMEDY,
) -> DetectionDocument:
    """The document in a file, which must fit what it is used for.

    Args:
        path: The file.
        domains: Domains of the run.
        base: The model of the run.
        texts: Reads the raw texts of the training rows per domain, where the judge was fitted on them; None leaves
            the check of the data out.
        asked: The `detection:` block of the run; None leaves the check of the settings out.
        remedy: What to do about a file that does not fit.

    Raises:
        ValueError: Another kind of file, other domains, another model, other data or other settings; the message says
            which.
    """
    document = DetectionDocument.read(path)
    document.check_fits(
        path=path,
        domains=domains,
        model=base.description(),
        data_fingerprints=_fingerprints(texts()) if texts and document.data else None,
        remedy=remedy,
    )
    was, now = document.asked, _asked(asked) if asked else {}
    changed = [f"{key} was {was.get(key)!r}, is now {now[key]!r}" for key in now if was.get(key) != now[key]]
    if changed:
        raise ValueError(f"{path} was made with other settings: {'; '.join(changed)}. {remedy}")
    return document


def detected_start(
    config: VersaTuneConfig,
    domains: Sequence[str],
    base: SampledModel,
    texts: Callable[[], Texts] | None,
    logger: logging.Logger,
    remedy: str = REMEDY,
) -> Measured:
    """The proportions of the detection.json that a block names, which must fit the model, the domains and the data.

    Args:
        config: The `versatune:` block.
        domains: Domains of the run.
        base: Its model.
        texts: As in `read_detection`.
        logger: Is told the start.
        remedy: What to do about a file that does not fit.

    Raises:
        ValueError: The file is missing or does not fit; with all reasons and what to do.
    """
    file = config.detection_file
    if file is None:
        return Measured()
    if not file.exists():
        raise ValueError(f"versatune.initial_proportions: {file} does not exist; `versatune detect CONFIG` makes it")
    document = read_detection(file, domains, base, texts, config.detection, remedy)
    shares = in_a_line(document.proportions)
    judge = document.judge_name["kind"]
    logger.info("start from %s (%s, %s texts): %s", file, judge, f"{document.num_judged:,}", shares)
    return Measured(start=document.proportions, sources={"detection": document.source(file)})


def missing_problem(config: VersaTuneConfig) -> str | None:
    """Why a run does not make its missing detection.json itself: a path that may be misspelt says how to make it."""
    file = config.detection_file
    if file is None or config.start == "detected":
        return None
    if near := DetectionDocument.misspelt(file):
        return (
            f"versatune.initial_proportions: {file} does not exist, and {near} does: give that path, or, to measure "
            "anew, one that differs more"
        )
    if config.detection is not None or file == DETECTION_FILE:
        return None
    return (
        f"versatune.initial_proportions: {file} does not exist; give the right path, or `detected`, which makes "
        f"{DETECTION_FILE}, or a `detection:` block to make {file} with"
    )


def build_generator(settings: DetectionConfig, base: SampledModel) -> tuple[Generator, str]:
    """Samples from the base model, loaded here or served by an endpoint; and a sentence on what they start from."""
    options: dict[str, Any] = {
        "fingerprint": base.fingerprint(),
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "seed": settings.seed,
    }
    if settings.generator:
        from versatune_plugin.measuring.detection.endpoint import Endpoint
        from versatune_plugin.measuring.detection.endpoint_generation import EndpointGenerator

        token_id, _, sentence = start_token(base.load_tokenizer(), settings.start_token)
        endpoint = Endpoint(
            base_url=settings.generator.endpoint,
            model=settings.generator.model or base.name,
            api_key_env=settings.generator.api_key_env,
            concurrency=settings.generator.concurrency,
            timeout_seconds=300.0,
        )
        return EndpointGenerator(endpoint, base_model=base.name, start_token_id=token_id, **options), sentence
    from versatune_plugin.measuring.detection.generation import LocalGenerator

    model, tokenizer = base.load()
    token_id, _, sentence = start_token(tokenizer, settings.start_token)
    generator = LocalGenerator(
        model, tokenizer, name=base.name, start_token_id=token_id, batch_size=settings.batch_size, **options
    )
    return generator, sentence


def build_judge(settings: DetectionConfig, texts: Texts) -> Judge:
    """The judge that the block names: an endpoint, a local model, or a classifier fitted on the texts."""
    judge, domains = settings.judge, tuple(texts)
    question: dict[str, Any] = {"max_text_tokens": judge.max_text_tokens, "orders": judge.orders}
    if judge.endpoint and judge.model:
        from versatune_plugin.measuring.detection.endpoint import Endpoint
        from versatune_plugin.measuring.detection.judges.endpoint import EndpointJudge

        endpoint = Endpoint(
            base_url=judge.endpoint,
            model=judge.model,
            api_key_env=judge.api_key_env,
            concurrency=judge.concurrency,
            requests_per_minute=judge.requests_per_minute,
        )
        return EndpointJudge(endpoint, domains, settings.descriptions, **question)
    if judge.model:
        from versatune_plugin.measuring.detection.judges.local import LocalJudge

        model, tokenizer = load_causal_lm(judge.model, dtype="auto")
        return LocalJudge(
            model,
            tokenizer,
            domains,
            settings.descriptions,
            name=judge.model,
            fingerprint=model_fingerprint(judge.model),
            **question,
        )
    try:
        from versatune_plugin.measuring.detection.judges.classifier import ClassifierJudge
    except ImportError as error:
        raise ImportError(
            f"the classifier needs scikit-learn ({error}): pip install 'versatune_plugin[detect]'"
        ) from error
    return ClassifierJudge.fit(texts, seed=settings.seed)


def _fingerprints(texts: Texts) -> dict[str, str]:
    return {domain: texts_fingerprint(rows) for domain, rows in texts.items()}


def _asked(settings: DetectionConfig) -> dict:
    """The settings that a detection depends on, by their keys below `detection:`."""
    given = settings.model_dump()
    inner = {
        f"{name}.{key}": value for name in ("generator", "judge") for key, value in (given.pop(name) or {}).items()
    }
    return {key: value for key, value in (given | inner).items() if not key.endswith(_OF_THE_TRANSPORT)}
