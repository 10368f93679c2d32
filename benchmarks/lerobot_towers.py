"""Towers out of policies that lerobot itself builds, tiny and with random weights, and saves: tokens, merged tokens and pixels, here
and there.

    python3.12 -m venv lerobot && lerobot/bin/pip install 'lerobot[eo1,evo1,molmoact2,wallx]==0.6.1' 'diffusers<0.40' dm-tree  # 7 GB
    python -m benchmarks.lerobot_towers --lerobot lerobot/bin/python

No GPU, no network. The language models around the towers and the action heads are tiny too. Columns: the largest error of the tower's
tokens and of the projected tokens, relative to the largest value, and of the pixels of four images, as they are.
"""

# pyright: reportMissingImports=false
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]

SIZES = ((256, 256), (480, 640), (97, 211), (300, 64))
"""Height and width of the images."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lerobot_towers", description=__doc__)
    parser.add_argument("--lerobot", default=sys.executable, metavar="PYTHON", help="interpreter that has lerobot")
    parser.add_argument("--keep", metavar="FOLDER", help="folder for the policies; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        subprocess.run(
            [options.lerobot, str(Path(__file__).resolve()), str(folder.resolve())], check=True, env=offline()
        )
        return compare(folder)


def offline() -> dict[str, str]:
    """The environment, without this project in the path of another interpreter."""
    same = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return same | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


# ---------------------------------------------------------------------------------------------- here


def compare(folder: Path) -> int:
    """Print the errors of each policy in the folder. 1 if one is too large."""
    import torch

    import vlm_vision as vv

    failed = 0
    print("| policy | tokens | projected | pixels |\n|---|---|---|---|")
    for path in sorted(folder.glob("*.npz")):
        policy = path.stem
        theirs = dict(np.load(path))
        try:
            encoder, projector = vv.load(folder / policy), vv.load_projector(folder / policy)
        except ValueError as error:
            print(f"| {policy} | {error} | | |")
            failed += policy != "xvla"
            continue
        with torch.inference_mode():
            out = encoder(torch.from_numpy(theirs["x"]))
            projected = projector(out.patch_tokens, out.grid)
        errors = [
            relative(out.patch_tokens.numpy(), theirs["tokens"]),
            relative(projected.numpy(), theirs["projected"]),
        ]
        pixels = [theirs[f"pixels{i}"] for i in range(len(SIZES))]
        images = [theirs[f"image{i}"] for i in range(len(SIZES))]
        ours = [encoder.preprocess(image)[0].numpy() for image in images]
        wrong = [f"{a.shape} for {b.shape}" for a, b in zip(ours, pixels, strict=True) if a.shape != b.shape]
        differ = max(abs(a - b).max() for a, b in zip(ours, pixels, strict=True)) if not wrong else float("inf")
        failed += max(errors) > 1e-5 or differ > 1e-6
        print(f"| {policy} | {errors[0]:.1e} | {errors[1]:.1e} | {' '.join(wrong) or f'{differ:.1e}'} |")
    return int(failed > 0)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest error, relative to the largest value."""
    return float(abs(ours - theirs).max() / abs(theirs).max()) if ours.shape == theirs.shape else float("inf")


# ---------------------------------------------------------------------------------------------- in lerobot's environment

TEXT: Json = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, intermediate_size=48, vocab_size=400
)  # fmt: skip
QWEN: Json = dict(
    depth=4, num_heads=2, hidden_size=32, intermediate_size=48, spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=32
)  # fmt: skip
TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)


def write(folder: Path) -> None:
    """Save each policy, and what it makes of the same images."""
    import torch

    torch.manual_seed(0)
    for policy in (groot, groot_opencv, vla_jepa, wall_x, eo1, evo1, molmoact2, xvla):
        torch.manual_seed(0)
        results = policy(folder)
        arrays: Json = {name: np.asarray(value) for name, value in results.items()}
        np.savez(folder / f"{policy.__name__}.npz", **arrays)  # type: ignore[arg-type]


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def floats() -> list[Any]:
    """The images as lerobot's data sets give them: (1, 3, H, W) in 0..1."""
    import torch

    return [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images()]


def features() -> Json:
    """Fields that every policy wants."""
    from lerobot.configs import FeatureType, PolicyFeature

    camera = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 256, 256))
    state, action = (
        PolicyFeature(type=FeatureType.STATE, shape=(4,)),
        PolicyFeature(type=FeatureType.ACTION, shape=(4,)),
    )
    return dict(
        device="cpu", input_features={"observation.images.front": camera, "observation.state": state}, output_features={"action": action}
    )  # fmt: skip


def shaken(model: Any) -> Any:
    """The model with weights that all matter."""
    import torch

    with torch.no_grad():
        for value in model.parameters():
            value += torch.randn_like(value) * 0.05
    return model.eval()


def tokenizer(folder: Path, *more: str) -> Any:
    """Bytes and special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=TOKENS[0], eos_token=TOKENS[0], chat_template=CHAT)
    made.add_special_tokens({"additional_special_tokens": [*TOKENS[1:], *more]})
    made.save_pretrained(folder)
    return made


def qwen_base(folder: Path, kind: str) -> Path:
    """A vision-language model of Qwen with its processor."""
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer(folder, "<|action|>", "<|propri|>")
    numbers = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{part}|>") for name, part in
               (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"))}  # fmt: skip
    if kind == "3":
        vision = QWEN | dict(patch_size=16, num_position_embeddings=36, deepstack_visual_indexes=[0, 2])
        text = TEXT | dict(rope_scaling={"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True})
        config = t.Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True, **numbers)
        model = t.Qwen3VLForConditionalGeneration(config)
        pixels = t.Qwen2VLImageProcessor(
            patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"shortest_edge": 65536, "longest_edge": 16777216}
        )  # fmt: skip
        processor = t.Qwen3VLProcessor(pixels, words, t.Qwen3VLVideoProcessor(patch_size=16), chat_template=CHAT)
    else:
        vision = QWEN | dict(patch_size=14, window_size=56, fullatt_block_indexes=[1, 3])
        text = TEXT | dict(rope_scaling={"rope_type": "default", "mrope_section": [4, 2, 2]})
        model = t.Qwen2_5_VLForConditionalGeneration(
            t.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **numbers)
        )
        pixels = t.Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384})
        processor = t.Qwen2_5_VLProcessor(pixels, words, t.Qwen2VLVideoProcessor(), chat_template=CHAT)
    model.resize_token_embeddings(len(words))
    shaken(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def rows_of(x: Any, patch: int) -> tuple[Any, Any]:
    """Rows of Qwen's towers, squares of 2 x 2 patches, for pixels (1, 3, H, W); and their grid."""
    import torch
    from einops import rearrange

    pattern = "b c (h i p) (w j q) -> (b h w i j) c p q"
    rows = rearrange(x, pattern, p=patch, q=patch, i=2, j=2)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)
    return rows, torch.tensor([[1, x.shape[2] // patch, x.shape[3] // patch]])


def image_of(rows: Any, grid: Any, patch: int) -> Any:
    """The inverse of `rows_of`."""
    from einops import rearrange

    _, h, w = np.asarray(grid).reshape(-1)[:3].tolist()
    pattern = "(h w i j) (c t p q) -> t c (h i p) (w j q)"
    return rearrange(rows, pattern, h=h // 2, w=w // 2, i=2, j=2, t=2, c=3, p=patch, q=patch)[0].float().numpy()


def qwen_results(visual: Any, patch: int, pixels: list[Any]) -> Json:
    """Tokens of a tower of Qwen in raster order, merged tokens, and pixels."""
    import torch
    from einops import rearrange

    visual = visual.float().eval()
    x = torch.randn(1, 3, 6 * patch, 10 * patch)
    rows, grid = rows_of(x, patch)
    seen: list[Any] = []
    handle = visual.merger.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        merged = visual(rows, grid_thw=grid).pooler_output
    handle.remove()
    squares = seen[0].reshape(15, 4, -1)
    if hasattr(visual, "get_window_index"):
        squares = squares[visual.get_window_index(grid)[0].argsort()]
    tokens = rearrange(squares, "(h w) (i j) d -> 1 (h i w j) d", h=3, i=2)
    return {"x": x, "tokens": tokens, "projected": merged[None]} | pictured(pixels)


def pictured(pixels: list[Any]) -> Json:
    """Images and what became of them, by name."""
    named = {f"image{i}": image for i, image in enumerate(images())}
    return named | {f"pixels{i}": image for i, image in enumerate(pixels)}


def groot(folder: Path, name: str = "groot", **options: Any) -> Json:
    import json

    import torch
    from lerobot.policies.groot.configuration_groot import GrootConfig
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config
    from lerobot.policies.groot.modeling_groot import GrootPolicy
    from lerobot.policies.groot.processor_groot import GrootN17VLMEncodeStep, make_groot_pre_post_processors

    base = qwen_base(folder / "bases" / name, "3")
    small = dict(num_layers=2, num_attention_heads=2, attention_head_dim=16)
    config = GR00TN17Config(
        model_name=str(base), select_layer=1, backbone_embedding_dim=32, hidden_size=32, input_embedding_dim=32, max_num_embodiments=2,
        diffusion_model_cfg=small | dict(norm_type="ada_norm", output_dim=32, interleave_self_attention=True, positional_embeddings=None),
        vl_self_attention_cfg=small | dict(positional_embeddings=None), model_dtype="float32", max_state_dim=8, max_action_dim=8,
    )  # fmt: skip
    raw = folder / "bases" / f"{name}_raw"
    shaken(GR00TN17(config, load_backbone_weights=False)).save_pretrained(raw)
    described = {"processor_class": "Gr00tN1d7Processor", "processor_kwargs": options}
    (raw / "processor_config.json").write_text(json.dumps(described))
    (raw / "statistics.json").write_text("{}")
    settings = GrootConfig(
        base_model_path=str(raw), max_state_dim=8, max_action_dim=8, embodiment_tag="new_embodiment", **features()
    )
    policy = GrootPolicy(settings)
    policy.save_pretrained(folder / name)
    bounds = {
        which: torch.full((4,), value) for which, value in (("min", -1.0), ("max", 1.0), ("q01", -1.0), ("q99", 1.0))
    }
    before, _ = make_groot_pre_post_processors(settings, dataset_stats={"observation.state": bounds, "action": bounds})
    before.save_pretrained(folder / name, config_filename="policy_preprocessor.json")
    [step] = [step for step in before.steps if isinstance(step, GrootN17VLMEncodeStep)]
    step.model_name = str(base)
    pixels = []
    for image in images():
        transition = {
            "observation": {"video": torch.from_numpy(image)[None, None, None]},
            "complementary_data": {"language": ["go"]},
        }
        made = step({key_of(key): value for key, value in transition.items()})
        [extra] = [value for key, value in made.items() if str(getattr(key, "value", key)) == "complementary_data"]
        pixels.append(image_of(extra["pixel_values"], extra["image_grid_thw"], 16))
    return qwen_results(policy._groot_model.backbone.visual, 16, pixels)


def key_of(name: str) -> Any:
    """lerobot's key of a part of a transition."""
    from lerobot.processor import TransitionKey

    return TransitionKey(name)


def groot_opencv(folder: Path) -> Json:
    """As checkpoints that were trained with Albumentations: OpenCV's INTER_AREA."""
    options = dict(image_target_size=[256, 256], shortest_image_edge=256, crop_fraction=0.95, use_albumentations=True)
    return groot(folder, "groot_opencv", **options)


def vla_jepa(folder: Path) -> Json:
    import torch.nn.functional as F
    from lerobot.policies.vla_jepa.configuration_vla_jepa import VLAJEPAConfig
    from lerobot.policies.vla_jepa.modeling_vla_jepa import VLAJEPAPolicy

    base = qwen_base(folder / "bases" / "vla_jepa", "3")
    config = VLAJEPAConfig(
        qwen_model_name=str(base), enable_world_model=False, torch_dtype="float32", action_hidden_size=32, action_num_layers=1,
        action_num_heads=2, action_attention_head_dim=16, resize_images_to=(224, 224), **features(),
    )  # fmt: skip
    policy = VLAJEPAPolicy(config)
    policy.save_pretrained(folder / "vla_jepa")
    pixels = []
    for image in floats():  # as VLAJEPAModel.predict_action
        small = F.interpolate(policy.model.qwen.to_pixel_values(image), size=(224, 224), mode="area")[0]
        made = policy.model.qwen.build_inputs([[small]], ["go"], "", "")
        pixels.append(image_of(made["pixel_values"], made["image_grid_thw"], 16))
    return qwen_results(policy.model.qwen.model.model.visual, 16, pixels)


def wall_x(folder: Path) -> Json:
    import json

    from lerobot.policies.wall_x.configuration_wall_x import WallXConfig
    from lerobot.policies.wall_x.modeling_wall_x import WallXPolicy, _prepare_wall_x_image_inputs
    from lerobot.policies.wall_x.utils import preprocesser_call

    base = qwen_base(folder / "bases" / "wall_x", "2.5")
    described = json.loads((base / "config.json").read_text())
    expert = dict(hidden_size=32, intermediate_size=48, hidden_act="silu")
    described["text_config"] |= dict(num_experts=2, experts=[expert] * 2, dim_inputs=[32, 32], mlp_moe=True)
    for place in (described, described["text_config"]):
        place |= dict(dof_config={"arm": 20}, agent_pos_config={"arm": 20}, pad_token_id=0)
    (base / "config.json").write_text(json.dumps(described))
    policy = WallXPolicy(WallXConfig(pretrained_name_or_path=str(base), **features()))
    policy.save_pretrained(folder / "wall_x")
    pixels = []
    for image in floats():
        made, _ = _prepare_wall_x_image_inputs({"front": image}, ["front"])
        made = preprocesser_call(policy.model.processor, images=made, text=["<|image_pad|>"])
        pixels.append(image_of(made["pixel_values"], made["image_grid_thw"], 14))
    return qwen_results(policy.model.visual, 14, pixels)


def eo1(folder: Path) -> Json:
    from lerobot.policies.eo1.configuration_eo1 import EO1Config
    from lerobot.policies.eo1.modeling_eo1 import EO1Policy
    from lerobot.policies.eo1.processor_eo1 import make_eo1_pre_post_processors

    base = qwen_base(folder / "bases" / "eo1", "2.5")
    config = EO1Config(vlm_base=str(base), dtype="float32", chunk_size=2, n_action_steps=2, **features())
    policy = EO1Policy(config)
    policy.save_pretrained(folder / "eo1")
    before, _ = make_eo1_pre_post_processors(config)
    before.save_pretrained(folder / "eo1", config_filename="policy_preprocessor.json")
    pixels = []
    for image in floats():
        made = before({"observation.images.front": image, "task": ["go"]})
        pixels.append(image_of(made["pixel_values"], made["image_grid_thw"], 14))
    return qwen_results(policy.model.vlm_backbone.model.visual, 14, pixels)


def evo1(folder: Path) -> Json:
    import torch
    import transformers as t
    from lerobot.policies.evo1.configuration_evo1 import Evo1Config
    from lerobot.policies.evo1.internvl3_embedder import IMAGENET_MEAN, IMAGENET_STD, _batched_pixel_values
    from lerobot.policies.evo1.modeling_evo1 import Evo1Policy

    base = folder / "bases" / "evo1"
    tokenizer(base, "<img>", "</img>", "<IMG_CONTEXT>")
    vision: Json = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=[56, 56], patch_size=[14, 14],
        attention_bias=True,
    )  # fmt: skip
    text = {name: value for name, value in TEXT.items() if name != "head_dim"} | {"model_type": "qwen2"}
    config = t.InternVLConfig(vision_config=vision, text_config=text, image_seq_length=4)
    shaken(t.InternVLForConditionalGeneration(config)).save_pretrained(base)
    settings = Evo1Config(
        vlm_model_name=str(base), image_resolution=(56, 56), vlm_num_layers=1, vlm_dtype="float32", use_flash_attn=False, embed_dim=32,
        hidden_dim=32, state_hidden_dim=32, num_heads=2, num_layers=1, chunk_size=2, n_action_steps=2, **features(),
    )  # fmt: skip
    policy = Evo1Policy(settings)
    policy.save_pretrained(folder / "evo1")
    statistics = [torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD)]
    pixels = [_batched_pixel_values([image], 1, 56, *statistics, torch.float32, "cpu")[0] for image in floats()]
    model, x = policy.model.embedder.model.float().eval(), torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        tokens = model.vision_tower(x).last_hidden_state[:, 1:]
        projected = model.get_image_features(pixel_values=x).pooler_output
    return {"x": x, "tokens": tokens, "projected": projected} | pictured(pixels)


def molmoact2(folder: Path) -> Json:
    """Patches in odd numbers: lerobot's default pools zeros at the edges."""
    import json

    import torch
    from einops import rearrange
    from lerobot.policies.molmoact2.configuration_molmoact2 import MolmoAct2Config
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy
    from lerobot.policies.molmoact2.molmoact2_hf_model import configuration_molmoact2 as described
    from lerobot.policies.molmoact2.molmoact2_hf_model.image_processing_molmoact2 import MolmoAct2ImageProcessor
    from lerobot.policies.molmoact2.molmoact2_hf_model.modeling_molmoact2 import MolmoAct2ForConditionalGeneration

    base = folder / "bases" / "molmoact2"
    vit = described.MolmoAct2VitConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=10, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        image_default_input_size=(70, 70), image_patch_size=14, image_num_pos=25,
    )  # fmt: skip
    adapter = described.MolmoAct2AdapterConfig(
        hidden_size=24,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=40,
        text_hidden_size=32,
    )
    text = described.MolmoAct2TextConfig(**TEXT, additional_vocab_size=8)
    expert = described.MolmoAct2ActionExpertConfig(hidden_size=32, num_layers=2, num_heads=2)
    config = described.MolmoAct2Config(vit, adapter, text, expert, max_action_dim=32)
    shaken(MolmoAct2ForConditionalGeneration(config)).save_pretrained(base)
    processor = MolmoAct2ImageProcessor(size={"height": 70, "width": 70}, crop_mode="resize")
    (base / "processor_config.json").write_text(json.dumps({"image_processor": processor.to_dict()}))
    settings = MolmoAct2Config(
        checkpoint_path=str(base), model_dtype="float32", chunk_size=2, n_action_steps=2, **features()
    )
    policy = MolmoAct2Policy(settings)
    policy.save_pretrained(folder / "molmoact2")
    pattern = "1 (h w) (p q c) -> c (h p) (w q)"
    pixels = []
    for image in images():
        made = processor(images=[image], return_tensors="pt")["pixel_values"]
        pixels.append(rearrange(made.float(), pattern, h=5, p=14, q=14).numpy())
    backbone = policy.model.model.vision_backbone.float().eval()
    x = torch.randint(0, 256, (1, 3, 70, 70)).float() / 127.5 - 1  # the backbone rounds pixels to 8 bits
    rows = rearrange(x, "b c (h p) (w q) -> b 1 (h w) (p q c)", p=14, q=14)
    places = torch.full((6, 6), -1)
    places[:5, :5] = torch.arange(25).reshape(5, 5)
    places = rearrange(places, "(h i) (w j) -> 1 (h w) (i j)", i=2, j=2)
    with torch.inference_mode():
        tokens = backbone.encode_image(rows)[:, 0]
        projected = backbone(rows, places)[None]
    return {"x": x, "tokens": tokens, "projected": projected} | pictured(pixels)


def xvla(folder: Path) -> Json:
    """Its config.json is enough to refuse it."""
    from lerobot.policies.xvla.configuration_xvla import XVLAConfig

    (folder / "xvla").mkdir(exist_ok=True)
    XVLAConfig(**features())._save_pretrained(folder / "xvla")
    return {}


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
        write(Path(sys.argv[1]))
        sys.exit(0)
    sys.exit(main())
