"""What it shows: a TRL script that mixes domains; against an ordinary one, the trainer's name and one argument differ.

Needs:   one folder per domain with `train.jsonl` and `validation.jsonl` of {"instruction", "input", "output"}, such
         as `data/` of the quick start's workspace, and a model.
Command: W=versatune-quickstart; python yaml_examples/trl_sft.py --data $W/data --model_name_or_path $W/model \
             --output_dir outputs/trl --max_steps 40 --max_length 192
Expect:  a short run per domain for its reference loss (kept in versatune/references.json); then a line per update
         with each domain's proportion and held-out loss; a table and a plot at the end.
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, load_dataset
from trl import ModelConfig, SFTConfig, TrlParser

from versatune_plugin import VersaTuneConfig, VersaTuneSFTTrainer


@dataclass
class Data:
    """Where the domains are."""

    data: str = field(metadata={"help": "Folder with one folder per domain."})


def rows(file: Path) -> Dataset:
    """Prompt and completion of each row."""
    dataset = load_dataset("json", data_files=str(file), split="train")
    return dataset.map(
        lambda row: {"prompt": f"{row['instruction']}\n{row['input']}\n", "completion": row["output"]},
        remove_columns=dataset.column_names,
    )


def main() -> None:
    """Train."""
    data, model, sft = TrlParser((Data, ModelConfig, SFTConfig)).parse_args_and_config()
    domains = sorted(folder for folder in Path(data.data).iterdir() if folder.is_dir())
    trainer = VersaTuneSFTTrainer(
        model=model.model_name_or_path,
        args=sft,
        train_dataset={folder.name: rows(folder / "train.jsonl") for folder in domains},
        eval_dataset={folder.name: rows(folder / "validation.jsonl") for folder in domains},
        versatune=VersaTuneConfig(
            strategy="versatune",
            initial_proportions="uniform",  # "detected" measures what the model knows first
            update_interval=0.2,
            reference={"model": model.model_name_or_path, "epochs": 1},  # better: a smaller one of the same family
            probe={"rows_per_domain": 12},
        ),
    )
    trainer.train()


if __name__ == "__main__":
    main()
