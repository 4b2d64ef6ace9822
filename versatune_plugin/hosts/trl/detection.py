"""The detected start of a TRL script: read from its file, or as a single process measured before the run."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from accelerate import PartialState
from transformers import AutoTokenizer

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.hosts.checks import are_streams
from versatune_plugin.hosts.stream_checks import fitted_on_rows
from versatune_plugin.hosts.trainer import visible_logger
from versatune_plugin.hosts.trl.processes import on_main, random_state_kept
from versatune_plugin.measuring.detection.models import SampledModel
from versatune_plugin.measuring.detection.run import detected_start as read_start
from versatune_plugin.measuring.detection.run import make_detection, missing_problem
from versatune_plugin.measuring.detection.texts import row_texts
from versatune_plugin.report.detection import format_detection


def detected_start(config: VersaTuneConfig, train: Mapping, args: tuple, kwargs: Mapping) -> Measured:
    """The proportions of the block's detection.json, which is made if it is not there.

    Args:
        config: The `versatune:` block.
        train: Training rows per domain, as the user gave them.
        args: The trainer's positional arguments.
        kwargs: Its other keyword arguments.

    Raises:
        RuntimeError: The file is missing and this is one of several processes.
        ValueError: The file does not fit; with all reasons and what to do.
    """
    file = config.detection_file
    if file is None:
        return Measured()
    logger = visible_logger()
    base = _base_model(*args, **kwargs)
    if are_streams(train):
        return read_start(config, tuple(train), base, fitted_on_rows, logger)
    texts = {domain: row_texts(rows) for domain, rows in train.items()}
    if not on_main(file.exists):
        if problem := missing_problem(config):
            raise ValueError(problem)
        if PartialState().num_processes > 1:
            script = shlex.join(["python", *sys.argv])
            raise RuntimeError(
                f"versatune.initial_proportions: {file} does not exist; make it in one process first: start this "
                f"script without its launcher ({script}) until it says that training starts"
            )
        logger.info("%s does not exist: measuring what the model knows first", file)
        with random_state_kept(), _ready_to_sample(base):
            document = make_detection(config, file, base, texts)
        logger.info("%s\n%s", file, format_detection(document))
    remedy = f"Delete {file}, and it is made anew"
    return read_start(config, tuple(train), base, lambda: texts, logger, remedy)


@contextmanager
def _ready_to_sample(base: SampledModel) -> Iterator[None]:
    """A loaded model in eval mode where it will train (the trainer moves it there anyway), then in its mode again."""
    if base.loaded is None:
        yield
        return
    model, was_training = base.loaded[0], base.loaded[0].training
    if not getattr(model, "is_quantized", False) and not getattr(model, "hf_device_map", None):
        model.to(PartialState().device)
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _base_model(model, args=None, *_, processing_class=None, **__) -> SampledModel:
    """The model that the trainer was given: a name, which is loaded for the detection alone, or a loaded one."""
    if isinstance(model, str):
        options = dict(getattr(args, "model_init_kwargs", None) or {})
        known = ("dtype", "revision", "trust_remote_code", "attn_implementation")
        return SampledModel(model, {"dtype": "auto"} | {key: options[key] for key in known if key in options})
    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ValueError(
            "versatune.initial_proportions: detection needs a model with a name: give the trainer a hub name or a "
            "folder, or a model loaded with from_pretrained"
        )
    return SampledModel(name, loaded=(model, processing_class or AutoTokenizer.from_pretrained(name)))
