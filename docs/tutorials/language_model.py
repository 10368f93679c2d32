# %% [markdown]
# # Let a language model see
#
# This tutorial connects an image encoder to a language model that was never trained on images, and trains the projector between
# them. At the end the language model answers questions about shapes. You need `pip install -e .` and no data; the two models come
# from the hub. Both stay frozen, so a CPU is enough.

# %%
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, AutoTokenizer

import vlm_vision as vv

STEPS = 400  # training steps
LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "facebook/dinov2-small"

# %% [markdown]
# ## Connect
#
# `attach` puts a projector between encoder and language model. The projector maps the encoder's patch tokens to the width of the
# language model's words. `pixel_shuffle` joins neighboring patches, so an image costs a quarter of the tokens.

# %%
torch.manual_seed(0)
encoder = vv.load(ENCODER, image_size=112)
llm = AutoModelForCausalLM.from_pretrained(LANGUAGE_MODEL)
tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
vlm = vv.VisionLanguageModel.attach(encoder, llm, projector="pixel_shuffle", tokenizer=tokenizer)
print("image tokens:", vlm.processor.image_processor.num_image_tokens(112, 112))

# %% [markdown]
# ## Data
#
# A conversation holds images and (question, answer) pairs. `<image>` in the question is the place of the image. We draw shapes; your
# own images work the same way, by path.

# %%
from vlm_vision.data.conversations.records import Conversation

COLORS = {"red": (220, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square")


def draw(path: Path, color: str, shape: str, seed: int) -> None:
    chance = random.Random(seed)
    image = Image.new("RGB", (112, 112), "white")
    side, x, y = chance.randint(30, 60), chance.randint(5, 45), chance.randint(5, 45)
    paint = ImageDraw.Draw(image)
    (paint.ellipse if shape == "circle" else paint.rectangle)((x, y, x + side, y + side), fill=COLORS[color])
    image.save(path)


def conversations(count: int, start: int) -> list[Conversation]:
    made = []
    for i in range(start, start + count):
        color, shape = list(COLORS)[i % 4], SHAPES[(i // 4) % 2]
        path = Path("tutorial_shapes") / f"{i}.png"
        draw(path, color, shape, i)
        question, answer, kind = (
            ("what color is it?", color, "color") if i % 3 else ("what shape is it?", shape, "shape")
        )
        made.append(Conversation((str(path),), ((f"<image>\n{question}", answer),), kind))
    return made


Path("tutorial_shapes").mkdir(exist_ok=True)
train, test = conversations(240, 0), conversations(24, 240)

# %% [markdown]
# ## Train the projector
#
# The `Collator` makes inputs and labels. A label is -100 except on the tokens of an answer, so the model never learns to write
# `<image>` or the question.

# %%
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.train.trainable import set_trainable, trainable_table

collate = Collator(vlm.processor)
model = set_trainable(vlm, vision="frozen", projector="full", language="frozen")
print(trainable_table(model))

optimizer = torch.optim.AdamW(vlm.projector.parameters(), lr=1e-3)
chance = random.Random(0)
vlm.train()
for step in range(STEPS):
    loss = vlm(**collate(chance.sample(train, 8))).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vlm.projector.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0:
        print(f"step {step:4}  loss {loss.item():.3f}")
vlm.eval()

# %% [markdown]
# ## Ask
#
# The test images were never trained on. The contact sheet shows each with its question and answer.

# %%
from vlm_vision.measure.contact_sheet import contact_sheet

rows = []
for one in test[:12]:
    question, answer = one.turns[0]
    said = vlm.answer(one.images[0], question.removeprefix("<image>\n"), max_new_tokens=5)
    rows.append((one.images[0], question, said, said == answer))
contact_sheet(Path("tutorial_answers.png"), rows, title=f"{sum(row[3] for row in rows)} of {len(rows)} correct")

# %% [markdown]
# ## Does it use the image?
#
# A model can learn which answers are frequent and ignore its images. `image_use` compares the right images with shuffled and blank
# ones. If the loss with shuffled images is as low as with the right ones, the model does not use them, and the table is followed by a
# warning that says what to try.

# %%
from vlm_vision.measure.image_use import image_use

use = image_use(vlm, test)
print(use.table())
print(use.warning or "The model uses its images.")

# %% [markdown]
# ## Save and load
#
# The folder is a transformers model with its processor. In a new process, write `import vlm_vision` before an Auto class loads it.

# %%
vlm.save_pretrained("tutorial_vlm")
again = vv.VisionLanguageModel.from_pretrained("tutorial_vlm")
print(again.answer(test[0].images[0], "what color is it?", max_new_tokens=5))

# %% [markdown]
# Next: [train a projector on your own images](projector.md) with the recipes, which add LoRA, checkpoints and measurements.
