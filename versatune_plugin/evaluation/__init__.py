"""Benchmarks per domain, run by lm-evaluation-harness: which (`suite`), on what (`target`), how (`harness`, `run`)."""
