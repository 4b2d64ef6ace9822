"""From an Axolotl YAML or a trainer's rows to detection.json: choose generator and judge, detect, write, read."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from versatune_plugin.config.block import DETECTION_FILE, DetectionConfig, VersaTuneConfig
from versatune_plugin.config.handover import Handover
from versatune_plugin.config.measured import Measured
from versatune_plugin.files.documents import read_document, write_document
from versatune_plugin.hosts.axolotl import config as axolotl_config
from versatune_plugin.measuring.detection.detect import SCHEMA, Generator, check_detection, detect
from versatune_plugin.measuring.detection.judges import Judge

# Of an endpoint: the same model gives the same answers elsewhere, and at another pace
_OF_THE_TRANSPORT = ("endpoint", "api_key_env", "concurrency", "requests_per_minute")
REMEDY = "Measure again: `versatune detect CONFIG --refresh`"


@dataclass(frozen=True)
class BaseModel:
    """The model to know, and how the user loads it."""

    name: str
    """Hub name or folder."""
    options: Mapping = field(default_factory=dict)
    """Keyword arguments of `generation.load_causal_lm`."""
    loaded: tuple | None = None
    """Model and tokenizer, where they are loaded already."""

    def description(self) -> dict:
        """Name and fingerprint."""
        return {"name": self.name, "fingerprint": self.fingerprint()}

    def load(self) -> tuple:
        """Model and tokenizer."""
        from versatune_plugin.measuring.detection.generation import load_causal_lm

        return self.loaded or load_causal_lm(self.name, **self.options)

    def load_tokenizer(self):
        """The tokenizer alone."""
        from transformers import AutoTokenizer

        if self.loaded:
            return self.loaded[1]
        hub = {key: self.options[key] for key in ("revision", "trust_remote_code") if key in self.options}
        return AutoTokenizer.from_pretrained(self.name, **hub)

    def fingerprint(self) -> str | None:
        """Changes with the weights; None where that cannot be told (a hub model that is not in the cache)."""
        from versatune_plugin.measuring.detection.generation import model_fingerprint

        named = {self.name: self.options.get("revision"), self.options.get("adapter"): None}
        parts = [model_fingerprint(name, revision) for name, revision in named.items() if name]
        return "+".join(parts) if parts and None not in parts else None


def read_yaml(path: Path) -> tuple[dict, VersaTuneConfig]:
    """An Axolotl YAML with a `versatune:` block, checked as `axolotl train` does.

    Raises:
        ValueError: It is not a YAML of keys, has no block, or has mistakes; all of them are named.
    """
    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} must hold keys, as an Axolotl YAML does")
    if "versatune" not in cfg:
        raise ValueError("; ".join(axolotl_config.forgotten_block_problems(cfg)) or f"{path} has no `versatune:` block")
    if not isinstance(cfg.get("base_model"), str):
        raise ValueError(f"{path}: base_model is missing: which model is to be looked at?")
    axolotl_config.fill_in(cfg)
    return cfg, VersaTuneConfig.model_validate(cfg["versatune"])


def base_model_of(cfg: Mapping) -> BaseModel:
    """The base model as an Axolotl YAML describes it: precision, quantisation, adapter."""
    options = {
        "dtype": _dtype(cfg),
        "load_in_4bit": bool(cfg.get("load_in_4bit")),
        "load_in_8bit": bool(cfg.get("load_in_8bit")),
        "adapter": cfg.get("lora_model_dir"),
        "revision": cfg.get("revision_of_model"),
        "trust_remote_code": bool(cfg.get("trust_remote_code")),
        "attn_implementation": cfg.get("attn_implementation"),
    }
    return BaseModel(cfg["base_model"], {key: value for key, value in options.items() if value})


def _dtype(cfg: Mapping) -> str:
    if cfg.get("bf16") == "auto":
        import torch

        return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if cfg.get("bf16") else "float16" if cfg.get("fp16") else "float32"


def texts_of(cfg: Mapping, config: VersaTuneConfig, handover: Handover) -> dict[str, list[str]]:
    """Raw texts of the training rows per domain, in domain order."""
    from versatune_plugin.measuring.detection.texts import texts_by_domain

    found = texts_by_domain(cfg["datasets"], handover.dataset_domains, config.domain_column)
    named = axolotl_config.domain_order(config, handover)
    return {domain: found[domain] for domain in [*named, *(name for name in found if name not in named)]}


def detect_from_yaml(path: Path, refresh: bool, say: Callable[[str], None]) -> tuple[dict, Path]:
    """The detection that a YAML asks for, made unless its file is there and fits.

    Args:
        path: The Axolotl YAML.
        refresh: Make the file anew; samples and judgements in the cache are used again where they fit.
        say: Takes what the user should know, a line at a time.

    Returns:
        The document and where it lies.

    Raises:
        ValueError: Mistakes in the YAML, a file that does not fit, or a detection that came to nothing.
        OSError: Nothing can be read or written there; what is finished is kept.
    """
    cfg, config = read_yaml(path)
    file = config.detection_file or DETECTION_FILE
    base, texts = base_model_of(cfg), texts_of(cfg, config, Handover.of_config(cfg))
    if file.exists() and not refresh:
        document = read_detection(file, tuple(texts), base, texts, config.detection)
        say(f"{file} is there and fits: nothing to do (--refresh makes it anew)")
        return document, file
    return make_detection(config, file, base, texts), file


def make_detection(config: VersaTuneConfig, file: Path, base: BaseModel, texts: Mapping[str, Sequence[str]]) -> dict:
    """Detect, and write the file and its plot.

    Args:
        config: The `versatune:` block.
        file: Where detection.json goes; the cache lies beside it.
        base: The model to sample from.
        texts: Raw texts of the training rows per domain, in domain order.
    """
    settings = config.detection or DetectionConfig()
    judge = build_judge(settings, texts)
    generator, start = build_generator(settings, base)
    document = detect(
        generator,
        judge,
        num_samples=settings.num_samples,
        iterations=settings.iterations,
        count=settings.count,
        tolerance=settings.tolerance or None,
        folder=cache_folder(file),
        seed=settings.seed,
        correct=_correction(judge) if settings.judge.label_shift_correction else None,
        data_fingerprints=None if settings.judge.model else _fingerprints(texts),
    )
    document["base_model"] = base.description()
    document["start"] = start
    document["asked"] = _asked(settings)
    write_document(file, SCHEMA, document)
    return document


def cache_folder(file: Path) -> Path:
    """Where the samples and judgements behind a detection.json are kept."""
    return file.parent / "cache"


def read_detection(
    path: Path,
    domains: Sequence[str],
    base: BaseModel,
    texts: Mapping | None,
    asked: DetectionConfig | None,
    remedy: str = REMEDY,
) -> dict:
    """The document in a file, which must fit what it is used for.

    Args:
        path: The file.
        domains: Domains of the run.
        base: The model of the run.
        texts: Raw texts of the training rows per domain; None leaves the check of the data out.
        asked: The `detection:` block of the run; None leaves the check of the settings out.
        remedy: What to do about a file that does not fit.

    Raises:
        ValueError: Another kind of file, other domains, another model, other data or other settings; the message says
            which.
    """
    document = read_document(path, SCHEMA)
    check_detection(
        document,
        path=path,
        domains=domains,
        model=base.description(),
        data_fingerprints=None if texts is None else _fingerprints(texts),
        remedy=remedy,
    )
    was, now = document["asked"], _asked(asked) if asked else {}
    changed = [f"{key} was {was.get(key)!r}, is now {now[key]!r}" for key in now if was.get(key) != now[key]]
    if changed:
        raise ValueError(f"{path} was made with other settings: {'; '.join(changed)}. {remedy}")
    return document


def _asked(settings: DetectionConfig) -> dict:
    """The settings that a detection depends on, by their keys below `detection:`."""
    given = settings.model_dump()
    inner = {
        f"{name}.{key}": value for name in ("generator", "judge") for key, value in (given.pop(name) or {}).items()
    }
    return {key: value for key, value in (given | inner).items() if not key.endswith(_OF_THE_TRANSPORT)}


def detected_start(
    config: VersaTuneConfig,
    domains: Sequence[str],
    base: BaseModel,
    texts: Callable[[], Mapping] | None,
    logger: logging.Logger,
    remedy: str = REMEDY,
) -> Measured:
    """The proportions of the detection.json that a block names, which must fit the model, the domains and the data.

    Args:
        config: The `versatune:` block.
        domains: Domains of the run.
        base: Its model.
        texts: Reads the raw texts of the training rows per domain, where the judge was fitted on them; None leaves
            the check of the data out.
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
    fitted_on = read_document(file, SCHEMA)["data"]
    texts_now = texts() if texts and fitted_on else None
    document = read_detection(file, domains, base, texts_now, config.detection, remedy)
    shares = ", ".join(f"{domain} {share:.3f}" for domain, share in document["proportions"].items())
    judge = document["judge"]["kind"]
    logger.info("start from %s (%s, %s texts): %s", file, judge, f"{document['num_judged']:,}", shares)
    return Measured(start=document["proportions"], sources={"detection": source(document, file)})


def source(document: Mapping, file: Path) -> dict:
    """What a history keeps of the detection that its run started from."""
    judge = document["judge"]
    return {
        "file": str(file),
        "base_model": document["base_model"]["name"],
        "judge": {key: judge[key] for key in ("kind", "name", "model") if judge.get(key)},
        "num_samples": document["num_samples"],
        "num_judged": document["num_judged"],
        "count": document["count"],
        "intervals": document["intervals"],
        "seconds": document["seconds"]["total"],
    }


def _fingerprints(texts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    from versatune_plugin.measuring.detection.texts import texts_fingerprint

    return {domain: texts_fingerprint(rows) for domain, rows in texts.items()}


def build_generator(settings: DetectionConfig, base: BaseModel) -> tuple[Generator, str]:
    """Samples from the base model, loaded here or served by an endpoint; and a sentence on what they start from."""
    from versatune_plugin.measuring.detection.generation import LocalGenerator, start_token

    options = {
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "seed": settings.seed,
    }
    if settings.generator:
        from versatune_plugin.measuring.detection.endpoint import EndpointGenerator

        token_id, _, sentence = start_token(base.load_tokenizer(), settings.start_token)
        generator = EndpointGenerator(
            base_url=settings.generator.endpoint,
            model=settings.generator.model or base.name,
            start_token_id=token_id,
            api_key_env=settings.generator.api_key_env,
            concurrency=settings.generator.concurrency,
            base_model=base.name,
            fingerprint=base.fingerprint(),
            **options,
        )
        return generator, sentence
    model, tokenizer = base.load()
    token_id, _, sentence = start_token(tokenizer, settings.start_token)
    generator = LocalGenerator(
        model,
        tokenizer,
        name=base.name,
        fingerprint=base.fingerprint(),
        start_token_id=token_id,
        batch_size=settings.batch_size,
        **options,
    )
    return generator, sentence


def build_judge(settings: DetectionConfig, texts: Mapping[str, Sequence[str]]) -> Judge:
    """The judge that the block names: an endpoint, a local model, or a classifier fitted on the texts."""
    judge, domains = settings.judge, tuple(texts)
    if judge.endpoint:
        from versatune_plugin.measuring.detection.judges.endpoint import EndpointJudge

        return EndpointJudge(
            domains,
            settings.descriptions,
            base_url=judge.endpoint,
            model=judge.model,
            api_key_env=judge.api_key_env,
            concurrency=judge.concurrency,
            requests_per_minute=judge.requests_per_minute,
            max_text_tokens=judge.max_text_tokens,
            orders=judge.orders,
        )
    if judge.model:
        from versatune_plugin.measuring.detection.generation import load_causal_lm, model_fingerprint
        from versatune_plugin.measuring.detection.judges.local import LocalJudge

        return LocalJudge(
            *load_causal_lm(judge.model, dtype="auto"),
            domains,
            settings.descriptions,
            name=judge.model,
            fingerprint=model_fingerprint(judge.model),
            max_text_tokens=judge.max_text_tokens,
            orders=judge.orders,
        )
    try:
        from versatune_plugin.measuring.detection.judges.classifier import ClassifierJudge
    except ImportError as error:
        raise ImportError(
            f"the classifier needs scikit-learn ({error}): pip install 'versatune_plugin[detect]'"
        ) from error
    return ClassifierJudge.fit(texts, seed=settings.seed)


def _correction(judge):
    """Undoes the mistakes that the classifier makes on held-out rows."""
    from versatune_plugin.measuring.detection.judges.correction import corrected_proportions

    return partial(corrected_proportions, confusion=judge.confusion)
