"""Model cards: the Python block of every kind of folder loads it, and no card says where the machine keeps its files."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from support.golden import golden_case
from support.models import tiny_llm, tiny_tokenizer
from support.policies import SPEC, made
from support.recipe_records.bench import RECIPES
from support.tiny_vlm import join

import vlm_vision as vv
from vlm_vision.checkpoints.hf.card import record_training
from vlm_vision.cli.main import main
from vlm_vision.files import is_own_card, whole
from vlm_vision.mae import DecoderConfig, new_mae
from vlm_vision.robot.observation import Observation
from vlm_vision.train.adapters import save_adapter
from vlm_vision.train.results import public_name
from vlm_vision.train.trainable import set_trainable

IMAGE = Image.linear_gradient("L").convert("RGB")
BEFORE_NORM = vv.Tap(-2, norm=False)
MINE = "# My model\n\nWritten by hand.\n"


def card(folder: Path) -> str:
    """README.md, which is a card with a YAML head that the hub reads, and names no path."""
    path = folder / "README.md"
    text = path.read_text()
    assert is_own_card(path) and ModelCard(text).data.pipeline_tag
    assert str(folder) not in text and str(Path.cwd()) not in text and str(Path.home()) + "/" not in text
    assert not re.search(r"(?<![\w.*/<>])(/[\w.-]+){2,}", text), "an absolute path"
    return text


def block(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card(folder), flags=re.DOTALL)
    return code


def run(folder: Path, monkeypatch, **replaced: str) -> dict:
    """The names that the block of a card leaves, run in its folder."""
    code, names = block(folder), {}
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(folder)
    with torch.no_grad():
        exec(code, names)
    return names


def alone(folder: Path, before: str, after: str) -> str:
    """What the block prints in a process of its own, with code before and after it."""
    code = f"{before}\n{block(folder)}\n{after}"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(vv.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_logits(vlm: vv.VisionLanguageModel, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return vlm(**vlm.processor(text=[prompt], images=[IMAGE], return_tensors="pt")).logits


@pytest.mark.parametrize("format", ["hf", "timm"])
@torch.no_grad()
def test_the_card_of_an_encoder_loads_it(tmp_path, monkeypatch, format):
    encoder = vv.load("mini", tap=BEFORE_NORM)
    encoder.save_pretrained(tmp_path, format=format)
    out = run(tmp_path, monkeypatch)["out"]
    assert torch.equal(out.patch_tokens, encoder(encoder.preprocess(IMAGE)).patch_tokens)
    text = card(tmp_path)
    assert "patches of 8 px, native image size 64 x 64, tokens of block -2 before the final norm; 3.16 M" in text
    assert "resize squash to 64 x 64, bicubic; no crop; mean (0.5, 0.5, 0.5)" in text and "image backend PIL" in text
    assert "library_name: vlm_vision" in text and f"- {'transformers' if format == 'hf' else 'timm'}\n" in text
    assert "Not stated." in text and "base_model" not in text


@torch.no_grad()
def test_the_cards_of_fused_encoders_pairs_and_autoencoders_load_them(tmp_path, monkeypatch):
    fused = vv.load("mini + mini")
    fused.save_pretrained(tmp_path / "fused")
    seen = run(tmp_path / "fused", monkeypatch)["out"].patch_tokens
    assert torch.equal(seen, fused(fused.preprocess(IMAGE)).patch_tokens)
    pair = vv.load_pair("mini")
    pair.save_pretrained(tmp_path / "pair")
    scores = run(tmp_path / "pair", monkeypatch)["scores"]
    assert torch.equal(scores, pair.similarity(IMAGE, ["a cat", "a drawing"]))
    fields = dict(image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, mlp_dim=64)
    mae = new_mae(fields, DecoderConfig(embed_dim=16, depth=1, num_heads=2, mlp_dim=32)).eval()
    mae.save_pretrained(tmp_path / "mae")
    names = run(tmp_path / "mae", monkeypatch)
    painted = mae(mae.encoder.preprocess(IMAGE), names["noise"]).predicted
    assert torch.equal(names["out"].predicted, painted) and "decoder of depth 1 and width 16" in card(tmp_path / "mae")


@torch.no_grad()
def test_a_pair_without_a_tokenizer_has_a_block_that_runs(tmp_path, monkeypatch):
    pair = vv.load_pair(golden_case("hf_clip_quickgelu"))
    pair.save_pretrained(tmp_path)
    scores = run(tmp_path, monkeypatch)["scores"]
    assert torch.equal(scores, pair.embed_images(pair.image.preprocess(IMAGE)))


def test_the_card_of_a_vlm_loads_it_in_a_new_process(tmp_path):
    vlm = join()
    vlm.save_pretrained(tmp_path)
    answer = vlm.answer(IMAGE, "What is this?", max_new_tokens=20)
    out = alone(tmp_path, "", "logits = model(**batch).logits; print(logits.sum().item())")
    *_, answered, total = out.strip("\n").split("\n")
    assert answered.strip() == answer and answer
    assert float(total) == pytest.approx(first_logits(vlm, "<image> What is this?").sum().item(), abs=1e-4)
    assert "projector mlp; image layout whole; language model llama" in card(tmp_path)


def test_a_vlm_without_processor_has_a_block_that_runs(tmp_path, monkeypatch):
    vlm = join()
    vlm.processor = None
    vlm.save_pretrained(tmp_path)
    loaded = run(tmp_path, monkeypatch)["model"].state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in vlm.state_dict().items())


@pytest.mark.parametrize("head", ["parallel", "tokens"])
def test_the_card_of_a_policy_loads_it(tmp_path, monkeypatch, head):
    model = made(head)
    model.save_pretrained(tmp_path)
    names = run(tmp_path, monkeypatch)
    seen = Observation(dict.fromkeys(SPEC.cameras, IMAGE), "push the button", state=names["np"].zeros(2))
    expected = vv.load_policy(tmp_path).act([seen]).values
    assert (names["actions"] == expected).all() and names["actions"].shape == (1, SPEC.chunk, SPEC.action_dim)
    text = card(tmp_path)
    assert "pipeline_tag: robotics" in text and "# Robot policy: vit and llama" in text
    assert f"Action head {head}, 4 actions of dimension 3 in one call; cameras top, wrist; state of dimension 2" in text


@torch.no_grad()
def test_the_card_of_adapters_loads_them_on_their_base(tmp_path, monkeypatch):
    base = join()
    base.save_pretrained(tmp_path / "base")
    wrapped = set_trainable(base, vision="frozen", projector="full", language="lora", lora_rank=2).eval()
    with torch.no_grad():
        for weight in wrapped.parameters():
            weight.add_(weight.requires_grad * torch.randn_like(weight))
    save_adapter(wrapped, tmp_path / "adapter")
    names = run(tmp_path / "adapter", monkeypatch, BASE=str(tmp_path / "base"))
    assert torch.equal(first_logits(names["base"], "<image> what"), first_logits(base, "<image> what"))
    text = card(tmp_path / "adapter")
    assert "Trained: language by LoRA, projector in full. Fingerprint" in text and "- peft\n" in text


def exported(tower: str) -> vv.VisionLanguageModel:
    encoder = vv.load(golden_case(tower), tap=BEFORE_NORM)
    side = encoder.config.image_size
    encoder.preprocess = vv.Preprocess.from_dict(
        encoder.preprocess.to_dict() | {"resize": "squash", "resize_to": list(side), "crop": None}
    )
    return vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer())


def test_the_card_of_a_llava_loads_it_without_this_library(tmp_path):
    vlm = exported("hf_siglip")
    vlm.save_pretrained(tmp_path / "ours")
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "llava"), "--to", "llava"])
    out = alone(
        tmp_path / "llava",
        "import sys; sys.modules['vlm_vision'] = None",
        "print(model(**batch).logits.sum().item())",
    )
    expected = first_logits(vlm, "<image> What is in the image?").sum().item()
    assert float(out.strip().split("\n")[-1]) == pytest.approx(expected, abs=1e-3)
    assert "library_name: transformers" in card(tmp_path / "llava")


def test_the_card_of_a_prismatic_loads_it(tmp_path, monkeypatch):
    vlm = exported("hf_siglip")
    vv.export(vlm, "prismatic", tmp_path)
    names = run(tmp_path, monkeypatch)
    with torch.no_grad():
        logits = names["model"](**names["batch"]).logits
    assert torch.allclose(logits, first_logits(vlm, "<image>What is in the image?"), atol=1e-4)


def test_a_readme_of_the_user_is_kept_and_a_card_is_replaced(tmp_path):
    encoder, vlm = vv.load("mini"), join()
    for save in (encoder.save_pretrained, vlm.save_pretrained, vv.load_pair("mini").save_pretrained):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        save(folder)
        readme = folder / "README.md"
        ours = readme.read_text()
        readme.write_text(ours.replace("# V", "# Changed: V").replace("# I", "# Changed: I"))
        save(folder)
        assert readme.read_text() == ours
        for mine in (MINE, "---\nlicense: mit\n---\n" + MINE, ours.replace("<!-- written by", "<!-- begun by"), ""):
            readme.write_text(mine)
            save(folder)
            with whole(folder) as staging:  # as the recipes do
                save(staging)
            record_training(folder, {"data": "x"}, {"accuracy": 1.0})
            assert readme.read_text() == mine


def test_a_card_changes_nothing_that_is_loaded(tmp_path):
    vlm = join()
    vlm.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(b"\xff\xfe no text")
    again = vv.VisionLanguageModel.from_pretrained(tmp_path)
    assert torch.equal(first_logits(again, "<image> what"), first_logits(vlm, "<image> what"))
    again.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"\xff\xfe no text"


def test_hub_ids_become_base_models_and_folders_do_not(tmp_path, monkeypatch):
    vlm = join()
    vlm.encoder.hub_id = "google/siglip-base-patch16-224"
    vlm.language_model.config._name_or_path, vlm.config.text_config._commit_hash = "me/llama", "a" * 40
    vlm.save_pretrained(tmp_path / "vlm")
    assert ModelCard(card(tmp_path / "vlm")).data.base_model == ["google/siglip-base-patch16-224", "me/llama"]
    monkeypatch.chdir(tmp_path)
    vlm.config.text_config._name_or_path, vlm.encoder.hub_id = "runs/llama", ""
    Path("runs/llama").mkdir(parents=True)
    vlm.save_pretrained("vlm")
    assert "base_model" not in card(tmp_path / "vlm")
    vv.load("mini").save_pretrained("runs/tower")
    loaded = vv.load("runs/tower")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "runs/tower"))
    assert (loaded.hub_id, vv.load("me/tower").hub_id) == ("", "me/tower")


@pytest.mark.parametrize("theirs", [None, MINE])
def test_the_hub_gets_the_card_unless_it_has_one_that_someone_wrote(monkeypatch, theirs):
    sent: list[str] = []

    def commit(self, *, operations, **_):
        sent.extend(Path(one.path_or_fileobj).read_text() for one in operations if one.path_in_repo == "README.md")

    def load(repo_id, **_):
        if theirs is None:
            raise EntryNotFoundError("none")
        return ModelCard(theirs)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(ModelCard, "load", load)
    join().push_to_hub("me/tiny", tags=["robots"])
    (text,) = sent
    assert "robots" in ModelCard(text).data.tags
    assert ("# Vision-language model: vit and llama" in text) == (theirs is None) == ("# My model" not in text)


FIGURES = {"mae": "eval_loss", "vqa": "accuracy", "vla": "action_error/right", "supervised": "test/last/top1"}
DATA = {"vla": "mine (data)", "vqa": "train.json", "align": "captions.json", "supervised": "classes.csv"}
DATA |= {"contrastive": "pairs.csv"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_card_of_a_run_has_its_data_steps_and_figures(tmp_path, monkeypatch, recipe):
    laws = RECIPES[recipe]
    laws.recipe.prepare(tmp_path)
    if laws.first is not None:
        laws.first(tmp_path)
    metrics = laws.recipe.train(tmp_path, "run", "--seed", "7")
    text = card(tmp_path / "run" / "model")
    assert str(tmp_path) not in text and tmp_path.name not in text
    assert f"- recipe: `vlm-vision train {recipe}`\n- data: {DATA.get(recipe, 'train.csv')}\n- " in text
    assert re.search(rf"^- steps: {laws.steps}, each of \d+ samples\n- seed: 7$", text, flags=re.MULTILINE)
    name, value = FIGURES.get(recipe, "final_loss"), metrics
    for part in name.split("/") if recipe == "supervised" else [name]:
        value = value[part]
    assert f"\n| {name} | {value:.4g} |\n" in text and "seconds |" not in text and "skipped" not in text
    assert run(tmp_path / "run" / "model", monkeypatch)
    assert ("- other models: wide, map\n" in text) == (recipe == "distill")
    if recipe == "vqa":
        assert f"| {name} | {value:.4g} |" in card(tmp_path / "run" / "adapter")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("easy_vqa", "easy_vqa"),
        ("hf:owner/name", "hf:owner/name"),
        ("google/siglip-base-patch16-224", "google/siglip-base-patch16-224"),
        ("/data/someone/train.json", "train.json"),
        ("../someone/train/", "train"),
        ("C:\\data\\train.csv", "train.csv"),
        ("https://me:secret@host/x/{0000..0009}.tar?token=secret", "{0000..0009}.tar"),
        ("mini + /data/towers/dino", "mini + dino"),
        ("runs/align/model", "model of the run align"),
        ("/", "a local folder"),
    ],
)
def test_names_of_sources_have_no_path(source, name):
    assert public_name(source) == name
