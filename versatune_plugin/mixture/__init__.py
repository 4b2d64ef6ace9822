"""The proportions in force, the bounds on them, and what changes them."""
