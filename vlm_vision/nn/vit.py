"""The Vision Transformer: one configuration, one straight forward, every family.

    pixels -> patch embedding + positions -> [CLS | registers | patches] -> blocks -> norm -> VisionOutput

A switch in `ViTConfig` is a fact about the architecture, resolved when the model is built. What only a checkpoint
knows (key names, layouts) lives in `vlm_vision.checkpoints`. Shapes: B batch, F frames, T tokens, N patches, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import projectors
from vlm_vision.nn.blocks import Block, FilmBlock, check_condition, outer_norm
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.nn.pool import AttentionPool, Merge, QueryPool
from vlm_vision.nn.position import AxisTables, PositionTable, time_sincos
from vlm_vision.nn.rope import Grid
from vlm_vision.nn.sequence import Part, check_dropping, plan, stacked_frames
from vlm_vision.nn.windows import PaddedWindowAttention


class VisionTransformer(nn.Module):
    """Vision Transformer of any family in `vlm_vision.presets`. Dosovitskiy et al. 2020 (arXiv:2010.11929)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        dim, prefix = config.embed_dim, config.num_prefix_tokens
        side = config.patch_size
        if config.temporal_patch > 1:
            clip = (config.temporal_patch, side, side)
            self.patch_embed = nn.Conv3d(config.channels, dim, clip, clip, bias=config.patch_bias)
        else:
            self.patch_embed = nn.Conv2d(config.channels, dim, side, side, bias=config.patch_bias)
        self.patch_norm = outer_norm(config) if config.patch_norm else nn.Identity()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.registers = nn.Parameter(torch.empty(1, config.num_registers, dim)) if config.num_registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.mask_token else None
        self.position = None
        if config.position == "axes":
            self.position = AxisTables(length=config.axis_length, first=config.axis_first, dim=dim)
        elif config.position in ("learned", "sincos2d"):
            self.position = PositionTable(
                prefix=min(prefix, config.position_prefix),
                grid=config.table_grid,
                dim=dim,
                resize=config.position_resize,
                learned=config.position == "learned",
            )
        self.pre_norm = outer_norm(config) if config.pre_norm else nn.Identity()
        first = 0 if config.drop_path_ramp else config.drop_path
        rates = torch.linspace(first, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(self._block(config, i, rate) for i, rate in enumerate(rates))
        self.merge = Merge(config) if config.merge_after >= 0 else None
        self.deepstack = nn.ModuleList(
            projectors.build(
                "patch_merger",
                in_dim=dim,
                out_dim=config.deepstack_dim,
                merge=config.deepstack_merge,
                norm="layer_after",
            )
            for _ in config.deepstack
        )
        self.norm = outer_norm(config) if config.final_norm else nn.Identity()
        pools = {"map": AttentionPool, "map_all": AttentionPool, "query": QueryPool}
        self.pool = pools[config.pool](config) if config.pool in pools else None
        self.pool_norm = outer_norm(config) if config.pool_norm else nn.Identity()
        self.pool_head = None
        if config.pool_head != "none":
            self.pool_head = nn.Linear(dim, config.pool_dim, bias=config.pool_head == "tanh")
        self.head = nn.Linear(config.linear_head_dim, config.num_classes) if config.num_classes else None
        distilled = config.num_classes and config.class_input == "distilled"
        self.head_dist = nn.Linear(dim, config.num_classes) if distilled else None
        self.gradient_checkpointing = False
        self.reset_parameters()

    @staticmethod
    def _block(config: ViTConfig, index: int, drop_path: float) -> Block:
        attention = None
        if config.window_padding:
            attention = PaddedWindowAttention(config, 0 if index in config.full_blocks else config.window)
        if config.film_dim:
            return FilmBlock(config, drop_path, config.film_dim, attention)
        return Block(config, drop_path, attention)

    def reset_parameters(self) -> None:
        """Truncated normal(0, 0.02) for weights and tokens, zero biases: the ViT and DINOv2 recipes."""
        for token in (self.cls_token, self.registers):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
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
        """Encode a batch of images, or of videos.

        Args:
            pixels: (B, C, H, W), normalized as the checkpoint expects; videos (B, T, C, H, W).
            tap: whose tokens to return; blocks past it are not run.
            mask: (B, N) bool; True patches are replaced by the mask token before positions are added.
            keep: (B, K) indices of the patches to encode, others are left out after positions are added (MAE): of images, by
                encoders without windows and mergers. In training a config with patch_drop draws them itself.
            pool: False leaves `pooled` and `logits` None and saves their cost.
            patches: False leaves `patch_tokens` empty, (B, 0, D); unless pooling reads them, the last block then computes
                CLS and registers alone.
            condition: (B, film_dim), for a config with FiLM and only there.

        Raises:
            ValueError: pixels of another shape or channel count, an image smaller than a patch, a video for an encoder
                of images or of another number of frames than whole temporal patches, a tap that does not exist, a mask
                of another shape or for a model without mask token, patches left out where all are needed.
        """
        taken = self._taken(tap)
        if keep is None and self.training and self.config.patch_drop > 0:
            keep = self._draw(pixels)
        x, part = self.embed(pixels, mask=mask, keep=keep)
        pool = pool and self.config.depth - 1 in taken
        places, prefix = None, self.config.num_prefix_tokens
        if prefix and not patches and len(taken) == 1 and not (pool and self._pools_patches):
            places = torch.arange(prefix, device=x.device).expand(len(x), -1)
        condition = check_condition(condition, self.config.film_dim, x)
        x, [part], deep = self._run(x, [part._replace(count=1)], taken, places, keep=keep, condition=condition)
        out = self._output(x, part, tap, pool)
        out.kept, out.deepstack = keep, tuple(features for [features] in deep)
        if not patches:
            out.patch_tokens = out.patch_tokens[:, :0]
        return out

    def packed(self, images: Sequence[Tensor], *, tap: Tap = Tap(), pool: bool = True) -> list[VisionOutput]:
        """Encode images of any sizes in one sequence, without padding; each attends to itself alone.

        Args:
            images: (C, H, W) each, or videos (T, C, H, W); all patches are kept: patch_drop is for `forward`.
            tap, pool: as in `forward`.

        Returns:
            For each image, in order, what `forward` gives for a batch of it alone.

        Raises:
            ValueError: as `forward`.
        """
        if not images:
            return []
        of_shape: dict[torch.Size, list[int]] = {}
        for i in sorted(range(len(images)), key=lambda i: images[i].numel()):
            of_shape.setdefault(images[i].shape, []).append(i)
        batches = [torch.stack([images[i] for i in same]) for same in of_shape.values()]
        outputs = self.together(batches, tap=tap, pool=pool)
        rows: dict[int, VisionOutput] = {}
        for same, out in zip(of_shape.values(), outputs, strict=True):
            for at, i in enumerate(same):
                rows[i] = out.map(itemgetter(slice(at, at + 1)))
        return [rows[i] for i in range(len(images))]

    def together(
        self,
        batches: Sequence[Tensor],
        *,
        tap: Tap = Tap(),
        masks: Sequence[Tensor | None] | None = None,
        pool: bool = True,
    ) -> list[VisionOutput]:
        """Encode batches of several sizes in one sequence, without padding; each image attends to itself alone.

        Args:
            batches: (B, C, H, W) each, or (B, T, C, H, W); all patches are kept: patch_drop is for `forward`.
            masks: for each batch one as in `forward`, or None.
            tap, pool: as in `forward`.

        Returns:
            For each batch, in order, what `forward` gives for it alone.

        Raises:
            ValueError: as `forward`.
        """
        taken = self._taken(tap)
        if not batches:
            return []
        if self.config.film_dim:
            raise ValueError("an encoder with FiLM sees batches, not packed images: use encoder(pixels, condition=...)")
        masks = masks or [None] * len(batches)
        if self.config.window_padding:  # towers of one image size
            return [self(b, tap=tap, mask=mask, pool=pool) for b, mask in zip(batches, masks, strict=True)]
        embedded = [self.embed(pixels, mask=mask) for pixels, mask in zip(batches, masks, strict=True)]
        sequence = torch.cat([x.flatten(0, 1) for x, _ in embedded])[None]
        x, parts, deep = self._run(sequence, [part for _, part in embedded], taken, packed=True)
        pool, prefix = pool and self.config.depth - 1 in taken, self.config.num_prefix_tokens
        sizes = [part.count * (prefix + part.frames * part.grid[0] * part.grid[1]) for part in parts]
        outputs = []
        for i, (rows, part) in enumerate(zip(x[0].split(sizes), parts, strict=True)):
            out = self._output(rows.unflatten(0, (part.count, -1)), part, tap, pool)
            out.deepstack = tuple(features[i] for features in deep)
            outputs.append(out)
        return outputs

    def embed(self, pixels: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None) -> tuple[Tensor, Part]:
        """Input of block 0, (B, P + F N, D), and its size."""
        grid, frames = self._grid(pixels)
        if keep is not None:
            check_dropping(self.config, frames)
        if self.config.remainder == "pad":
            patch = self.config.patch_size
            missing = [want * patch - has for want, has in zip(grid, pixels.shape[-2:], strict=True)]
            pixels = F.pad(pixels, (0, missing[1], 0, missing[0]))
        x = self.patch_norm(self._patches(2 * pixels - 1 if self.config.unit_pixels else pixels))
        if mask is not None:
            x = self._masked(x, mask)
        tokens: list[Tensor] = [token for token in (self.cls_token, self.registers) if token is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else None
        if self.position is not None:
            at_prefix, at_patches = self.position(grid, (pixels.shape[-2], pixels.shape[-1]))
            x = (at_patches if frames == 1 else at_patches.repeat(1, frames, 1)) + x
            if prefix is not None:
                owned = at_prefix.shape[1]
                prefix = torch.cat([prefix[:, :owned] + at_prefix, prefix[:, owned:]], dim=1)
        if self.config.time_position and frames > 1:
            x = x + time_sincos(frames, x.shape[-1]).to(x).repeat_interleave(grid[0] * grid[1], dim=0)
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        if prefix is not None:
            x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pre_norm(x.contiguous()), Part(x.shape[0], frames, grid)

    def _patches(self, pixels: Tensor) -> Tensor:
        """Patch embedding: (B, C, H, W) or (B, T, C, H, W) -> (B, F N, D). An image stands for a temporal patch of copies."""
        embed = self.patch_embed
        if isinstance(embed, nn.Conv3d):
            if pixels.ndim == 5:
                return embed(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)
            x = F.conv2d(pixels, embed.weight.sum(2), embed.bias, stride=self.config.patch_size)
            return x.flatten(2).transpose(1, 2)
        x = embed(pixels.flatten(0, -4)).flatten(2).transpose(1, 2)
        return x if pixels.ndim == 4 else x.unflatten(0, pixels.shape[:2]).flatten(1, 2)

    def _taken(self, tap: Tap) -> tuple[int, ...]:
        if not isinstance(tap, Tap):
            raise ValueError(f"tap is {tap!r}, expected a Tap such as Tap(layer=-2, norm=False)")
        self.config.is_merged(tap)  # says what is wrong with the tap
        return tap.blocks(self.config.depth)

    def _grid(self, pixels: Tensor) -> tuple[Grid, int]:
        """The patch grid and the frames of tokens of a batch."""
        channels = self.config.channels
        if pixels.ndim not in (4, 5) or pixels.shape[-3] != channels:
            raise ValueError(
                f"expected pixels of shape (batch, {channels}, height, width), got {tuple(pixels.shape)}: "
                "pass the result of preprocess"
            )
        frames = 1 if pixels.ndim == 4 else self.config.num_frames(pixels.shape[1])
        height, width = pixels.shape[-2:]
        if torch._C._get_tracing_state() is not None:  # a trace is of one size: its numbers are constants, not nodes
            height, width = int(height), int(width)
        return self.config.grid_of(height, width), frames

    def _draw(self, pixels: Tensor) -> Tensor:
        """(B, K) indices of the patches that each image keeps, drawn uniformly, in order."""
        (rows, columns), _ = self._grid(pixels)
        count = max(1, round(rows * columns * (1 - self.config.patch_drop)))
        noise = torch.rand(pixels.shape[0], rows * columns, device=pixels.device)
        return noise.topk(count, dim=1).indices.sort(dim=1).values

    def _run(
        self,
        x: Tensor,
        parts: list[Part],
        taken: tuple[int, ...],
        places: Tensor | None = None,
        *,
        packed: bool = False,
        keep: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, list[Part], list[list[Tensor]]]:
        """Blocks up to the last taken, which computes the tokens at `places` alone if they are given.

        Returns:
            The outputs of those taken, side by side, the parts of its sequence, and for each block with deep features those
            of each part.
        """
        config, deep, last, outputs = self.config, [], max(taken), {}
        mergers = {config.deepstack[place]: self.deepstack[place] for place in config.mergers(last)}
        how = plan(config, parts, packed=packed, device=x.device, keep=keep, condition=condition)
        x = how.inward(x)
        for i, block in enumerate(islice(self.blocks, last + 1)):
            context = how.full if i in config.full_blocks else how.windowed
            if i == last:
                context = context._replace(places=places)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
            if i in mergers:
                pieces = stacked_frames(how.outward(x), parts, config.deepstack_merge)
                deep.append([mergers[i](tokens, grid) for tokens, grid in pieces])
            if self.merge is not None and i == config.merge_after:
                x, parts = self.merge(x, parts)
                how = plan(config, parts, packed=packed, device=x.device, condition=condition)
            if i in taken:
                outputs[i] = how.outward(x)
        return torch.cat([outputs[i] for i in taken], -1) if len(taken) > 1 else outputs[last], parts, deep

    def _output(self, x: Tensor, part: Part, tap: Tap, pool: bool) -> VisionOutput:
        """The tapped blocks' output x (B, P + F N, K D), named; pooled if asked for."""
        tokens = self.norm(x.unflatten(-1, (-1, self.config.embed_dim))).flatten(-2) if tap.norm else x
        prefix, registers = self.config.num_prefix_tokens, self.config.num_registers
        out = VisionOutput(
            patch_tokens=tokens[:, prefix:],
            grid=part.grid,
            frames=part.frames,
            cls_token=tokens[:, 0] if self.cls_token is not None else None,
            register_tokens=tokens[:, prefix - registers : prefix] if self.registers is not None else None,
        )
        if pool:
            width, depth = self.config.embed_dim, self.config.depth
            last = slice(width * (at := tap.blocks(depth).index(depth - 1)), width * (at + 1))
            out.pooled, out.logits = self._pool(x[..., last], tokens[..., last] if tap.norm else None)
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
        """`pooled` and `logits` from the last block's output x; `normed` is norm(x), if it is known."""
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
            pooled = self.pool(normed if config.pool == "map_all" else patches)
        elif config.pool == "cls":
            pooled = normed[:, 0]
        elif config.pool == "cls_dist":
            pooled = (normed[:, 0] + normed[:, 1]) / 2
        elif config.pool == "prefix":
            pooled = normed[:, list(config.pool_tokens)].flatten(1)
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
        pooled = config.pool in ("map", "map_all", "query", "mean")
        return pooled or (self.head is not None and config.class_input not in ("pooled", "distilled"))

    def unused_modules(self, tap: Tap) -> list[nn.Module]:
        """Modules that take no part in the patch tokens and deep features of `tap`: blocks and mergers past it, pooling, heads."""
        last = tap.block(self.config.depth)
        used = self.config.mergers(last)
        mergers = [merger for place, merger in enumerate(self.deepstack) if place not in used]
        merge = None if self.config.is_merged(tap) else self.merge
        heads = (self.pool, self.pool_norm, self.pool_head, self.head, self.head_dist)
        parts = [*islice(self.blocks, last + 1, None), *mergers, merge, *heads]
        return [part for part in parts if part is not None] + ([] if tap.norm else [self.norm])

    def fold_layer_scale(self) -> None:
        """Multiply every LayerScale into the linear layer before it: same outputs, less work. For inference only.

        Raises:
            ValueError: a norm or a clip between the two, or a layer that is not linear.
        """
        if self.config.layer_scale is not None and (self.config.post_norm or self.config.clipped):
            raise ValueError(
                "LayerScale does not fold into layers whose outputs are normed or clipped: leave it as it is"
            )
        for module in self.modules():
            if isinstance(module, Block):
                module.residual1.fold_into(module.attn.proj)
                module.residual2.fold_into(module.mlp.fc2)
        self.config = replace(self.config, layer_scale=None)
