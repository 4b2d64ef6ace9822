"""VersaTuneSFTTrainer: TRL's SFTTrainer with a mixture."""

from datasets import Dataset
from trl import SFTTrainer

from versatune_plugin import data
from versatune_plugin.config import VersaTuneConfig
from versatune_plugin.trainer import VersaTuneMixin, as_domains, check_domains_fit


class VersaTuneSFTTrainer(VersaTuneMixin, SFTTrainer):
    """TRL's `SFTTrainer`, drawing from a mixture; every domain may have its own row format.

    TRL prepares each domain on its own, so that rows it drops or shuffles stay in their domain.

    Args:
        train_dataset: Rows per domain in any format TRL takes: a dict of datasets, a DatasetDict, or one Dataset
            with a `domain` column.
        eval_dataset: Held-out rows in the same form, for every domain.
        versatune: The `versatune:` block as a `VersaTuneConfig` or a dict.

    Raises:
        ValueError: The block, the domains, the rows or the training arguments do not fit; all mistakes are named.
    """

    def __init__(self, *args, train_dataset, eval_dataset=None, versatune, **kwargs) -> None:
        config = VersaTuneConfig.model_validate(versatune)
        train = as_domains(train_dataset, "train_dataset", config)
        heldout = as_domains(eval_dataset, "eval_dataset", config)
        check_domains_fit(config, train, heldout)
        sft_config = kwargs.get("args") or (args[1] if len(args) > 1 else None)
        if sft_config is not None and (sft_config.packing or sft_config.padding_free):
            raise ValueError("SFTConfig(packing=True) and padding_free=True are not available yet under versatune")
        self._raw_train, self._prepared_train = train, None
        super().__init__(
            *args,
            train_dataset=next(iter(train.values())),
            eval_dataset=heldout or None,
            versatune=None,
            **kwargs,
        )
        prepared = self._prepared_train or train  # TRL skips preparation where the user says so
        heldout = self.eval_dataset or {}
        del self._raw_train, self._prepared_train
        check_domains_fit(config, prepared, heldout)
        self.train_dataset = data.join(list(prepared.values()))
        self.use_mixture(config, prepared, heldout)

    def _prepare_dataset(self, dataset: Dataset, *args, **kwargs) -> Dataset:
        """Prepare every domain where TRL asks for the train set (which it knows as the first domain's rows)."""
        raw = self.__dict__.get("_raw_train", {})
        if self.__dict__.get("_prepared_train") is not None or not any(dataset is rows for rows in raw.values()):
            return super()._prepare_dataset(dataset, *args, **kwargs)
        prepare = super()._prepare_dataset
        self._prepared_train = {domain: prepare(rows, *args, **kwargs) for domain, rows in raw.items()}
        return dataset
