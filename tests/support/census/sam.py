"""SAM, and the readers of documents with its tower."""

from torch import Tensor, nn

from support.census.case import Case, Reference


def reference(tower: nn.Module, x: Tensor) -> Reference:
    """The tokens before the neck."""
    tokens = tower.patch_embed(x)
    tokens = tokens if tower.pos_embed is None else tokens + tower.pos_embed
    for block in tower.layers:
        tokens = block(tokens)
    return Reference(tokens.flatten(1, 2))


def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The neck, and what follows it in front of a language model."""
    model = getattr(whole, "backbone", getattr(whole, "model", whole))
    tower = next(getattr(model, name) for name in ("vision_encoder", "vision_tower", "encoder") if hasattr(model, name))
    image = tower.neck(tokens.unflatten(1, grid))
    if hasattr(model, "post_conv"):
        image = model.post_conv(image)
    after = getattr(model, "multi_modal_projector", getattr(tower, "multi_modal_projector", None))
    return image.flatten(2).mT if after is None else after(image)


def _case(model_type: str, tower: str = "vision_encoder", label: str = "", model: str = "", **vision) -> Case:
    small = dict(window_size=3, global_attn_indexes=[1], mlp_dim=96, output_channels=24) | vision
    return Case(
        model_type=model_type,
        label=label,
        model=model,
        tower=tower,
        reference=reference,
        connector=connector,
        sizes=((vision.get("image_size", 64),) * 2,),
        changes={"vision_config": small},
    )


CASES = (
    _case("sam"),
    _case(
        "sam", label="sam: no positions", use_abs_pos=False, use_rel_pos=False, qkv_bias=False, hidden_act="quick_gelu"
    ),
    _case("sam", label="sam: no windows", window_size=0, use_abs_pos=False, image_size=48),
    _case("sam_hq"),
    _case("got_ocr2", "vision_tower"),
    _case("pp_chart2table", "model.vision_tower", model="GotOcr2ForConditionalGeneration"),
    _case(
        "pp_formulanet",
        "model.encoder",
        model="PPFormulaNetForConditionalGeneration",
        post_conv_in_channels=24,
        post_conv_mid_channels=32,
        post_conv_out_channels=40,
        decoder_hidden_size=64,
    ),
    _case("slanext", "backbone.vision_tower", model="SLANeXtForTableRecognition", output_channels=256),
)
