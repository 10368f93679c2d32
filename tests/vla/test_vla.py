"""Action heads on a small model: laws that hold for each."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from support.policies import HEADS, LLAMA, SPEC, made, observation, rng

from vlm_vision.fused import add_film
from vlm_vision.preprocess import images
from vlm_vision.robot.observation import Observation
from vlm_vision.robot.statistics import Statistics
from vlm_vision.robot.window import Window
from vlm_vision.serve.key_map import KeyMap
from vlm_vision.vla import VisionLanguageActionModel, VLAPolicy, load_policy
from vlm_vision.vla.batch import ActionCollator
from vlm_vision.vla.crop import OPENVLA_COLOR, CropConfig
from vlm_vision.vla.heads.build import new_head
from vlm_vision.vla.heads.prefix import open_end


def test_a_served_image_is_converted_once(monkeypatch) -> None:
    calls = []
    for name in ("_from_array", "_upright"):
        convert = getattr(images, name)
        monkeypatch.setattr(images, name, lambda image, convert=convert: calls.append(1) or convert(image))
    policy, sent = VLAPolicy(made("parallel")), observation(1)
    message = {**sent.images, "instruction": sent.instruction, "state": sent.state}
    received = KeyMap.of(policy.spec, {}).observation(message)
    actions = policy.act([received]).values
    assert len(calls) == len(policy.spec.cameras)
    np.testing.assert_array_equal(actions, policy.act([sent]).values)


def windows(count: int, chunk: int = 4) -> list[tuple[Window, int]]:
    found = []
    for seed in range(count):
        padded = np.arange(chunk) > seed  # the first has three padded steps
        words = "open drawer" if seed % 2 else "push a red block"
        found.append((Window(observation(seed, words), rng(seed).normal(size=(chunk, 3)), padded), seed))
    return found


@pytest.mark.parametrize("head", HEADS)
def test_actions_of_a_batch_are_those_one_by_one(head: str) -> None:
    policy = VLAPolicy(made(head))
    seen = [observation(1), observation(5, "open drawer"), observation(9, "push a block")]
    together = policy.act(seen)
    alone = np.concatenate([policy.act([one]).values for one in seen])
    assert together.values.shape == (3, 4, 3) and together.values.dtype == np.float32
    np.testing.assert_allclose(together.values, alone, rtol=1e-5, atol=1e-5)
    assert set(together.seconds) == {"preprocess", "encode", "prefill", "decode"}
    if head != "tokens":
        assert np.abs(together.values[0] - together.values[1]).max() > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_every_input_changes_the_actions(head: str) -> None:
    model = made(head)
    plain = observation(1)
    images = dict(plain.images)
    changed = {
        "wrist": dataclasses.replace(plain, images=images | {"wrist": 255 - images["wrist"]}),
        "words": dataclasses.replace(plain, instruction="open drawer"),
        "state": dataclasses.replace(plain, state=plain.state + 1),
        "order": dataclasses.replace(plain, images={"top": images["wrist"], "wrist": images["top"]}),
    }

    def told(one: Observation) -> torch.Tensor:
        """What decides the actions, before tokens are rounded to the likeliest."""
        held = model.head.prefill(model.prefix(inputs(model, one)))
        return held.logits if head == "tokens" else model.head.decode(held)

    with torch.no_grad():
        for name, one in changed.items():
            assert (told(one) - told(plain)).abs().max() > 1e-6, name


def inputs(model: VisionLanguageActionModel, one: Observation) -> dict[str, torch.Tensor]:
    window = Window(one, np.zeros((4, 3)), np.zeros(4, dtype=bool))
    return ActionCollator(model)([(window, 0)])


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_a_batch_is_the_sum_of_its_rows(head: str) -> None:
    model = made(head)
    collate = ActionCollator(model, color=OPENVLA_COLOR)
    drawn = windows(4)
    whole = collate(drawn)
    with torch.no_grad():
        alone = sum(model(collate([one])).item() for one in drawn)
        assert model(whole).item() == pytest.approx(alone, rel=1e-5)
        terms = sum(int(model.head.terms(collate([one])["padded"])) for one in drawn)
        assert int(model.head.terms(whole["padded"])) == terms


@pytest.mark.parametrize("head", ["tokens", "parallel"])
def test_steps_past_the_end_teach_nothing(head: str) -> None:
    """Flow's noisy actions see each other, those past the end too, as in pi0: there only the loss leaves them out."""
    model = made(head)
    model.head.end_id = None  # the end comes after them, and sees them
    collate = ActionCollator(model)
    batch = collate(windows(3))
    other = dict(batch) | {"actions": torch.where(batch["padded"][..., None], 0.9, batch["actions"])}

    def gradients(batch) -> torch.Tensor:
        model.zero_grad()
        model(batch).backward()
        return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])

    assert torch.allclose(gradients(batch), gradients(other), atol=1e-6)
    assert not torch.allclose(gradients(batch), gradients(dict(batch) | {"actions": -batch["actions"]}), atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_small_set_is_learned_by_heart(head: str) -> None:
    model = made(head)
    batch = ActionCollator(model)(windows(4))
    batch["padded"] = torch.zeros_like(batch["padded"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(400 if head == "flow" else 120):
        if head == "flow":
            batch |= model.head.draws([4 * step + i for i in range(4)], 4, 3)
        loss = model(batch) / model.head.terms(batch["padded"])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(losses[-10:]) < 0.35 * np.mean(losses[:10])
    with torch.no_grad():
        given = model.head.decode(model.head.prefill(model.prefix(batch)))
    assert (given - batch["actions"]).abs().mean() < 0.2


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_policy_acts_the_same(head: str, tmp_path) -> None:
    kind = "min_max" if head == "tokens" else "mean_std"
    model = made(head, crop_config=CropConfig(0.9), normalization=kind, prompt="robot take {instruction}")
    before = VLAPolicy(model).act([observation(3)]).values
    model.save_pretrained(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy", statistics="mine")
    np.testing.assert_array_equal(policy.act([observation(3)]).values, before)
    assert policy.model.to_dict() == model.to_dict() and policy.spec == SPEC
    with pytest.raises(ValueError, match="'other' are not known: choose one of 'mine'"):
        load_policy(tmp_path / "policy", statistics="other")


@pytest.mark.parametrize("head", ["parallel", "flow", "tokens"])
@pytest.mark.parametrize(
    "language",
    [
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
        {"model_type": "qwen3", **LLAMA, "head_dim": 8},
        {"model_type": "gpt_neox", **{k: v for k, v in LLAMA.items() if "key" not in k}},
    ],
    ids=lambda one: one["model_type"],
)
def test_heads_go_on_other_language_models(head: str, language: dict) -> None:
    policy = VLAPolicy(made(head, language=language))
    seen = [observation(1), observation(5, "open drawer")]
    alone = np.concatenate([policy.act([one]).values for one in seen])
    np.testing.assert_allclose(policy.act(seen).values, alone, rtol=1e-5, atol=1e-5)


def test_slots_see_each_other_and_the_prompt_does_not_see_them() -> None:
    model = made("parallel")
    prefix = model.prefix(ActionCollator(model)(windows(1)))
    length, count = prefix.mask.shape[1], 12

    def hidden(slots: torch.Tensor) -> torch.Tensor:
        whole = prefix.extended_with(slots[None])
        return whole.hidden(open_end(whole.mask, count))[0]

    slots = model.head.queries.detach()
    with torch.no_grad():
        changed = (hidden(torch.cat([slots[:-1], slots[-1:] + 1])) - hidden(slots)).abs().amax(-1)
    assert (changed[:length] == 0).all() and (changed[length:] > 1e-6).all()


def test_film_lets_the_instruction_change_what_is_seen(tmp_path) -> None:
    model, plain = made("parallel"), made("parallel")
    add_film(model.vlm.encoder, 32)
    seen, other = observation(1), dataclasses.replace(observation(1), instruction="open drawer")
    both, films = [seen, other], [part for name, part in model.vlm.encoder.named_parameters() if ".film." in name]
    np.testing.assert_array_equal(VLAPolicy(model).act(both).values, VLAPolicy(plain).act(both).values)  # zero at first
    model(inputs(model, seen)).backward()
    assert len(films) == 4 and films[0].grad.abs().max() > 0
    for part in films:
        torch.nn.init.normal_(part, std=0.5)
    with torch.no_grad():
        images = [model.prefix(inputs(model, one)).embeds[0, :8] for one in both]  # which come first
    assert (images[0] - images[1]).abs().max() > 1e-3
    policy = VLAPolicy(model)
    alone = np.concatenate([policy.act([one]).values for one in both])
    np.testing.assert_allclose(policy.act(both).values, alone, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "policy")
    np.testing.assert_array_equal(load_policy(tmp_path / "policy").act([seen]).values, alone[:1])
    with pytest.raises(ValueError, match="has FiLM of width 32 already"):
        add_film(model.vlm.encoder, 32)


def test_the_mean_word_steers_and_in_oft_the_end_token_counts() -> None:
    for style, tail in (("slots", []), ("openvla_oft", [2])):
        model = made("parallel")
        model.head = new_head("parallel", model.vlm, SPEC, style=style, end_id=2)
        batch = ActionCollator(model)(windows(2))  # the second prompt is shorter, and padded
        words = model.vlm.processor.tokenizer("In: What action should the robot take to open drawer?\nOut:")[
            "input_ids"
        ]
        wanted = model.vlm.get_input_embeddings()(torch.tensor(words + tail)).mean(0)
        found = model.film_condition(batch)
        torch.testing.assert_close(found[2:], wanted.expand(2, -1))  # of two cameras


def test_the_flow_ends_where_its_velocity_leads() -> None:
    """Of a velocity that is noise - a for a known a, ten Euler steps give a."""
    model = made("flow")
    target = torch.full((4, 3), 0.25)
    noise = model.head.draws([0], 4, 3)["noise"][0]
    model.head.velocity = lambda held, noisy, time: (noise - target).expand_as(noisy)
    prefix = model.prefix(ActionCollator(model)(windows(2)))
    with torch.no_grad():
        torch.testing.assert_close(model.head.decode(model.head.prefill(prefix)), target.expand(2, 4, 3))
    drawn = model.head.draws(range(4000), 4, 3)
    assert 0.001 <= drawn["time"].min() and drawn["time"].max() <= 1
    assert drawn["time"].mean().item() == pytest.approx(
        0.6 * 0.999 + 0.001, abs=0.01
    )  # the mean of Beta(1.5, 1) is 0.6


def test_the_language_model_learns_nothing_where_the_gradient_stops() -> None:
    for stop in (False, True):
        model = made("flow")
        model.head.stop_gradient = stop
        model(ActionCollator(model)(windows(2))).backward()
        words = model.vlm.language_model.get_decoder().layers[0].self_attn.k_proj.weight
        assert (words.grad is None) == stop
        assert model.head.action_out.weight.grad.abs().max() > 0


def test_the_middle_is_what_the_crops_are_in_the_mean() -> None:
    image = Image.fromarray(rng().integers(0, 256, (40, 60, 3), dtype=np.uint8))
    crop_config = CropConfig(0.81)
    assert crop_config.center(image).size == (54, 36) == crop_config.random(image, None, 3).size
    assert crop_config.center(image).tobytes() == image.crop((3, 2, 57, 38)).tobytes()
    assert crop_config.random(image, None, 3).tobytes() == crop_config.random(image, None, 3).tobytes()
    assert len({crop_config.random(image, None, seed).tobytes() for seed in range(20)}) > 10
    assert CropConfig(1.0).center(image) is image
    with pytest.raises(ValueError, match="expected a share of the image"):
        CropConfig(1.5)


def test_observations_that_cannot_be_used_are_refused_in_one_sentence() -> None:
    policy = VLAPolicy(made("parallel"))
    good = observation(0)
    cases = {
        r"cameras \['top'\], but this policy uses \['top', 'wrist'\]": {"images": {"top": good.images["top"]}},
        "camera top: ": {"images": {**good.images, "top": np.zeros((4, 4, 3), dtype=np.float32)}},
        "has no state, but this policy reads one of 2 numbers": {"state": None},
        r"the state has shape \(3,\)": {"state": np.zeros(3)},
        "expected finite numbers": {"state": np.array([0.0, np.nan])},
        "expected the task in words": {"instruction": "  "},
    }
    for sentence, change in cases.items():
        with pytest.raises(ValueError, match=sentence):
            policy.act([good, dataclasses.replace(good, **change)])
    with pytest.raises(ValueError, match="no observations"):
        policy.act([])


def test_numbers_that_tokens_cannot_say_are_refused() -> None:
    with pytest.raises(
        ValueError, match="tokens head predicts numbers from -1 to 1, but normalization 'mean_std' exceeds them"
    ):
        made("tokens", normalization="mean_std")
    for head in ("tokens", "parallel"):
        model = made(head)
        mine = model.statistics["mine"]
        raw = mine | {"action": dataclasses.replace(mine["action"], mask=np.array([True, False, True]))}
        model.statistics = {"mine": raw}
        collate, (window, seed) = ActionCollator(model), windows(1)[0]
        within, beyond = (
            dataclasses.replace(window, actions=np.tile([9.0, value, 9.0], (4, 1))) for value in (-1.0, 1.5)
        )
        assert collate([(within, seed)])["actions"].abs().max() == 1
        if head == "tokens":
            with pytest.raises(
                ValueError, match="number 1 of an action is not normalized and reaches 1.5, but the tokens"
            ):
                collate([(beyond, seed)])
        else:
            assert collate([(beyond, seed)])["actions"].abs().max() == 1.5


def test_parts_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        ValueError, match="action head 'diffusion' does not exist: choose one of tokens, parallel, flow"
    ):
        VisionLanguageActionModel.attach(made("flow").vlm, "diffusion", spec=SPEC, statistics={})
    with pytest.raises(ValueError, match="action head 'parallel' has no"):
        VisionLanguageActionModel.attach(
            made("flow").vlm, "parallel", spec=SPEC, statistics={}, head_options={"colour": 1}
        )
    with pytest.raises(ValueError, match="3 numbers here and 4 in the statistics"):
        wrong = {"mine": {"action": Statistics.of(rng().normal(size=(9, 4)))}}
        VisionLanguageActionModel.attach(
            made("flow").vlm, "flow", spec=SPEC, statistics=wrong, head_options=HEADS["flow"]
        )
    with pytest.raises(ValueError, match="instruction.* once"):
        made("parallel", prompt="do it")
    with pytest.raises(ValueError, match="has no policy.json"):
        load_policy("tests")


def test_a_damaged_policy_is_refused(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    made("parallel").save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "action_head.safetensors"
    held = load_file(path)
    save_file({name: value for name, value in held.items() if name != "head.fc2.bias"}, path)
    with pytest.raises(ValueError, match="does not fit policy.json.*fc2.bias"):
        load_policy(tmp_path / "policy")
    save_file(held | {"head.extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not fit policy.json.*extra"):
        load_policy(tmp_path / "policy")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="action_head.safetensors is not a complete safetensors file"):
        load_policy(tmp_path / "policy")
    path.unlink()
    with pytest.raises(ValueError, match="has a policy.json but no action_head.safetensors: download the whole folder"):
        load_policy(tmp_path / "policy")
