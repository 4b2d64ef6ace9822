"""The YAML of a reference run: the user's, with the reference model on one domain alone."""

from collections.abc import Mapping
from pathlib import Path

from versatune_plugin.config.handover import KEY as HANDOVER
from versatune_plugin.config.handover import Handover
from versatune_plugin.hosts.axolotl.config import BY_COLUMN
from versatune_plugin.measuring.references import Making

_OF_THE_MAIN_MODEL = (
    "base_model_config",
    "model_type",
    "revision_of_model",
    "overrides_of_model_config",
    "overrides_of_model_kwargs",
    "lora_model_dir",
    "is_llama_derived_model",
    "is_mistral_derived_model",
    "is_falcon_derived_model",
    "is_qwen_derived_model",
)
_OF_THE_MAIN_TOKENIZER = (
    "tokenizer_config",
    "tokenizer_type",
    "tokenizer_use_fast",
    "tokenizer_legacy",
    "tokenizer_use_mistral_common",
    "added_tokens_overrides",
)
_OF_THE_MAIN_RUN = (
    "axolotl_config_path",
    "max_steps",
    "save_steps",
    "saves_per_epoch",
    "save_first_step",
    "save_only_model",
    "eval_strategy",  # Axolotl evaluates at the start even where it is "no", but not where it is missing
    "eval_steps",
    "evals_per_epoch",
    "early_stopping_patience",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "do_causal_lm_eval",
    "do_bench_eval",
    "resume_from_checkpoint",
    "hub_model_id",
    "hub_strategy",
    "hub_revision",
    "push_dataset_to_hub",
    "wandb_run_id",
    "comet_experiment_key",
    "debug",  # this and the following are put in by `axolotl train`
    "debug_text_only",
    "debug_num_examples",
    "prompter",
    "shard",
)
_RUN_NAMES = ("wandb_name", "mlflow_run_name", "trackio_run_name")


def yaml_of_run(raw: Mapping, making: Making, domain: str, output_dir: Path, own_tokenizer: bool) -> dict:
    """The YAML for the run of one domain.

    Args:
        raw: The user's YAML, with the domains of its datasets handed over.
        making: What the runs are made with.
        domain: The domain.
        output_dir: Of that run.
        own_tokenizer: Whether the reference model's own tokenizer is used.
    """
    reference, is_other = making.reference, making.reference.model != raw["base_model"]
    dropped = set(_OF_THE_MAIN_RUN)
    if is_other:
        dropped |= {*_OF_THE_MAIN_MODEL, *(_OF_THE_MAIN_TOKENIZER if own_tokenizer else ())}
    result = {key: value for key, value in raw.items() if key not in dropped}
    if is_other and not own_tokenizer:
        result["tokenizer_config"] = raw.get("tokenizer_config") or raw["base_model"]
    result |= {key: f"{raw[key]}-reference-{domain}" for key in _RUN_NAMES if raw.get(key)}
    return (
        result
        | _datasets(raw, domain)
        | {
            "base_model": reference.model,
            "num_epochs": reference.epochs,
            "output_dir": str(output_dir),
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "auto_resume_from_checkpoints": True,
            "versatune": _block(making, None if raw.get("dataset_exact_deduplication") else domain),
            HANDOVER: str(Handover(reference_run=making.reference_run(domain))),
        }
    )


def _datasets(raw: Mapping, domain: str) -> dict:
    """The entries with rows of a domain."""
    noted = Handover.of_config(raw)
    result = {}
    for key, domains in (("datasets", noted.dataset_domains), ("test_datasets", noted.test_dataset_domains)):
        entries = zip(raw.get(key) or [], domains, strict=True)
        every = raw.get("dataset_exact_deduplication")  # its rows are those that no other domain has
        result[key] = [entry for entry, name in entries if every or name in (domain, BY_COLUMN)]
    return result


def _block(making: Making, only: str | None) -> dict:
    config = making.config
    names = {
        "domains": {name: paths for name, paths in (config.domains or {}).items() if only in (None, name)} or None,
        "domain_column": config.domain_column,
    }
    return {key: value for key, value in (making.block | names).items() if value is not None}
