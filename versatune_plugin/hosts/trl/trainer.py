"""VersaTuneSFTTrainer: TRL's SFTTrainer with a mixture."""

from collections.abc import Mapping

from datasets import Dataset
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.hosts.checks import (
    are_streams,
    check_before_the_model,
    check_domains_fit,
    describe_model,
    num_rows,
    rows_by_position,
)
from versatune_plugin.hosts.row_checks import drop_remarks
from versatune_plugin.hosts.trainer import VersaTuneMixin, visible_logger
from versatune_plugin.hosts.trl.detection import detected_start
from versatune_plugin.hosts.trl.formats import check_formats
from versatune_plugin.hosts.trl.lengths import check_lengths
from versatune_plugin.hosts.trl.processes import on_main
from versatune_plugin.hosts.trl.references import SFTReferences, settings_of
from versatune_plugin.measuring import references


class VersaTuneSFTTrainer(VersaTuneMixin, SFTTrainer):
    """TRL's `SFTTrainer`, drawing from a mixture; every domain may have its own row format.

    TRL prepares each domain on its own, so that rows it drops, shuffles or packs stay in their domain: under `packing`
    what is drawn is a packed row.

    Measurements that the block needs and whose files are missing are made first: the detected start where there is
    one process, the reference losses (where the block has a `reference:`) in all processes.

    Args:
        train_dataset: Rows per domain in any format TRL takes: a dict of datasets, a DatasetDict, one Dataset with
            a `domain` column, or a dict of streams (IterableDatasets).
        eval_dataset: Held-out rows for every domain in the same form, but no streams.
        versatune: The `versatune:` block as a `VersaTuneConfig` or a dict.

    Raises:
        ValueError: The block, the domains, the rows or the training arguments do not fit; all mistakes are named.
    """

    def __init__(self, *args, train_dataset=None, eval_dataset=None, versatune, **kwargs) -> None:
        args, train_dataset, eval_dataset = rows_by_position(args, train_dataset, eval_dataset)
        config, train, heldout = check_before_the_model(
            versatune, train_dataset, eval_dataset, args, kwargs, self.reference_run
        )
        check_formats(train, heldout, **_format_arguments(*args, **kwargs))
        check_lengths(train, heldout, *args, **kwargs)
        if are_streams(train):  # a stream of no format loses its place where it is mapped (see `streams`)
            train = {domain: rows.with_format(None) for domain, rows in train.items()}
        measured = detected_start(config, train, args, kwargs)
        references_measured, check_or_write = self._reference_losses(config, train, heldout, args, kwargs)
        self._raw_train = train
        self._prepared_train: dict | None = None
        super().__init__(
            *args, train_dataset=next(iter(train.values())), eval_dataset=heldout or None, versatune=None, **kwargs
        )
        prepared = self._prepared_train or train  # TRL skips preparation where the user says so
        given, heldout = (train, heldout), self.eval_dataset or {}
        del self._raw_train, self._prepared_train
        check_domains_fit(config, prepared, heldout, " left after TRL prepared them", given)
        self._say_what_was_dropped(given, (prepared, heldout))
        self.train_dataset = self.joined(prepared)
        self.use_mixture(config, prepared, heldout, measured | references_measured)
        check_or_write()

    def _say_what_was_dropped(self, given: tuple[Mapping, Mapping], left: tuple[Mapping, Mapping]) -> None:
        """Name the domains that lost rows; of streams and of packed rows that is not known."""
        if not self.is_world_process_zero():
            return
        for before, after, kind in zip(given, left, ("training", "held-out"), strict=True):
            if are_streams(before) or (kind == "training" and self.args.packing):
                continue
            for level, line in drop_remarks(num_rows(before), num_rows(after), "TRL", kind):
                visible_logger().log(level, "%s", line)

    @property
    def _columns_read(self) -> list[str] | None:
        """As inherited; TRL's own collator reads the tokens alone."""
        return [] if type(self.data_collator) is DataCollatorForLanguageModeling else super()._columns_read

    def _reference_losses(self, config: VersaTuneConfig, train: dict, heldout: dict, args: tuple, kwargs: dict):
        """The reference losses of a block, read or measured, and what to do when the rows are prepared."""
        path = config.references_file
        if path is None:
            return Measured(), lambda: None
        if config.reference is not None and (problem := on_main(lambda: references.missing_problem(config))):
            raise ValueError(problem)
        if config.reference is None or on_main(path.exists):
            model = args[0] if args else kwargs["model"]
            remedy = f"delete it and {references.runs_folder(path)}, and with a `reference:` it is made anew"
            measured, document = references.of_file(
                path, config, tuple(train), model, describe_model, remedy, settings_of(args, kwargs)
            )
            return measured, lambda: self.check_rows_of(path, document, remedy)
        runs = SFTReferences(config, train, heldout, args, kwargs, VersaTuneSFTTrainer, visible_logger())
        return runs.measure(), lambda: runs.write(self.data_fingerprints, self.probe_facts)

    def _prepare_dataset(self, dataset: Dataset, processing_class, args, packing: bool, *rest) -> Dataset:
        """Prepare every domain where TRL asks for the train set (which it knows as the first domain's rows).

        Packed rows stay within a domain, and held-out rows are not packed: each counts on its own.
        """
        raw = self.__dict__.get("_raw_train", {})
        if self.__dict__.get("_prepared_train") is not None or not any(dataset is rows for rows in raw.values()):
            return self._prepare_domain(dataset, processing_class, args, False, *rest)
        self._prepared_train = {
            domain: self._prepare_domain(rows, processing_class, args, packing, *rest) for domain, rows in raw.items()
        }
        return dataset

    def _prepare_domain(self, rows: Dataset, processing_class, args, packing: bool, *rest) -> Dataset:
        """Prepare one domain; TRL would decide by the first domain's rows whether prompts are masked in all."""
        if args.completion_only_loss is None:
            self.completion_only_loss = {"prompt", "completion"} <= set(rows.column_names or next(iter(rows)))
        return super()._prepare_dataset(rows, processing_class, args, packing, *rest)


def _format_arguments(model=None, args=None, data_collator=None, *_, formatting_func=None, **__) -> dict:
    """Those of a trainer's arguments that say how rows are prepared."""
    return {"args": args, "data_collator": data_collator, "formatting_func": formatting_func}
