"""Reference runs whose losses are known in advance, and a references.json of theirs."""

from pathlib import Path

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files.history import history_path
from versatune_plugin.files.record import Record
from versatune_plugin.measuring.references.document import Model, References
from versatune_plugin.measuring.references.making import Making

CURVES = {"law": [5.0, 3.0, 2.5, 2.75], "code": [4.0, 2.0, 1.5, 1.25]}
PROBE = {"rows": 6, "target_tokens": 60, "fingerprint": "p", "target_bytes": 240, "row_texts": "r", "target_texts": "t"}
LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear", "base_model_name_or_path": None}
SETTINGS = {"learning_rate": 1e-3, "adapter": LORA, "sequence_len": 64, "seed": 5}


class Trainer:
    """A `DomainTrainer` that leaves histories of known losses; may be killed in the middle of a domain."""

    def __init__(self, curves=CURVES) -> None:
        self.curves, self.ran = curves, []
        self.killed_in: dict[str, int] = {}  # domain -> epochs it gets to
        self.data = dict.fromkeys(curves, "d")

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.curves)

    def identity(self, domain: str) -> dict:
        return {"settings": {"epochs": 3}, "data": self.data[domain]}

    def train(self, domain: str, folder: Path) -> None:
        self.ran.append(domain)
        (folder / "checkpoint-2").mkdir(exist_ok=True)
        epochs = self.killed_in.pop(domain, None)
        write_history(folder, domain, self.curves[domain][: None if epochs is None else epochs + 1])
        if epochs is not None:
            raise KeyboardInterrupt


def write_history(folder: Path, domain: str, losses) -> None:
    """What a run leaves: a loss before the first step and after each epoch of 2 steps."""
    records = [
        {
            "step": 2 * epoch,
            "epoch": float(epoch),
            "num_drawn": 2 * epoch,
            "drawn_by_domain": {domain: 2 * epoch},
            "losses": {domain: loss},
            "proportions_before": {domain: 1.0},
            "proportions": {domain: 1.0},
            "probe": None if epoch else {domain: PROBE},
        }
        for epoch, loss in enumerate(losses)
    ]
    path = history_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(Record(**record).to_line() for record in records))


def making(file: Path, epochs: int = 3, **changes) -> Making:
    """Of a block whose reference model is `small`."""
    block = {"initial_proportions": "uniform", "reference_losses": str(file)}
    reference = {"model": "small", "epochs": epochs} | changes.pop("reference", {})
    config = VersaTuneConfig(**block, reference=reference)
    return Making(
        **{
            "config": config,
            "reference": config.reference,
            "file": file,
            "base_model": Model(name="big", fingerprint="b"),
            "reference_model": Model(name="small", fingerprint="s"),
            "num_rows": 6,
            "settings": SETTINGS,
            "launch": {"processes": 1},
        }
        | changes
    )


def document(file: Path, trainer: Trainer | None = None, **changes) -> References:
    """Measured, as it would be written."""
    made_with, trainer = making(file, **changes), trainer or Trainer()
    results = made_with.measure(trainer, lambda line: None)
    return made_with.document(results, probe=dict.fromkeys(results, PROBE), data=dict.fromkeys(results, "d"))
