"""Masks: how many patches, of how many images, in what shape, and always the same ones for a seed."""

import pytest
import torch

from vlm_vision.objectives.masks import block_mask, block_masks, patch_noise, random_masking

GRIDS = [(14, 14), (7, 7), (16, 9), (3, 20), (2, 2), (1, 12), (1, 1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("patches", [1, 25, 196])
def test_random_masks_keep_the_patches_of_least_noise(patches, ratio):
    noise = patch_noise(5, patches, seeded())
    keep, mask, restore = random_masking(noise, ratio)
    count = int(patches * (1 - ratio))
    assert keep.shape == (5, count) and mask.sum(dim=1).tolist() == [patches - count] * 5
    for row in range(5):
        assert (
            set(keep[row].tolist())
            == set(noise[row].sort().indices[:count].tolist())
            == set((~mask[row]).nonzero()[:, 0].tolist())
        )
    shuffled = noise.sort(dim=1).values  # [kept | masked]
    assert torch.equal(shuffled.gather(1, restore), noise)


def test_equal_noise_keeps_the_first_patches():
    assert random_masking(torch.zeros(2, 300), 0.9).keep.tolist() == [list(range(29))] * 2  # 0.1 of 300, rounded down


@pytest.mark.parametrize("grid", GRIDS)
def test_a_block_mask_has_exactly_the_patches_asked_for(grid):
    patches = grid[0] * grid[1]
    for count in sorted({0, 1, 3, patches // 10, patches // 3, patches // 2, patches - 1, patches}):
        if count <= patches:
            mask = block_mask(count, grid, seeded(count))
            assert mask.shape == (patches,) and mask.dtype == torch.bool and mask.sum() == count, count


def test_masked_patches_lie_together():
    """Of two neighbors as often both as in blocks, not as in single patches."""

    def together(mask: torch.Tensor) -> float:
        board = mask.unflatten(0, (14, 14)).float()
        return ((board[1:] * board[:-1]).mean() / mask.float().mean()).item()

    shares = torch.tensor([together(block_mask(59, (14, 14), seeded(i))) for i in range(50)])
    scattered = torch.tensor([together(random_masking(patch_noise(1, 196, seeded(i)), 0.3).mask[0]) for i in range(50)])
    assert scattered.mean() < 0.35 and shares.mean() > 0.6


def test_one_block_keeps_to_its_aspect_and_its_least_area():
    for seed in range(200):
        mask = block_mask(30, (40, 40), seeded(seed), aspect=(2.0, 3.0), least=30).unflatten(0, (40, 40))
        rows, columns = (int(mask.any(dim=axis).sum()) for axis in (1, 0))
        if rows * columns == 30:  # one rectangle and nothing added
            assert 1.5 <= rows / columns <= 4  # sides are rounded
    wide = block_mask(12, (40, 40), seeded(), aspect=(1 / 3, 1 / 3), least=12).unflatten(0, (40, 40))
    assert [int(wide.any(dim=axis).sum()) for axis in (1, 0)] == [2, 6]


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("grid", [(14, 14), (16, 9)])
def test_the_share_of_images_is_masked_each_with_its_part_of_the_range(batch, grid):
    masks, patches = block_masks(batch, grid, seeded(3)), grid[0] * grid[1]
    assert masks.shape == (batch, patches)
    counts = sorted(masks.sum(dim=1).tolist())
    masked = batch // 2
    assert counts[: batch - masked] == [0] * (batch - masked)
    edges = torch.linspace(0.1, 0.5, masked + 1).tolist()
    for i, count in enumerate(counts[batch - masked :]):
        assert int(patches * edges[i]) <= count <= patches * edges[i + 1] + 1e-4


def test_which_images_are_masked_and_how_much_is_drawn():
    drawn = torch.stack([block_masks(8, (14, 14), seeded(i)).sum(dim=1) for i in range(200)])
    assert (drawn > 0).float().mean(dim=0) == pytest.approx(torch.full((8,), 0.5), abs=0.15)
    assert drawn[drawn > 0].float().mean().item() / 196 == pytest.approx(0.3, abs=0.01)


def test_exact_ratios_are_exact():
    assert block_masks(6, (10, 10), seeded(), share=1.0, ratios=(0.7, 0.7)).sum(dim=1).tolist() == [70] * 6
    assert block_masks(6, (10, 10), seeded(), share=1.0, ratios=(1.0, 1.0)).all()


def test_masks_are_a_function_of_the_generator():
    torch.manual_seed(1)
    first = block_masks(6, (14, 14), seeded(5))
    torch.manual_seed(2)
    assert torch.equal(first, block_masks(6, (14, 14), seeded(5)))
    assert not torch.equal(first, block_masks(6, (14, 14), seeded(6)))
    generator = seeded(5)
    assert torch.equal(first, block_masks(6, (14, 14), generator))
    assert not torch.equal(first, block_masks(6, (14, 14), generator))  # it goes on
    assert torch.equal(patch_noise(2, 9, seeded(5)), patch_noise(2, 9, seeded(5)))


def test_impossible_shares_are_said():
    for ratio in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"ratio holds {ratio}, expected a share from 0 to 1"):
            random_masking(torch.rand(1, 4), ratio)
        with pytest.raises(ValueError, match=f"share holds {ratio}, expected a share from 0 to 1"):
            block_masks(2, (4, 4), seeded(), share=ratio)
        with pytest.raises(ValueError, match=f"ratios holds {ratio}, expected a share from 0 to 1"):
            block_masks(2, (4, 4), seeded(), ratios=(0.5, ratio))
    with pytest.raises(ValueError, match="cannot mask 17 patches of a grid of 4x4: expected 0 to 16"):
        block_mask(17, (4, 4), seeded())
    with pytest.raises(ValueError, match="aspect is"):
        block_mask(3, (4, 4), seeded(), aspect=(0.0, 2.0))
