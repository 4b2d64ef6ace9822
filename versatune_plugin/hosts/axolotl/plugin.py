"""VersaTunePlugin: each Axolotl hook calls one thing of this package; no arithmetic."""

import copy
import logging
from collections.abc import Mapping

from axolotl.common.datasets import TrainDatasetMeta
from axolotl.integrations.base import BasePlugin, PluginManager

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.handover import Handover
from versatune_plugin.config.measured import Measured
from versatune_plugin.config.settings import provisional
from versatune_plugin.domains import nearest
from versatune_plugin.files import rows as data
from versatune_plugin.hosts.axolotl import config as axolotl_config

logger = logging.getLogger("axolotl.versatune")  # Axolotl shows only its own family of loggers


class VersaTunePlugin(BasePlugin):
    """Gives an Axolotl run a `versatune:` block; does nothing where the YAML has none."""

    def register(self, cfg) -> None:
        """Check the block with everything around it, before anything is loaded.

        Raises:
            ValueError: All mistakes together, one line each.
        """
        if "versatune" not in cfg:
            problems = axolotl_config.forgotten_block_problems(cfg)
            if problems:
                raise ValueError("versatune: " + "; ".join(problems))
            return
        self._yaml = {key: value for key, value in _plain(cfg).items() if key != "axolotl_config_path"}
        axolotl_config.fill_in(cfg)
        settings, reason = axolotl_config.loader_settings(cfg)
        for key, value in settings.items():
            cfg[key] = value
        if settings:
            logger.info("%s: %s", ", ".join(f"{key} {value}" for key, value in settings.items()), reason)
        for line in [*axolotl_config.unused_in_packing(cfg), *unknown_in_entries(self._yaml)]:
            logger.warning(line)

    def get_input_args(self) -> str:
        """The args class that Axolotl merges into its schema."""
        return "versatune_plugin.config.block.VersaTuneArgs"

    def load_datasets(self, cfg, preprocess: bool = False) -> TrainDatasetMeta | None:
        """Every domain's rows, prepared by Axolotl's own code and concatenated in domain order.

        Before a training, measurements that the block names and that are missing are made, and their numbers take
        the place of their files.
        """
        if not self._acts(cfg):
            return None
        from versatune_plugin.hosts.axolotl import measurements
        from versatune_plugin.hosts.axolotl.data import load_domains
        from versatune_plugin.hosts.checks import check_domains_fit, check_rows, num_rows, settings_of
        from versatune_plugin.hosts.trainer import stand_in

        config, reference_run = block_of(cfg), Handover.of_config(cfg).reference_run
        if problems := host_problems(cfg, config):
            raise ValueError("versatune: " + "; ".join(problems))
        if not preprocess:
            measurements.make_what_is_missing(config, self._yaml)
        train, heldout, notes = load_domains(cfg, config)
        for level, line in notes:
            logger.log(level, line)
        check_domains_fit(config, train, heldout)
        check_rows(config, train, heldout)
        wanted = columns_read(cfg)
        joined = stand_in(train, wanted)
        self._show_labels(cfg, train)
        measured = provisional(config, tuple(train))  # preprocessing may come before anything is measured
        if not preprocess:
            measured = measurements.measured_for(config, cfg, self._yaml, train, heldout)
        length = self._length(
            cfg,
            config,
            measured,
            train,
            packs=bool(cfg.sample_packing) and not preprocess,
            of_reference=reference_run is not None,
        )
        settings_of(config, measured, num_rows(train), length, reference_run)
        self._config, self._measured, self._train, self._heldout = config, measured, train, heldout
        self._reference_run = reference_run
        return TrainDatasetMeta(
            train_dataset=joined,
            eval_dataset=data.join(heldout, wanted) if heldout else None,
            total_num_steps=min(length.steps_by_epochs, length.num_steps),
        )

    def get_trainer_cls(self, cfg):
        """The class Axolotl would have used for this YAML, with the mixture."""
        if not self._acts(cfg):
            return None
        from axolotl.core.trainers import AxolotlTrainer
        from axolotl.utils.import_helper import get_cls_from_module_str

        from versatune_plugin.hosts.trainer import make_trainer_class

        base = get_cls_from_module_str(cfg.trainer_cls) if cfg.trainer_cls else AxolotlTrainer
        if not cfg.sample_packing:
            return make_trainer_class(base)
        from versatune_plugin.hosts.axolotl.packing import AxolotlPackingMixin

        return make_trainer_class(base, AxolotlPackingMixin)

    def post_trainer_create(self, cfg, trainer) -> None:
        """Hand the mixture to the trainer.

        Raises:
            RuntimeError: The trainer is not ours: the run would go on unmixed.
        """
        if not self._acts(cfg):
            return
        from versatune_plugin.hosts.trainer import VersaTuneMixin

        if not isinstance(trainer, VersaTuneMixin):
            raise RuntimeError(
                f"versatune: Axolotl built a {type(trainer).__name__}, which cannot mix; nothing was mixed"
            )
        if cfg.sample_packing:
            trainer.packing, trainer.packed_epoch = self._packing, self._packed_epoch
        trainer.reference_run = self._reference_run
        trainer.use_mixture(self._config, self._train, self._heldout, self._measured, logger)

    def _show_labels(self, cfg, train) -> None:
        """What `debug: true`, `--debug` and the like ask for: some rows of each domain with their labels."""
        asked = {key: self._yaml.get(key) for key in ("debug", "debug_text_only", "debug_num_examples")}
        if not any(asked.values()) or cfg.streaming:
            return
        from axolotl.loaders import load_tokenizer
        from axolotl.utils.tokenization import check_dataset_labels

        tokenizer = load_tokenizer(cfg)
        for domain, rows in train.items():
            number = min(max(1, int(asked["debug_num_examples"] or 0)), len(rows))
            logger.info("labels of %d row(s) of %s:", number, domain)
            check_dataset_labels(rows, tokenizer, num_examples=number, text_only=bool(asked["debug_text_only"]))

    def _length(self, cfg, config: VersaTuneConfig, measured: Measured, train, *, packs: bool, of_reference: bool):
        """The length of the run; how many rows a packed step takes differs from step to step, and is estimated."""
        from versatune_plugin.hosts.checks import num_rows, rows_per_epoch

        if not packs:
            rows = rows_per_epoch(config, num_rows(train))
            return axolotl_config.run_length(cfg, rows, of_reference=of_reference)
        from versatune_plugin.hosts.axolotl.packing import AxolotlPacking

        self._packing = packing = AxolotlPacking.of(cfg)
        self._packed_epoch = epoch = packing.epoch(config, measured, train)
        logger.info(
            "sample_packing: %d bins of %d tokens per step, about %d rows, which wait %.1f steps for bins to fill; "
            "%d steps per epoch",
            packing.bins_per_batch * packing.batches_per_step,
            packing.capacity,
            epoch.rows_per_step,
            epoch.waits,
            epoch.steps,
        )
        rows = epoch.steps * epoch.rows_per_step
        return axolotl_config.run_length(cfg, rows, epoch.rows_per_step, of_reference=of_reference)

    def _acts(self, cfg) -> bool:
        """Whether the YAML has our block; of two instances (by `plugins:` and by entry point) only the first acts."""
        plugins = PluginManager.get_instance().plugins.values()
        ours = [plugin for plugin in plugins if isinstance(plugin, VersaTunePlugin)]
        return cfg.get("versatune") is not None and (not ours or ours[0] is self)


def host_problems(cfg, config: VersaTuneConfig) -> list[str]:
    """What in a validated config cannot be combined with the mixture, as far as can be told without rows."""
    from versatune_plugin.hosts.checks import train_signal_problems

    problems = [  # Axolotl takes the first plugin's trainer class and ignores the others silently
        f"the plugin {name} brings a trainer class of its own; use one of the two"
        for name, plugin in PluginManager.get_instance().plugins.items()
        if not isinstance(plugin, VersaTunePlugin) and plugin.get_trainer_cls(cfg) is not None
    ]
    if cfg.model_config_type == "mamba":
        problems.append("Axolotl's trainer for mamba models cannot mix")
    if not config.measures_training:
        return problems
    if cfg.sample_packing:
        problems.append(
            "signal: train: a packed batch does not say which row a loss is of: set sample_packing to false, or use "
            "signal: probe"
        )
    return problems + train_signal_problems(cfg)


def columns_read(cfg) -> tuple[str, ...] | None:
    """Columns of prepared rows that may reach the model or a collator; None: all of them."""
    return None if cfg.remove_unused_columns is False else ("attention_mask", "position_ids", "token_type_ids")


def unknown_in_entries(cfg) -> list[str]:
    """Keys of dataset entries that Axolotl drops without a word."""
    from axolotl.utils.schemas import datasets as schemas

    known = {"domain", *schemas.SFTDataset.model_fields, *schemas.SyntheticDataset.model_fields}
    return [
        f"{key}[{number}].{name}: Axolotl does not know it{nearest(str(name), known)}"
        for key in ("datasets", "test_datasets")
        for number, entry in enumerate(cfg[key] if isinstance(cfg.get(key), list) else ())
        if isinstance(entry, Mapping)
        for name in entry
        if name not in known
    ]


def block_of(cfg) -> VersaTuneConfig:
    """The typed block; Axolotl turns it into a dict in which missing keys read as None."""
    return VersaTuneConfig.model_validate(_plain(cfg["versatune"]))


def _plain(block) -> dict:
    """A plain copy of a dict of Axolotl's or of a user's."""
    return copy.deepcopy(block.to_dict() if hasattr(block, "to_dict") else dict(block))
