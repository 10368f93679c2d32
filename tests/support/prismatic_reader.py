"""A small reader of Prismatic and OpenVLA folders that shares no code with the library: torch, and transformers' language model.

It follows the published description: timm towers read after their second to last block without the final norm, prefix
tokens dropped, channels side by side, an MLP, patches right after the first token.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

NAMED = {
    "vit_large_patch14_reg4_dinov2": dict(embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4.0, patch_size=14),
    "vit_so400m_patch14_siglip": dict(embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.7362, patch_size=14),
    "vit_base_patch16_siglip": dict(embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0, patch_size=16),
    "vit_large_patch14_clip_quickgelu": dict(embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4.0, patch_size=14),
}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def layers(**shapes: tuple[int, int]) -> nn.Module:
    """A module of linear layers by name."""
    made = nn.Module()
    for name, (wide, narrow) in shapes.items():
        made.add_module(name, nn.Linear(wide, narrow))
    return made


def vector(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, scaled: bool, eps: float, act):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn, self.mlp = layers(qkv=(dim, 3 * dim), proj=(dim, dim)), layers(fc1=(dim, hidden), fc2=(hidden, dim))
        self.ls1, self.ls2 = (nn.ParameterDict({"scale_factor": vector(dim)} if scaled else {}) for _ in range(2))
        self.heads, self.act = heads, act

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + (mixed * self.ls1["scale_factor"] if len(self.ls1) else mixed)
        mixed = self.mlp.fc2(self.act(self.mlp.fc1(self.norm2(x))))
        return x + (mixed * self.ls2["scale_factor"] if len(self.ls2) else mixed)


class Featurizer(nn.Module):
    """A timm tower by its name and arguments."""

    def __init__(self, name: str, arguments: dict, act: str | None, side: int):
        super().__init__()
        of = next(value for key, value in NAMED.items() if name.startswith(key)) | arguments
        dim, patch, hidden = of["embed_dim"], of["patch_size"], int(of["embed_dim"] * of["mlp_ratio"])
        dino, clip, siglip = ("dinov2" in name, "clip" in name and "siglip" not in name, "siglip" in name)
        eps = 1e-5 if clip else 1e-6
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch, bias=not clip)
        self.prefix = (0 if siglip else 1) + (of.get("reg_tokens", 4) if dino else 0)
        if not siglip:
            self.cls_token = vector(1, 1, dim)
        if dino:
            self.reg_token = vector(1, self.prefix - 1, dim)
        self.pos_embed = vector(1, (side // patch) ** 2 + clip, dim)
        self.norm_pre = nn.LayerNorm(dim, eps) if clip else nn.Identity()
        act = act or ("quick_gelu" if "quickgelu" in name else "gelu")
        self.blocks = nn.ModuleList(
            Block(dim, of["num_heads"], hidden, dino, eps, ACTIVATIONS[act]) for _ in range(of["depth"])
        )
        self.norm = nn.LayerNorm(dim, eps)
        if siglip:  # there, and never used
            self.attn_pool = layers(q=(dim, dim), kv=(dim, 2 * dim), proj=(dim, dim))
            self.attn_pool.latent, self.attn_pool.norm = vector(1, 1, dim), nn.LayerNorm(dim)
            self.attn_pool.mlp = layers(fc1=(dim, hidden), fc2=(hidden, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        place = self.pos_embed
        if self.prefix:
            cls = self.cls_token
            if place.shape[1] > x.shape[1]:
                cls, place = cls + place[:, :1], place[:, 1:]
            front = [cls, self.reg_token] if self.prefix > 1 else [cls]
            x = torch.cat([*(token.expand(len(x), -1, -1) for token in front), x + place], dim=1)
        else:
            x = x + place
        x = self.norm_pre(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.prefix :]


class Reader(nn.Module):
    """`Reader(folder)` loads it strictly, in float32."""

    def __init__(self, folder: Path):
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        count = len(config["timm_model_ids"])
        arguments = config.get("timm_model_args") or [{}] * count
        parts = zip(
            config["timm_model_ids"], arguments, config["timm_override_act_layers"], config["image_sizes"], strict=True
        )
        names = ("featurizer", "fused_featurizer")
        self.vision_backbone = nn.ModuleDict(dict(zip(names, (Featurizer(*part) for part in parts), strict=False)))
        self.language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config["text_config"])).float()
        width = config["text_config"]["hidden_size"]
        dim = sum(tower.pos_embed.shape[-1] for tower in self.vision_backbone.values())
        assert config["use_fused_vision_backbone"] == (count > 1) == ("fused" in config["arch_specifier"])
        fused = dict(fc1=(dim, 4 * dim), fc2=(4 * dim, width), fc3=(width, width))
        self.projector = layers(**fused) if count > 1 else layers(fc1=(dim, width), fc2=(width, width))
        state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
        if config["text_config"].get("tie_word_embeddings"):
            state["language_model.lm_head.weight"] = state["language_model.model.embed_tokens.weight"]
        self.load_state_dict(state, strict=True)
        self.eval()

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3 * towers, H, W) -> (B, N, channels of all towers)"""
        each = pixels.split(3, dim=1)
        return torch.cat([tower(x) for tower, x in zip(self.vision_backbone.values(), each, strict=True)], dim=-1)

    def project(self, features: Tensor) -> Tensor:
        x, names = features, [name for name, _ in self.projector.named_children()]
        for name in names:
            x = getattr(self.projector, name)(x)
            x = F.gelu(x) if name != names[-1] else x
        return x

    def embeds(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        """Word embeddings of input_ids without image tokens, the patches after the first."""
        words = self.language_model.get_input_embeddings()(input_ids)
        return torch.cat([words[:, :1], self.project(self.features(pixels)), words[:, 1:]], dim=1)

    def forward(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        return self.language_model(inputs_embeds=self.embeds(pixels, input_ids)).logits

    def generate(self, pixels: Tensor, input_ids: Tensor, **options) -> Tensor:
        return self.language_model.generate(inputs_embeds=self.embeds(pixels, input_ids), do_sample=False, **options)
