"""Objectives of pretraining: tensors in, a scalar out, one file each.

All hold to one law over processes: each returns a value whose mean over them is the loss of the whole batch, and whose
gradients, averaged as DDP and FSDP do, are those of that loss. All compute in float32, also under autocast.
"""
