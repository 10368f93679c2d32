"""SigLIP: sigmoid loss of each pair, in memory that does not grow with the square of the batch."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm_vision.objectives.processes import in_float32, num_processes, process_index, reduce_scatter_rows, rows_of_all

Exchange = Literal["ring", "gather"]
Visit = Callable[[Tensor, Tensor, bool], None]
"""(block of texts, its gradient to add to, whether these are the texts of this process's images) -> None."""


@in_float32
def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    chunk_size: int = 1024,
    exchange: Exchange = "ring",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """-1/B of the sum over images i and texts j of log sigmoid(z_ij (s I_i T_j' + b)), z_ij = 1 for pairs, else -1.

    Zhai et al. 2023, "Sigmoid loss for language image pre-training", algorithm 1: a sum over texts, a mean over images.
    Only chunk_size x B logits exist at a time. Gradients are computed with them, so that backward does not compute logits
    again; it can be differentiated once.

    Args:
        image, text: (B, E), L2-normalised, row i of one belonging to row i of the other; B the same in every process.
        logit_scale: s, a scalar, already exponentiated.
        logit_bias: b, a scalar.
        chunk_size: images at a time.
        exchange: transfer of texts between processes: "ring", one block after another, its gradient traveling with it,
            or "gather", all at once.

    Raises:
        ValueError: image and text of different shapes, or chunk_size below one.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image is {tuple(image.shape)} and text {tuple(text.shape)}, expected (B, E), the same for both"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, expected at least one image")
    return _Siglip.apply(image, text, logit_scale, logit_bias, chunk_size, exchange, group)  # type: ignore[return-value]


class _Siglip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        chunk_size: int,
        exchange: Exchange,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        learns = any(ctx.needs_input_grad)
        loss = image.new_zeros(())
        of_image, of_scale, of_bias = torch.zeros_like(image), torch.zeros_like(scale), torch.zeros_like(bias)

        def visit(block: Tensor, of_block: Tensor, paired: bool) -> None:
            for start in range(0, len(image), chunk_size):
                rows = image[start : start + chunk_size]
                signed = torch.addmm(bias, rows * scale, block.T)  # -z (s I T' + b)
                if paired:
                    signed.diagonal(start).neg_()
                loss.add_(F.softplus(signed).sum())
                if learns:
                    slope = signed.sigmoid_()  # of the logits
                    if paired:
                        slope.diagonal(start).neg_()
                    toward = slope @ block
                    of_block.addmm_(slope.T, rows)
                    of_image[start : start + chunk_size] += toward
                    of_scale.add_((toward * rows).sum())
                    of_bias.add_(slope.sum())

        of_text = (_ring if exchange == "ring" else _gather)(text, visit, group)
        ctx.save_for_backward(
            of_image.mul_(scale / len(image)),
            of_text.mul_(scale / len(image)),
            of_scale.div_(len(image)),
            of_bias.div_(len(image)),
        )
        return loss / len(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(gradient * part for part in ctx.saved_tensors), None, None, None


def _ring(text: Tensor, visit: Visit, group: dist.ProcessGroup | None) -> Tensor:
    """Every process's texts pass through every process; after the last step each gradient is back in its process."""
    processes = num_processes(group)
    gradient = torch.zeros_like(text)
    visit(text, gradient, True)
    if processes == 1:
        return gradient
    carried = torch.stack([text, gradient])
    for step in range(1, processes + 1):
        carried = _passed_on(carried, group)
        if step < processes:
            visit(carried[0], carried[1], False)
    return carried[1]


def _gather(text: Tensor, visit: Visit, group: dist.ProcessGroup | None) -> Tensor:
    every = rows_of_all(text, group)
    gradient = torch.zeros_like(every)
    for rank, (block, of_block) in enumerate(zip(every.split(len(text)), gradient.split(len(text)), strict=True)):
        visit(block, of_block, rank == process_index(group))
    return reduce_scatter_rows(gradient, group)


def _passed_on(carried: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Receive the tensors of the previous process and send those of this one to the next."""
    here, processes = process_index(group), num_processes(group)
    received = torch.empty_like(carried)
    send = dist.P2POp(dist.isend, carried, group=group, group_peer=(here + 1) % processes)
    receive = dist.P2POp(dist.irecv, received, group=group, group_peer=(here - 1) % processes)
    for work in dist.batch_isend_irecv([send, receive]):
        work.wait()
    return received
