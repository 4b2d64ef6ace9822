"""A detection.json of three domains, made without detecting anything."""

from versatune_plugin.measuring.detection.document import DetectionDocument, ModelDescription

DOMAINS = ("law", "medicine", "code")
MODEL = ModelDescription(name="words", fingerprint="f00d")


def make_document(**changes) -> DetectionDocument:
    """A document with some keys changed."""
    shares = {"law": 0.5, "medicine": 0.25, "code": 0.25}
    shares_of = {
        "proportions": shares,
        "intervals": {domain: (share - 0.1, share + 0.1) for domain, share in shares.items()},
    }
    distribution = shares_of | {"per_iteration": [shares], "spread": None}
    facts = {
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": {"generation": 1.0, "judging": 2.0, "total": 3.0},
        "model": {"kind": "local", "seed": 0},
        "judge": {"kind": "classifier", "seed": 0},
        "judge_report": {"held_out_accuracy": 0.9},
        "domains": list(DOMAINS),
        "settings": {"num_samples": 8, "iterations": 1, "count": "samples", "tolerance": None, "seed": 0},
        "count": "samples",
        **shares_of,
        "by_count": {"samples": distribution, "tokens": distribution},
        **{"num_samples": 8, "num_judged": 7, "num_empty": 1, "num_not_judged": 0},
        **{"share_finished": 0.5, "mean_num_tokens": 9.5, "unclear_share": 0.125},
        "stopped_early": False,
        "data": {"law": "1", "medicine": "1", "code": "1"},
        "base_model": MODEL,
        "start": "samples start from '<s>'",
        "asked": {"num_samples": 8, "judge.model": None},
    }
    return DetectionDocument.model_validate(facts | changes)
