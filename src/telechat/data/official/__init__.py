"""What the original training scripts make of rows, bit by bit, faults included. One file per generation."""
