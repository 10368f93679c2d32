"""Actions by flow matching with an action expert (pi0, Black et al. 2024, arXiv:2410.24164; Lipman et al. 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_vision.vla.heads.base import ActionHead
from vlm_vision.vla.heads.expert import ActionExpert, PromptCache, Shape
from vlm_vision.vla.heads.prefix import Prefix


@dataclass(frozen=True)
class FlowCache:
    """Input of the steps of the flow."""

    read: PromptCache
    state: Tensor | None
    """Normalized state (B, S)."""


class FlowHead(ActionHead):
    """x_t = t noise + (1 - t) actions; the expert tells noise - actions, and ten Euler steps go from t = 1 to 0.

    The time is drawn as 0.999 Beta(1.5, 1) + 0.001, and the loss is the squared error. The expert sees the prompt, then the
    state as one token, then the noisy actions, which see each other: blocks of causal attention.

    Args:
        state_dim: numbers of the state; 0 for none.
        shape: of the language model's layers.
        width, mlp_dim: of the expert; 1024 and 4096 in pi0, 720 and 2048 in SmolVLA.
        steps: of Euler.
        stop_gradient: whether the language model learns nothing from the expert (knowledge insulation, Driess et al. 2025).
    """

    name = "flow"
    reads_state = True
    random_inputs = ("noise", "time")
    noise: Tensor

    def __init__(
        self,
        *,
        action_dim: int,
        chunk: int,
        state_dim: int,
        shape: Shape,
        width: int = 1024,
        mlp_dim: int = 4096,
        steps: int = 10,
        stop_gradient: bool = False,
    ):
        options = dict(width=width, mlp_dim=mlp_dim, steps=steps, stop_gradient=stop_gradient)
        super().__init__(action_dim=action_dim, chunk=chunk, **options)
        if width % 2 or steps < 1:
            raise ValueError(f"width is {width} and steps {steps}: expected an even width and at least one step")
        self.steps, self.stop_gradient = steps, stop_gradient
        self.state_in = nn.Linear(state_dim, width) if state_dim else None
        self.action_in, self.action_out = nn.Linear(action_dim, width), nn.Linear(width, action_dim)
        self.time_in, self.time_out = nn.Linear(2 * width, width), nn.Linear(width, width)
        self.expert = ActionExpert(shape, width=width, mlp_dim=mlp_dim)
        self.register_buffer("places", sines(torch.arange(chunk) / max(1, chunk), width), persistent=False)
        self.register_buffer("noise", self.draws([0], chunk, action_dim)["noise"], persistent=False)
        blocks = torch.tensor([0] * bool(state_dim) + [1] * chunk)
        self.register_buffer("blocks", blocks, persistent=False)

    @staticmethod
    def draws(seeds: Sequence[int], chunk: int, action_dim: int) -> dict[str, Tensor]:
        """Noise (B, K, A) and time (B,), each row a function of its seed."""
        rows = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(chunk, action_dim, generator=row) for row in rows])
        uniform = torch.stack([torch.rand((), generator=row) for row in rows])
        return {
            "noise": noise,
            "time": uniform ** (1 / 1.5) * 0.999 + 0.001,
        }  # the inverse of Beta(1.5, 1)'s distribution

    def loss(self, prefix: Prefix, actions: Tensor, padded: Tensor, *, noise: Tensor, time: Tensor) -> Tensor:
        """Sum of (predicted - (noise - actions))^2."""
        t = time[:, None, None]
        predicted = self.velocity(self.prefill(prefix), t * noise + (1 - t) * actions, time)
        error = (predicted - (noise - actions)).square()
        return error.masked_fill(padded[..., None], 0).sum()

    def prefill(self, prefix: Prefix) -> FlowCache:
        return FlowCache(PromptCache.of(prefix, detach=self.stop_gradient), prefix.state)

    def decode(self, held: FlowCache) -> Tensor:
        """From the same noise each time, so that actions are a function of what is seen."""
        mask = held.read.mask
        x, time = self.noise.float().expand(len(mask), -1, -1), torch.ones(len(mask), device=mask.device)
        for _ in range(self.steps):
            x = x - self.velocity(held, x, time) / self.steps
            time = time - 1 / self.steps
        return x

    def velocity(self, held: FlowCache, noisy: Tensor, time: Tensor) -> Tensor:
        """What the expert tells of actions (B, K, A) at times (B,), float32."""
        dtype = self.action_in.weight.dtype
        actions = self.action_in(noisy.to(dtype))
        if held.read.rotary is None:
            actions = actions + self.places.to(dtype)
        told = sines(time, actions.shape[-1]).to(dtype)[:, None].expand_as(actions)
        tokens = self.time_out(nn.functional.silu(self.time_in(torch.cat([actions, told], dim=-1))))
        if self.state_in is not None:
            assert held.state is not None
            tokens = torch.cat([self.state_in(held.state.to(dtype))[:, None], tokens], dim=1)
        return self.action_out(self.expert(tokens, held.read, self.blocks)[:, -self.chunk :]).float()


def sines(values: Tensor, width: int, *, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """(N,) numbers in 0..1 -> (N, width): sines, then cosines, of periods from `shortest` to `longest` (pi0)."""
    period = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 2, device=values.device)
    angle = values.float()[:, None] / period * 2 * math.pi
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
