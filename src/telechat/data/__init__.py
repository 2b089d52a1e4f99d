"""Training data: rows of every known form, as tokens with loss masks, packed and counted.

Knows row formats, the loss masks of both generations, mixing and packing. Knows nothing of torch, devices or
steps; it returns NumPy arrays. The entry is `dataset.load_samples`; preference rows have
`preferences.load_preferences`.
"""
