"""MindSpore's files: checkpoints, slicing strategies and MindFormers' tensor names, without MindSpore."""
