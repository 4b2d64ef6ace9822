"""A trainer class that writes down what packed batches hold, for the tests of packing in Axolotl."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from axolotl.core.trainers import AxolotlTrainer


class PackedRecorder(AxolotlTrainer):
    """Writes the sequences of every packed batch, and for the first steps their losses packed and alone."""

    def train(self, *args, **kwargs):
        self._write("stream", None)
        facts = {
            "max_steps": self.args.max_steps,
            "batches": len(self.get_train_dataloader()),
            "rows": self._rows(self.train_dataset),
        }
        if self.eval_dataset is not None:
            facts["heldout"] = self._rows(self.eval_dataset)
        self._write("facts", facts)
        return super().train(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        columns = (inputs[name] for name in ("input_ids", "labels", "position_ids"))
        bins = [sequences(*row) for row in zip(*columns, strict=True)]
        self._write("stream", [self.state.global_step, bins])
        self._write("shapes", list(inputs["input_ids"].shape))
        if self.state.global_step < 2:
            self._write("losses", [self._loss(model, inputs), self._loss_alone(model, bins)])
        return super().training_step(model, inputs, *args, **kwargs)

    def _rows(self, dataset):
        return [[row["input_ids"], row["labels"]] for row in dataset.select_columns(["input_ids", "labels"])]

    def _loss(self, model, inputs):
        model.eval()
        with torch.no_grad():
            loss = model(**{name: inputs[name] for name in inputs}).loss.item()
        model.train()
        return loss

    def _loss_alone(self, model, bins):
        """Every sequence forwarded on its own, weighted by its targets."""
        total = targets = 0
        for tokens, labels, _ in (sequence for of_bin in bins for sequence in of_bin):
            if num := sum(label != -100 for label in labels[1:]):
                total += num * self._loss(
                    model, {"input_ids": torch.tensor([tokens]), "labels": torch.tensor([labels])}
                )
                targets += num
        return total / targets

    def _write(self, name, line):
        folder = Path(self.args.output_dir)
        folder.mkdir(exist_ok=True)
        with open(folder / f"{name}-{self.args.process_index}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def sequences(tokens, labels, positions):
    """Tokens, labels and positions of every sequence in a packed row, its padding left out."""
    starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(positions)]
    parts = [
        [tokens[start:end].tolist(), labels[start:end].tolist(), positions[start:end].tolist()]
        for start, end in pairwise(starts)
    ]
    return [part for part in parts if set(part[0]) != {2}]  # <pad>
