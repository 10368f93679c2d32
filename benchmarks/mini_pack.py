"""What `recipes.contrastive` trained, as `vv.load("mini")`: half precision, and probabilities that mean something.

    python -m benchmarks.mini_pack --model runs/mini/model --pairs mini_data/train.csv --out runs/mini/packed

CLIP's loss leaves the bias of the logits as it was. Scale and bias, two numbers, are fitted to SigLIP's loss (Zhai et al. 2023)
over batches of the pairs, with both towers as they are.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import vlm_vision as vv
from vlm_vision.data.images.samples import read_samples
from vlm_vision.objectives.siglip import siglip_loss
from vlm_vision.probe.features import image_embeddings, text_embeddings
from vlm_vision.train.command import run_cli


def fitted(seen: Tensor, read: Tensor, scale: Tensor, *, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """Logarithm of the scale, and bias, of the least loss over embeddings (N, E) of images and of their texts."""
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))
    values = torch.stack([scale.float(), torch.tensor(-10.0)]).detach().requires_grad_()
    optimizer = torch.optim.LBFGS([values], max_iter=50, line_search_fn="strong_wolfe")
    whole = order[: len(order) // batch_size * batch_size].view(-1, batch_size)

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = [siglip_loss(seen[rows], read[rows], values[0].exp(), values[1]) for rows in whole]
        loss = torch.stack(losses).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return values.detach()[0], values.detach()[1]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained pair")
    parser.add_argument("--pairs", required=True, help="images with captions to fit scale and bias to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    pair, samples = vv.load_pair(options.model), list(read_samples(options.pairs))
    with torch.no_grad():
        seen = image_embeddings(pair, [sample.image for sample in samples])
        read = text_embeddings(pair, [sample.caption for sample in samples])
    scale, bias = fitted(seen, read, pair.logit_scale.reshape(()))
    pair.logit_scale.data, pair.logit_bias.data = scale.reshape(1), bias.reshape(1)  # type: ignore[union-attr]
    pair.half().save_pretrained(options.out)
    print(
        f"scale {scale.exp():.2f}, bias {bias:.2f}; {sum(f.stat().st_size for f in options.out.iterdir()) / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    run_cli("benchmarks.mini_pack", main)
