"""Kernels in Triton. Importing these modules imports triton; the modules above import them when asked to.

They avoid what differs between a GPU and Triton's interpreter on the CPU: bf16 is turned into fp32 as soon as
it is loaded, and the operands of a matrix product have a dtype that the caller chooses.
"""
