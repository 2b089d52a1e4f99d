"""The engines ours is compared with, and how they are built."""
