# %% [markdown]
# # From recordings to a served robot policy
#
# This tutorial records episodes, trains a policy on them, tests it in closed loop, and serves it to a client. The "robot" is a white dot
# that moves over an image with a red and a green square; the instruction says to which one. You need
# `pip install -e '.[robot,serve]'` and no download. For a robot of yours, replace the class `World` and the recordings.

# %%
import numpy as np

EPISODES = 400
STEPS = 600  # training steps
PORT = 8000
SIDE = 48  # pixels


class World:
    """Positions are in 0..1. An action moves the dot by at most 0.06 along each axis."""

    def __init__(self, seed: int):
        chance = np.random.default_rng(seed)
        self.red, self.green = np.array([0.2, chance.uniform(0.1, 0.9)]), np.array([0.8, chance.uniform(0.1, 0.9)])
        self.dot = chance.uniform([0.4, 0.1], [0.6, 0.9])
        self.goal = ("red", "green")[seed % 2]

    @property
    def instruction(self) -> str:
        return f"move to the {self.goal} square"

    @property
    def target(self) -> np.ndarray:
        return self.red if self.goal == "red" else self.green

    def image(self) -> np.ndarray:
        pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        for (x, y), color in ((self.red, (220, 40, 40)), (self.green, (40, 180, 40)), (self.dot, (255, 255, 255))):
            row, column = int(y * (SIDE - 1)), int(x * (SIDE - 1))
            pixels[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5] = color
        return pixels

    def expert(self) -> np.ndarray:
        return np.clip(self.target - self.dot, -0.06, 0.06)

    def step(self, action: np.ndarray) -> bool:
        self.dot = np.clip(self.dot + np.clip(action, -0.06, 0.06), 0, 1)
        return bool(np.abs(self.target - self.dot).max() < 0.1)


# %% [markdown]
# ## Record
#
# An episode holds the instruction, images of each camera, actions and, if there is one, the robot's state. We leave the state out, so
# that the policy must use the image. Noise on the executed action, not on the recorded one, shows the policy how to recover.

# %%
from vlm_vision.data.lerobot import read_dataset, write_dataset
from vlm_vision.robot.episode import Episode


def record(seed: int) -> Episode:
    world, images, actions, done = World(seed), [], [], False
    noise = np.random.default_rng(seed + 1_000_000)
    while not done and len(actions) < 30:
        images.append(world.image())
        actions.append(world.expert())
        done = world.step(actions[-1] + noise.normal(0, 0.02, size=2))
    return Episode(world.instruction, {"top": np.stack(images)}, np.stack(actions))


write_dataset(
    "tutorial_recordings", [record(seed) for seed in range(EPISODES)], fps=10, video=False, action_names=("x", "y")
)
dataset = read_dataset("tutorial_recordings")
print(len(dataset), "moments in", dataset.num_episodes, "episodes;", dataset.tasks)

# %% [markdown]
# A dataset on the hub works too: its name goes into `data.train` below. Folders of images and `.npy` files are converted by
# `vlm-vision robot-data`.
#
# ## Train
#
# Encoder, language model and head are small and new here. With pretrained parts you would set `encoder.source` and `language.source`,
# or `start` with a VLM. `chunk` is the number of actions per observation. The same as a command:
# `python -m recipes.vla --data.train '{"dots": "tutorial_recordings"}' ...`.

# %%
import json

from recipes import vla

encoder = dict(
    image_size=SIDE, patch_size=8, embed_dim=96, depth=3, num_heads=3, mlp_dim=384, class_token=False, pool="none"
)
language = dict(model_type="llama", hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2)
language |= dict(num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True)
settings = ["--out", "runs/tutorial_robot", "--data.train", json.dumps({"dots": "tutorial_recordings"})]
settings += ["--data.test_episodes", "8", "--encoder.new", json.dumps(encoder), "--language.new", json.dumps(language)]
settings += [
    "--encoder.mean",
    "[0.1, 0.1, 0.1]",
    "--encoder.std",
    "[0.2, 0.2, 0.2]",
]  # a small deviation makes small things visible
settings += ["--head", "parallel", "--chunk", "4", "--area", "1.0", "--color", "false", "--train_language", "full"]
settings += ["--lr_vision", "1e-3", "--lr_projector", "1e-3", "--lr_language", "1e-3"]
settings += ["--steps", str(STEPS), "--batch_size", "32", "--micro_batch_size", "32", "--warmup_steps", "30"]
metrics = vla.main(vla.parse(settings))
print({name: round(value, 4) for name, value in metrics.items() if name.startswith("action")})

# %% [markdown]
# The recipe prints the error of actions on episodes that were kept apart, with the right images, shuffled images and blank images. If
# the three are equal, the policy does not use its images.
#
# ## Closed loop
#
# The policy's actions are executed now, on seeds that no recording has.

# %%
import vlm_vision as vv
from vlm_vision.robot.observation import Observation

policy = vv.load_policy("runs/tutorial_robot/model", statistics="dots")


def succeeds(seed: int, *, blank: bool = False) -> bool:
    world = World(seed)
    for _ in range(8):
        image = np.full_like(world.image(), 128) if blank else world.image()
        chunk = policy.act([Observation({"top": image}, world.instruction)]).values[0]
        if any(world.step(action) for action in chunk):
            return True
    return False


seeds = range(10_000, 10_020)
print(f"success: {np.mean([succeeds(seed) for seed in seeds]):.0%}")
print(f"success with blank images: {np.mean([succeeds(seed, blank=True) for seed in seeds]):.0%}")

# %% [markdown]
# ## Serve
#
# A robot's program usually runs on another machine or in another Python. The server speaks openpi's websocket and OpenVLA's `/act`.

# %%
import subprocess

command = ["vlm-vision", "serve", "--model", "runs/tutorial_robot/model", "--statistics", "dots", "--port", str(PORT)]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
print(server.stdout.readline())  # printed once the server is ready

# %% [markdown]
# ## Ask it from a client
#
# The client needs numpy and no part of this package.

# %%
import base64
import urllib.request


def ask(image: np.ndarray, instruction: str) -> list:
    def pack(x):
        return {"__numpy__": base64.b64encode(x.tobytes()).decode(), "dtype": x.dtype.str, "shape": x.shape}

    def unpack(d):
        return np.frombuffer(base64.b64decode(d["__numpy__"]), d["dtype"]) if "__numpy__" in d else d

    question = json.dumps({"top": image, "instruction": instruction}, default=pack).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/act", question) as answer:
        return json.loads(answer.read(), object_hook=unpack)


world = World(10_000)
actions = ask(world.image(), world.instruction)
print(len(actions), "actions, the first one:", actions[0])
wanted = policy.act([Observation({"top": world.image()}, world.instruction)]).values[0]
assert np.allclose(np.stack(actions), wanted, atol=1e-5)

server.terminate()
server.communicate()

# %% [markdown]
# Next: [robots](../robots.md) for simulators, published policies and what a real run needs; [serving](../serving.md) for tokens, limits
# and camera names.
