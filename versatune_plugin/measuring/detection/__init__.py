"""How a base model's knowledge is spread over the domains: samples, judges, statistics."""
