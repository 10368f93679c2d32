"""Probes of an encoder's frozen features: tensors in, a small report out, one file each.

`features` and `controls` make the features; the other files take them, on any device, and know no encoder. A probe runs in
one process, and outside autocast; what is drawn at random is a function of `seed`.
"""
