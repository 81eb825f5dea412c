"""HyperLlama: a gisting hypernetwork that turns few-shot examples into a soft prefix."""
