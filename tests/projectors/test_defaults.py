"""Defaults that are a published model's."""

from transformers import Blip2QFormerConfig

import projectors


def test_the_q_former_has_the_epsilon_of_blip_2() -> None:
    qformer = projectors.build("qformer", in_dim=8, out_dim=8, width=8, depth=1, num_queries=2, num_heads=1)
    epsilons = {module.eps for module in qformer.modules() if hasattr(module, "eps")}
    assert epsilons == {Blip2QFormerConfig().layer_norm_eps}
