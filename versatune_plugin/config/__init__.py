"""The `versatune:` block: what a user writes, its checks, its schema, and what a run uses."""
