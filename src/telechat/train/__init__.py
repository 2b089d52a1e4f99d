"""Training: settings, samples, batches, optimiser, loop and its report."""
