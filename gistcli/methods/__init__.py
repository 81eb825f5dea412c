"""Ways to adapt a backbone: each one file, one class, one line in the registry."""
