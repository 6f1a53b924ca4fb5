"""Numbers fitted to a model: how they are measured, stored and found again."""
