"""The Vision Transformer: one configuration, one straight forward, every family.

    pixels -> patch embedding + positions -> [CLS | registers | patches] -> blocks -> norm -> VisionOutput

A switch in `ViTConfig` is a fact about the architecture, resolved when the model is built. What only a checkpoint
knows (key names, layouts) lives in `vlm_vision.checkpoints`. Shapes: B batch, T tokens, N patches, D width, H heads,
K head width.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm_vision.nn.blocks import Block, Context, Mlp, norm
from vlm_vision.nn.config import Tap, VisionOutput, ViTConfig
from vlm_vision.nn.film import FilmBlock, check_condition
from vlm_vision.nn.linear import Linear
from vlm_vision.nn.position import Grid, PositionTable, rope_2d


class AttentionPool(nn.Module):
    """Multi-head attention pooling: one learned probe reads all tokens. Zhai et al. 2022 (arXiv:2106.04560).

    x = attn(probe, tokens); x = x + mlp(norm(x)). Plain linear layers, so that adapters reach each of them.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm(config)
        self.mlp = Mlp(config)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        x = self.proj(_read(self.q(self.probe), self.kv(tokens), self.num_heads))
        return (x + self.mlp(self.norm(x)))[:, 0]


class QueryPool(nn.Module):
    """One learned query reads all tokens, then a linear map: the head of AIMv2 (Fini et al. 2024, arXiv:2411.14402)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.kv = Linear(dim, 2 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        return self.proj(_read(self.probe, self.kv(tokens), self.num_heads))[:, 0]


def _read(query: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    """Attention of one query (1, 1, D) over keys and values (B, N, 2 D) -> (B, 1, D)"""
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (1, H, 1, K)
    k, v = kv.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q.expand(kv.shape[0], -1, -1, -1), k, v).transpose(1, 2).flatten(2)


class VisionTransformer(nn.Module):
    """Vision Transformer of any family in `vlm_vision.presets`. Dosovitskiy et al. 2020 (arXiv:2010.11929)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        dim, prefix = config.embed_dim, config.num_prefix_tokens
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.patch_norm = norm(config) if config.patch_norm else nn.Identity()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.registers = nn.Parameter(torch.empty(1, config.num_registers, dim)) if config.num_registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.mask_token else None
        self.position = None
        if config.position != "rope2d":
            self.position = PositionTable(
                prefix=min(prefix, config.position_prefix),
                grid=config.grid,
                dim=dim,
                resize=config.position_resize,
                learned=config.position == "learned",
            )
        self.pre_norm = norm(config) if config.pre_norm else nn.Identity()
        first = 0 if config.drop_path_ramp else config.drop_path
        rates = torch.linspace(first, config.drop_path, config.depth, device="cpu").tolist()
        film = config.film_dim
        self.blocks = nn.ModuleList(FilmBlock(config, rate, film) if film else Block(config, rate) for rate in rates)
        self.norm = norm(config) if config.final_norm else nn.Identity()
        pools = {"map": AttentionPool, "query": QueryPool}
        self.pool = pools[config.pool](config) if config.pool in pools else None
        self.pool_norm = norm(config) if config.pool_norm else nn.Identity()
        self.pool_head = None
        if config.pool_head != "none":
            self.pool_head = nn.Linear(dim, config.pool_dim, bias=config.pool_head == "tanh")
        self.head = nn.Linear(config.linear_head_dim, config.num_classes) if config.num_classes else None
        distilled = config.num_classes and config.class_input == "distilled"
        self.head_dist = nn.Linear(dim, config.num_classes) if distilled else None
        self.gradient_checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal(0, 0.02) for weights and tokens, zero biases: the ViT and DINOv2 recipes."""
        for token in (self.cls_token, self.registers):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        pixels: Tensor,
        *,
        tap: Tap = Tap(),
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        pool: bool = True,
        patches: bool = True,
        condition: Tensor | None = None,
    ) -> VisionOutput:
        """See a batch of images.

        Args:
            pixels: (B, C, H, W), normalized as the checkpoint expects.
            tap: whose tokens to return; blocks past it are not run.
            mask: (B, N) bool; True patches are replaced by the mask token before positions are added.
            keep: (B, K) indices of the patches to see, others are left out after positions are added (MAE). In training
                a config with patch_drop draws them itself.
            pool: False leaves `pooled` and `logits` None and saves their cost.
            patches: False leaves `patch_tokens` empty, (B, 0, D); unless pooling reads them, the last block then computes
                CLS and registers alone.
            condition: (B, film_dim), for a config with FiLM and only there.

        Raises:
            ValueError: pixels of another shape or channel count, an image smaller than a patch, a tap that does not
                exist, a mask of another shape or for a model without mask token.
        """
        last = self._last(tap)
        if keep is None and self.training and self.config.patch_drop > 0:
            keep = self._draw(pixels)
        x, grid = self.embed(pixels, mask=mask, keep=keep)
        pool = pool and last == self.config.depth - 1
        places, prefix = None, self.config.num_prefix_tokens
        if prefix and not patches and not (pool and self._pools_patches):
            places = torch.arange(prefix, device=x.device).expand(len(x), -1)
        steered = check_condition(condition, self.config.film_dim, x)
        x = self._run(x, Context(rope=self._rope(grid, keep, x.device), condition=steered), last, places)
        out = self._output(x, grid, tap, pool)
        out.kept = keep
        if not patches:
            out.patch_tokens = out.patch_tokens[:, :0]
        return out

    def packed(self, images: Sequence[Tensor], *, tap: Tap = Tap(), pool: bool = True) -> list[VisionOutput]:
        """See images of any sizes in one sequence, without padding; each attends to itself alone.

        Args:
            images: (C, H, W) each, seen whole: patch_drop is for `forward`.
            tap, pool: as in `forward`.

        Returns:
            For each image, in order, what `forward` gives for a batch of it alone.

        Raises:
            ValueError: as `forward`.
        """
        if not images:
            return []
        areas = [h * w for h, w in (self._grid(image[None]) for image in images)]
        order = sorted(range(len(images)), key=lambda i: (areas[i], images[i].shape))  # equal ones side by side
        alike = [list(same) for _, same in groupby(order, key=lambda i: images[i].shape)]
        seen = self.together([torch.stack([images[i] for i in same]) for same in alike], tap=tap, pool=pool)
        rows = {i: _row(out, at) for same, out in zip(alike, seen, strict=True) for at, i in enumerate(same)}
        return [rows[i] for i in range(len(images))]

    def together(
        self,
        batches: Sequence[Tensor],
        *,
        tap: Tap = Tap(),
        masks: Sequence[Tensor | None] | None = None,
        pool: bool = True,
    ) -> list[VisionOutput]:
        """See batches of several sizes in one sequence, without padding; each image attends to itself alone.

        Args:
            batches: (B, C, H, W) each, seen whole: patch_drop is for `forward`.
            masks: for each batch one as in `forward`, or None.
            tap, pool: as in `forward`.

        Returns:
            For each batch, in order, what `forward` gives for it alone.

        Raises:
            ValueError: as `forward`.
        """
        last = self._last(tap)
        if not batches:
            return []
        if self.config.film_dim:
            raise ValueError("an encoder with FiLM sees batches, not packed images: use encoder(pixels, condition=...)")
        masks = masks or [None] * len(batches)
        embedded = [self.embed(pixels, mask=mask) for pixels, mask in zip(batches, masks, strict=True)]
        counts, lengths = [len(x) for x, _ in embedded], [x.shape[1] for x, _ in embedded]
        sizes = [count * length for count, length in zip(counts, lengths, strict=True)]
        sequence = torch.cat([x.flatten(0, 1) for x, _ in embedded])[None]
        every = [length for count, length in zip(counts, lengths, strict=True) for _ in range(count)]
        context = Context(
            rope=self._packed_rope([(grid, len(x)) for x, grid in embedded], sequence.device),
            runs=tuple((len(list(same)), length) for length, same in groupby(every)),
            offsets=torch.tensor([0, *every]).cumsum(0, dtype=torch.int32).to(sequence.device),
        )
        parts = self._run(sequence, context, last)[0].split(sizes)
        pool = pool and last == self.config.depth - 1
        return [
            self._output(part.unflatten(0, (count, -1)), grid, tap, pool)
            for part, count, (_, grid) in zip(parts, counts, embedded, strict=True)
        ]

    def embed(self, pixels: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None) -> tuple[Tensor, Grid]:
        """Input of block 0, (B, P + N, D), and the patch grid."""
        grid = self._grid(pixels)
        if self.config.remainder == "pad":
            patch = self.config.patch_size
            missing = [want * patch - has for want, has in zip(grid, pixels.shape[-2:], strict=True)]
            pixels = F.pad(pixels, (0, missing[1], 0, missing[0]))
        x = self.patch_norm(self.patch_embed(pixels).flatten(2).transpose(1, 2))
        if mask is not None:
            x = self._masked(x, mask)
        tokens: list[Tensor] = [token for token in (self.cls_token, self.registers) if token is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else None
        if self.position is not None:
            at_prefix, at_patches = self.position(grid)
            x = at_patches + x
            if prefix is not None:
                owned = at_prefix.shape[1]
                prefix = torch.cat([prefix[:, :owned] + at_prefix, prefix[:, owned:]], dim=1)
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        if prefix is not None:
            x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pre_norm(x.contiguous()), grid

    def _last(self, tap: Tap) -> int:
        if not isinstance(tap, Tap):
            raise ValueError(f"tap is {tap!r}, expected a Tap such as Tap(layer=-2, norm=False)")
        return tap.block(self.config.depth)

    def _grid(self, pixels: Tensor) -> Grid:
        if pixels.ndim != 4 or pixels.shape[1] != self.config.channels:
            raise ValueError(
                f"expected pixels of shape (batch, {self.config.channels}, height, width), got {tuple(pixels.shape)}: "
                "pass the result of preprocess"
            )
        return self.config.grid_of(pixels.shape[-2], pixels.shape[-1])

    def _draw(self, pixels: Tensor) -> Tensor:
        """(B, K) indices of the patches that each image keeps, drawn uniformly, in order."""
        rows, columns = self._grid(pixels)
        count = max(1, round(rows * columns * (1 - self.config.patch_drop)))
        noise = torch.rand(pixels.shape[0], rows * columns, device=pixels.device)
        return noise.topk(count, dim=1).indices.sort(dim=1).values

    def _rope(self, grid: Grid, keep: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
        if self.position is not None:
            return None
        cos, sin = rope_2d(grid, self.config.head_dim, base=self.config.rope_base, device=device)
        return (cos, sin) if keep is None else (cos[keep][:, None], sin[keep][:, None])

    def _packed_rope(self, grids: Sequence[tuple[Grid, int]], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Angles of a packed sequence of (grid, how many images of it); prefix tokens turn by nothing."""
        if self.position is not None:
            return None
        still = torch.zeros(self.config.num_prefix_tokens, self.config.head_dim, device=device)
        parts = []
        for grid, count in grids:
            cos, sin = rope_2d(grid, self.config.head_dim, base=self.config.rope_base, device=device)
            parts.append([torch.cat([still + 1, cos]).tile(count, 1), torch.cat([still, sin]).tile(count, 1)])
        cos, sin = (torch.cat(each) for each in zip(*parts, strict=True))
        return cos, sin

    def _run(self, x: Tensor, context: Context, last: int, places: Tensor | None = None) -> Tensor:
        """Blocks up to `last`, which computes the tokens at `places` alone where they are given."""
        for i, block in enumerate(islice(self.blocks, last + 1)):
            if i == last:
                context = context._replace(places=places)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
        return x

    def _output(self, x: Tensor, grid: Grid, tap: Tap, pool: bool) -> VisionOutput:
        """The tapped block's output x (B, P + N, D), named; pooled if asked for."""
        tokens = self.norm(x) if tap.norm else x
        prefix, registers = self.config.num_prefix_tokens, self.config.num_registers
        out = VisionOutput(
            patch_tokens=tokens[:, prefix:],
            grid=grid,
            cls_token=tokens[:, 0] if self.cls_token is not None else None,
            register_tokens=tokens[:, prefix - registers : prefix] if self.registers is not None else None,
        )
        if pool:
            out.pooled, out.logits = self._pool(x, tokens if tap.norm else None)
        return out

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError("this encoder has no mask token: mask needs a config with mask_token=True")
        if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"expected a bool mask of shape (batch, patches) = {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        return torch.where(mask[..., None], self.mask_token.to(x.dtype), x)

    def _pool(self, x: Tensor, normed: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """`pooled` and `logits` from the last block's output x; `normed` is norm(x) where it is at hand."""
        config = self.config
        if config.pool == "none" and self.head is None:
            return None, None
        if normed is None:
            class_alone = config.pool == "cls" and config.class_input == "pooled"
            normed = self.norm(x[:, :1] if class_alone else x)
        assert normed is not None
        patches = normed[:, config.num_prefix_tokens :]
        pooled = None
        if self.pool is not None:
            pooled = self.pool(patches)
        elif config.pool == "cls":
            pooled = normed[:, 0]
        elif config.pool == "cls_dist":
            pooled = (normed[:, 0] + normed[:, 1]) / 2
        elif config.pool == "mean":
            pooled = patches.mean(dim=1)
        if pooled is not None:
            pooled = self.pool_norm(pooled)
        if self.pool_head is not None:
            pooled = self.pool_head(pooled)
            pooled = torch.tanh(pooled) if config.pool_head == "tanh" else pooled
        if self.head is None:
            return pooled, None
        if self.head_dist is not None:
            return pooled, (self.head(normed[:, 0]) + self.head_dist(normed[:, 1])) / 2
        features = patches.mean(dim=1)
        if config.class_input == "pooled":
            assert pooled is not None  # ViTConfig sees to it
            features = pooled
        elif config.class_input == "cls_mean":
            features = torch.cat([normed[:, 0], features], dim=-1)
        return pooled, self.head(features)

    @property
    def _pools_patches(self) -> bool:
        """Whether `pooled` or `logits` are made of patch tokens."""
        config = self.config
        pooled = config.pool in ("map", "query", "mean")
        return pooled or (self.head is not None and config.class_input not in ("pooled", "distilled"))

    def unused_modules(self, tap: Tap) -> list[nn.Module]:
        """Modules that take no part in the patch tokens of `tap`: blocks past it, pooling, heads."""
        last = tap.block(self.config.depth)
        heads = (self.pool, self.pool_norm, self.pool_head, self.head, self.head_dist)
        parts = [*islice(self.blocks, last + 1, None), *heads]
        return [part for part in parts if part is not None] + ([] if tap.norm else [self.norm])

    def fold_layer_scale(self) -> None:
        """Multiply every LayerScale into the linear layer before it: same outputs, less work. For inference only."""
        for module in self.modules():
            if isinstance(module, Block):
                module.residual1.fold_into(module.attn.proj)
                module.residual2.fold_into(module.mlp.fc2)
        self.config = replace(self.config, layer_scale=None)


def _row(out: VisionOutput, at: int) -> VisionOutput:
    """Of one image of a batch."""
    part = slice(at, at + 1)
    rows = {name: value[part] for name, value in vars(out).items() if isinstance(value, Tensor)}
    return replace(out, **rows)
