"""What a user might have in an Axolotl YAML beside us: a trainer class and other plugins."""

import json
import os
import zlib
from pathlib import Path

from axolotl.core.trainers import AxolotlTrainer
from axolotl.integrations.base import BasePlugin


class RecordedTrainer(AxolotlTrainer):
    """Writes down every row it trains on."""

    def train(self, *args, **kwargs):
        self._write(None)
        return super().train(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        seen = [zlib.crc32(bytes(str([t for t, real in zip(*row, strict=True) if real]), "utf8")) for row in rows]
        self._write([self.state.global_step, seen])
        return super().training_step(model, inputs, *args, **kwargs)

    def _write(self, line) -> None:
        Path(self.args.output_dir).mkdir(exist_ok=True)
        with open(Path(self.args.output_dir) / f"stream-{self.args.process_index}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\n")


class CpuRanks(BasePlugin):
    """Lets several ranks load the model on a machine without a GPU (Axolotl would ask for one)."""

    def load_datasets(self, cfg, preprocess=False):
        if os.environ.get("WORLD_SIZE"):
            cfg.device_map = {"": "cpu"}


class OtherTrainer(BasePlugin):
    """Claims the trainer class."""

    def get_trainer_cls(self, cfg):
        return AxolotlTrainer
