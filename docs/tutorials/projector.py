# %% [markdown]
# # Train a projector on your own images
#
# This tutorial goes from a folder of images to a model that answers questions about them, by the two recipes: `align` (stage one,
# captions) and `vqa` (stage two, questions). The recipes are commands; here we call them from Python, with the same settings. You need
# `pip install -e .` and no data: the first block makes some images in place of yours.

# %%
import json
from pathlib import Path

from PIL import Image, ImageDraw

STEPS = 600  # of each stage
LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "facebook/dinov2-small"

# %% [markdown]
# ## Your images
#
# Replace this block by your own files. The recipes read LLaVA's form: a JSON list of records with an image path and turns `human`, `gpt`,
# `human`, `gpt`. A path starts from the folder of the JSON file, or from the setting `data.images`.

# %%
folder = Path("tutorial_images")
folder.mkdir(exist_ok=True)
COLORS = {"red": (220, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 220)}


def record(name: str, question: str, answer: str) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": name, "conversations": turns}


captions, questions = [], []
for i in range(90):
    color, side = list(COLORS)[i % 3], "left" if i % 2 else "right"
    image = Image.new("RGB", (120, 80), "white")
    x = 10 if side == "left" else 70
    ImageDraw.Draw(image).rectangle((x, 20, x + 40, 20 + 40), fill=COLORS[color])
    image.save(folder / f"{i}.png")
    captions.append(record(f"{i}.png", "describe the image", f"a {color} square on the {side}"))
    asked = ("what color is the square?", color) if i % 5 else ("where is the square?", side)
    questions.append(record(f"{i}.png", *asked))

for name, records in (("captions", captions), ("questions", questions)):
    (folder / f"{name}_train.json").write_text(json.dumps(records[:72]))
    (folder / f"{name}_test.json").write_text(json.dumps(records[72:]))

# %% [markdown]
# ## Check the data before you train
#
# A wrong record is an error that names it.

# %%
from vlm_vision.data.conversations.read import read_conversations

train = read_conversations(str(folder / "questions_train.json"))
print(len(train), "conversations;", train[0].turns, train[0].images)

# %% [markdown]
# ## Stage one: align
#
# Encoder and language model are frozen. The projector learns to put what the encoder sees into the language model's space.
# The same as a command: `python -m recipes.align --out runs/align --data.train ... --encoder.source ...`.

# %%
from recipes import align

settings = ["--out", "runs/tutorial_align"]
settings += ["--data.train", str(folder / "captions_train.json"), "--data.test", str(folder / "captions_test.json")]
settings += ["--encoder.source", ENCODER, "--encoder.image_size", "112", "--language.source", LANGUAGE_MODEL]
settings += ["--projector", "pixel_shuffle", "--steps", str(STEPS), "--batch_size", "8", "--micro_batch_size", "8"]
aligned = align.main(align.parse(settings))
print("loss:", aligned["final_loss"])

# %% [markdown]
# ## Stage two: questions
#
# Stage two starts from the model of stage one. It needs no encoder or language model: `start` brings both. LoRA trains a few weights of
# the language model; the encoder stays frozen, so its patch tokens are computed once and kept on disk.

# %%
from recipes import vqa

settings = ["--out", "runs/tutorial_vqa", "--start", "runs/tutorial_align/model"]
settings += ["--data.train", str(folder / "questions_train.json"), "--data.test", str(folder / "questions_test.json")]
settings += ["--train_language", "lora", "--lora_rank", "8"]
settings += ["--steps", str(STEPS), "--batch_size", "8", "--micro_batch_size", "8"]
metrics = vqa.main(vqa.parse(settings))

# %% [markdown]
# ## Read the result
#
# The recipe loads the saved model again and measures it. `accuracy` must be compared with `blind` (the most frequent training answer to
# the same question, without any image) and `shuffled` (the model with another image). `warning` is empty if the model uses its images.

# %%
for name in ("accuracy", "blind", "shuffled", "warning"):
    print(f"{name:10} {metrics[name]}")

# %% [markdown]
# `runs/tutorial_vqa` also holds `contact_sheet.png` with test images and answers, `logs/` for TensorBoard, and `adapter/`. If you stop a
# run, the same command resumes it.
#
# ## Use the model

# %%
import vlm_vision as vv

vlm = vv.VisionLanguageModel.from_pretrained("runs/tutorial_vqa/model")
print(vlm.answer(folder / "0.png", "what color is the square?", max_new_tokens=5))

# %% [markdown]
# As a command: `vlm-vision ask IMAGE QUESTION --model runs/tutorial_vqa/model`.
#
# ## What to change next
#
# | if | then |
# |---|---|
# | accuracy is near `blind` | train longer; check the labels; unfreeze the encoder (`train_vision: lora`) |
# | small details matter | raise `encoder.image_size`, or use layout `anyres` or `native` |
# | training is slow | use a projector with fewer tokens; keep the encoder frozen |
# | you have a GPU | set `mixed_precision: bf16` and a larger `batch_size` |
#
# [Projectors](../projectors.md) lists them, and [settings](../settings.md) every key.
