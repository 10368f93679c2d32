"""SigLIP and its kin, and the models around its tower."""

from support.census.case import Case
from support.census.inputs import naflex, pixels

_SIGLIP = dict(tower="vision_model", reference=pixels())
_VLM = dict(tower="vision_tower", reference=pixels())

CASES = (
    Case(model_type="siglip", **_SIGLIP),
    *(
        Case(model_type=name, **_VLM)
        for name in ("llava_onevision", "paligemma", "gemma3", "aya_vision", "cohere2_vision")
    ),
    Case(model_type="aria", **_VLM | dict(reference=pixels(resize=False))),
    Case(
        model_type="shieldgemma2",
        model="ShieldGemma2ForImageClassification",
        **_VLM | dict(tower="model.model.vision_tower"),
    ),
    Case(model_type="t5gemma2_encoder", changes={"text_config": dict(dropout_rate=0.0)}, **_VLM),
    *(Case(model_type=name, **_SIGLIP) for name in ("deepseek_vl", "deepseek_vl_hybrid", "modernvbert", "ultravbert")),
    *(
        Case(model_type=name, **_SIGLIP | dict(reference=pixels(resize=False)))
        for name in ("idefics3", "smolvlm", "idefics2")
    ),
    Case(model_type="aimv2", **_SIGLIP | dict(sizes=((64, 64),), reference=pixels(resize=False))),
    Case(model_type="vision-text-dual-encoder", **_SIGLIP | dict(reference=pixels(prefix=1))),
    Case(
        model_type="tipsv2",
        **_SIGLIP | dict(reference=pixels(prefix=2, resize=False)),
        changes=dict(
            vision_config=dict(
                out_features=["stage3"], out_indices=[3], stage_names=["stem", "stage1", "stage2", "stage3"]
            )
        ),
    ),
    Case(model_type="siglip2", **_SIGLIP | dict(reference=naflex(), changes=dict(vision_config=dict(num_patches=64)))),
    Case(model_type="lfm2_vl", **_VLM | dict(reference=naflex(), changes=dict(vision_config=dict(num_patches=64)))),
)
