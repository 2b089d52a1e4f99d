"""Training on several processes: one layout, torch's own engines, applied to a model from outside."""
