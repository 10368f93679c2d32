# %% [markdown]
# # What does my encoder see?
#
# Three findings that one can see with `vv.look`: tokens that became registers, what the final norm does, and what fused towers add. You
# need `pip install -e .` and a few photos; `image.png` and `cat.jpg` stand for yours. Each block makes a page: in a notebook it shows below
# the block, and `.save("page.html")` writes a file.

# %%
import vlm_vision as vv

PHOTOS = ["image.png", "cat.jpg"]

# %% [markdown]
# ## Tokens that became registers
#
# Large towers that were trained without registers use a few patches of plain background to store what concerns the whole image. These
# patch tokens are several times longer than the others, and their attention maps have bright spots where nothing is to be seen.
# Trained with registers, the same architecture has none ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)).
#
# Open the tab **Norms** and move the slider to the last layers: framed patches are outliers. Then choose the other encoder. In the tab
# **Attention**, click a framed patch, and the same place in the other encoder.

# %%
registers = vv.look(PHOTOS, ["facebook/dinov2-large", "facebook/dinov2-with-registers-large"])
registers.save("registers.html")
registers

# %% [markdown]
# The same as a number: the share of patch tokens that are longer than three times the median, at the last block without the norm.

# %%
for encoder in registers.about["encoders"]:
    normed, plain, *_ = encoder["towers"][0]["taps"]
    print(f"{encoder['name']}: {100 * plain['outliers']:.2f} % outliers, mean length {plain['length']:.1f}")

# %% [markdown]
# ## What the final norm does
#
# The residual stream grows along the blocks: open **Data flow** and follow the bars. The final norm brings every token to about one length. A
# projector that is trained on tokens without it must cope with lengths that differ between patches and encoders; LLaVA nevertheless
# reads the second to last block without the norm, and the page shows all three taps side by side. For `mini` and two photos the mean length falls
# from 121 (deviation 29) to 14.0 (deviation 0.02), while tokens hardly turn: their mean cosine with the normed tokens is 0.999. In a
# DINOv2 it is lower (0.91 in a small one): its norm's weights stretch some channels, so that a projector trained with the norm does not fit tokens
# without it.

# %%
norms = vv.look(PHOTOS, ["mini", "facebook/dinov2-small"])
for encoder in norms.about["encoders"]:
    for tap in encoder["towers"][0]["taps"]:
        print(
            f"{encoder['name']}, {tap['name']}: length {tap['length']:.1f}, deviation {tap['spread']:.2f}, turned {tap['turned']:.3f}"
        )
norms

# %% [markdown]
# ## What fused towers add
#
# OpenVLA and Prismatic read DINOv2 and SigLIP side by side. Open **Similarity** for each tower alone and for both, click a patch on an
# object's edge, and compare: the maps of DINOv2 follow parts and borders, those of SigLIP what the object is. In **Comparison**, the
# similarity of layers (CKA) between the two towers is well below that of neighboring layers of one tower: each holds what the other does
# not.

# %%
DINOV2, SIGLIP = "facebook/dinov2-small", "google/siglip-so400m-patch14-224"
fused = vv.look(PHOTOS, [DINOV2, SIGLIP, f"{DINOV2} + {SIGLIP}"])
for encoder in fused.about["encoders"]:
    print(f"{encoder['name']}: {encoder['width']} channels, {encoder['parameters'] / 1e6:.0f} million parameters")
fused

# %% [markdown]
# In the fused encoder each tower has its own attention: choose the tower above the tabs. Its patch tokens are those of both, so a tower whose
# tokens are longer weighs more in cosines and components; compare the lengths in **Data flow**.
#
# Next: [See what an encoder sees](../look.md) describes every tab, and how to see where a model or a policy looks.
