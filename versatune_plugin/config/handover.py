"""What the Axolotl plugin hands on to worker processes and reference runs, in a form that no user writes.

Axolotl's validation drops keys that it does not know, such as `domain:` on a dataset, and a Ray worker gets nothing
but the validated config. So what was read before it travels in one key of its own, as text that carries its digest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from versatune_plugin.config.measured import ReferenceRun

KEY = "versatune_handover"
"""The key of Axolotl's config that holds it."""


@dataclass(frozen=True, kw_only=True)
class Handover:
    """Facts of a run that its `versatune:` block does not hold."""

    dataset_domains: tuple[str, ...] = ()
    """The domain of each entry of `datasets`."""
    test_dataset_domains: tuple[str, ...] = ()
    """The domain of each entry of `test_datasets`."""
    reference_run: ReferenceRun | None = None
    """Set in a run that measures the reference loss of one domain."""

    def __str__(self) -> str:
        content = json.dumps(asdict(self), ensure_ascii=False)
        return f"{_digest(content)} {content}"

    @classmethod
    def of_config(cls, cfg: Mapping) -> "Handover":
        """What stands in a config; nothing where the key is missing.

        Raises:
            ValueError: Somebody else than the plugin has written the key.
        """
        given = cfg.get(KEY)
        if given is None:
            return cls()
        digest, _, content = str(given).partition(" ")
        if digest != _digest(content):
            raise ValueError(f"{KEY}: filled by the plugin, not by you: leave it out")
        fields = json.loads(content)
        reference_run = fields.pop("reference_run")
        return cls(
            **{key: tuple(domains) for key, domains in fields.items()},
            reference_run=None if reference_run is None else ReferenceRun(**reference_run),
        )


def _digest(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
