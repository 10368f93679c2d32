"""Positions resized to another grid follow a sharded table."""

import torch
import torch.distributed as dist
from support.processes import run_together
from torch import nn

from vlm_vision.new_models import new_encoder
from vlm_vision.train.loop.shard import shard

TINY = dict(image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, mlp_dim=32, position_prefix=1)


def test_positions_of_another_grid_are_those_of_the_table_that_is_gathered(tmp_path):
    run_together(look, folder=tmp_path)


@torch.no_grad()
def look() -> None:
    """Change the parts of the table twenty times; in between, see as a model that was made this moment sees."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    encoder, pixels = new_encoder(TINY), torch.randn(1, 3, 32, 32)
    table, whole = encoder.model.position.table.clone(), new_encoder(TINY)
    whole.load_state_dict(encoder.state_dict())
    model = nn.Sequential(encoder.requires_grad_(False))
    shard(model, torch.device("cpu"), layers={"Block"})
    for _ in range(20):
        model(pixels)  # what it keeps is from before the change
        encoder.model.position.table.to_local().mul_(1.2)
        whole.model.position.table.copy_(table.mul_(1.2))
        torch.testing.assert_close(model(pixels).patch_tokens, whole(pixels).patch_tokens)
    dist.destroy_process_group()
