"""The command `vlm-vision`."""

import json

import pytest
import torch
from support.golden import golden_case
from support.models import make_image, tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.cli.main import main
from vlm_vision.data.conversations.json_file import llava_json
from vlm_vision.measure.image_use import image_use


def test_models_lists_every_preset_with_its_size(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "dinov2_large" in out and "304.4 M" in out and "siglip_so400m_patch14_384" in out


def test_ask_answers_from_a_saved_folder(vlm, tmp_path, capsys):
    vlm.save_pretrained(tmp_path / "model")
    make_image().save(tmp_path / "a.png")
    assert (
        main(
            [
                "ask",
                str(tmp_path / "a.png"),
                "what color ?",
                "--model",
                str(tmp_path / "model"),
                "--max-new-tokens",
                "4",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.strip() == vlm.answer(make_image(), "what color ?", max_new_tokens=4)


@pytest.fixture
def talk(tmp_path):
    """Four images and a question about each, in LLaVA's format."""
    for i in range(4):
        make_image(i).save(tmp_path / f"{i}.png")
    turns = [{"from": "human", "value": "<image>\nwhat color ?"}, {"from": "gpt", "value": "red"}]
    records = [{"image": f"{i}.png", "conversations": turns} for i in range(4)]
    (tmp_path / "talk.json").write_text(json.dumps(records))
    (tmp_path / "one.json").write_text(json.dumps(records[:1]))
    return tmp_path / "talk.json"


def test_diagnose_prints_what_the_library_finds(vlm, talk, tmp_path, capsys):
    vlm.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--data", str(talk), "--images", str(tmp_path), "--limit", "3"]
    assert main(["diagnose", *arguments, "--batch-size", "2"]) == 0
    found = image_use(vlm, llava_json(talk, tmp_path)[:3], batch_size=2)
    assert found.right.answers == 3
    assert capsys.readouterr().out.strip() == f"{found.table()}\n{found.warning or 'The model uses its images.'}"


@torch.no_grad()
def test_tokens_are_those_of_the_encoder_with_grid_and_tap(tmp_path):
    source = golden_case("hf_siglip")
    for i in range(3):
        make_image(i).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    arguments = [
        "tokens",
        *paths,
        "--encoder",
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--layer",
        "-2",
        "--no-norm",
    ]
    assert main([*arguments, "--batch-size", "2"]) == 0
    store = vv.TokenStore(tmp_path / "out")
    encoder = vv.load(source, tap=vv.Tap(-2, norm=False))
    assert store.about["preprocess_fingerprint"] == encoder.preprocess.fingerprint
    assert store.keys() == ["0.png", "1.png", "2.png"]
    for path, row in zip(paths, store, strict=True):
        out = encoder(encoder.preprocess(path))
        assert row.grid == out.grid
        torch.testing.assert_close(row.patch_tokens, out.patch_tokens[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "none.png", "what?", "--model", "{model}"], "'none.png' does not exist"),
        (["ask", "{text}", "what?", "--model", "{model}"], "is not an image"),
        (["ask", "{image}", "what?", "--model", "{tmp}"], "has no config.json"),
        (["ask", "{image}", "what?", "--model", "nothing"], "there is no folder nothing"),
        (["ask", "{image}", "what?", "--model", "{golden}"], "holds a siglip model"),
        (["tokens", "{image}", "--encoder", "nothing", "--out", "{tmp}/o"], "there is no folder nothing"),
        (["tokens", "none.png", "--encoder", "{golden}", "--out", "{tmp}/o"], "none.png"),
        (["tokens", "{image}", "--encoder", "{golden}", "--out", "{image}"], "a.png is a file: choose a folder"),
        (["tokens", "{tmp}", "--encoder", "{golden}", "--out", "{tmp}/o", "--every", "2"], "every"),
        (["store", "stats", "{tmp}"], "has no store.json: expected a token store"),
        (["store", "merge", "{tmp}", "--out", "{tmp}/o"], "1 store was passed: expected two or more"),
        (["tokens", "{image}", "--encoder", "{golden}", "--out", "{tmp}/o", "--layer", "9"], "outside this encoder"),
        (["tokens", "{image}", "--encoder", "{golden}", "--out", "{text}"], "a.txt is a file: choose a folder"),
        (["tokens", "{image}", "--encoder", "{model}", "--out", "{tmp}/o"], "pass the .encoder of VisionLanguageModel"),
        (["convert", "{model}", "{tmp}/o", "--to", "hf"], "pass the .encoder of VisionLanguageModel"),
        (["diagnose", "--model", "{model}", "--data", "none.json", "--images", "{tmp}"], "there is no file none.json"),
        (["diagnose", "--model", "{tmp}", "--data", "{talk}", "--images", "{tmp}"], "has no config.json"),
        (["diagnose", "--model", "{model}", "--data", "{talk}", "--images", "{golden}"], "0.png' does not exist"),
        (["diagnose", "--model", "{model}", "--data", "{one}", "--images", "{tmp}"], "no two different images"),
        (["diagnose", "--model", "{model}", "--data", "{talk}", "--images", "{tmp}", "--limit", "-1"], "--limit is -1"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(vlm, talk, tmp_path, capsys, arguments, says):
    vlm.save_pretrained(tmp_path / "model")
    make_image().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("no image")
    names = dict(
        model=tmp_path / "model", text=tmp_path / "a.txt", image=tmp_path / "a.png", tmp=tmp_path,
        golden=golden_case("hf_siglip"), talk=talk, one=tmp_path / "one.json",
    )  # fmt: skip
    capsys.readouterr()
    assert main([one.format(**names) for one in arguments]) == 2
    errors = [
        line for line in capsys.readouterr().err.strip().splitlines() if line.strip() and "%|" not in line
    ]  # progress bars
    assert len(errors) == 1 and says in errors[0]
    assert not (tmp_path / "o").exists()


def test_tokens_takes_a_side_for_each_tower(tmp_path):
    source, image = str(golden_case("hf_siglip")), str(tmp_path / "a.png")
    make_image().save(image)
    small, large = 2 * vv.load(source).config.patch_size, 4 * vv.load(source).config.patch_size
    for encoder, sides, rows in ((source, [large], 4), (f"{source} + {source}", [small, small], 2)):
        out = tmp_path / str(len(sides))
        arguments = ["tokens", image, "--encoder", encoder, "--out", str(out), "--image-size", *map(str, sides)]
        assert main(arguments) == 0
        assert vv.TokenStore(out)[0].grid == (rows, rows)


def test_convert_writes_another_format_and_reads_it_back(tmp_path, capsys):
    assert main(["convert", str(golden_case("timm_dinov2_reg4")), str(tmp_path / "b"), "--to", "timm"]) == 0
    assert "equal to the bit" in capsys.readouterr().out
    assert main(["convert", str(golden_case("dinov2_pth") / "model.pth"), str(tmp_path / "a"), "--to", "hf"]) == 0
    assert "crop_rounding 'half_even'" in capsys.readouterr().err  # which transformers' file cannot say
    assert vv.load(tmp_path / "a").preprocess == vv.load(golden_case("dinov2_pth") / "model.pth").preprocess


def test_convert_says_what_a_format_cannot_express_and_writes_nothing(tmp_path, capsys):
    assert main(["convert", str(golden_case("hf_vit_cls")), str(tmp_path / "out"), "--to", "timm"]) == 2
    assert "norm_eps 1e-12 would become 1e-06" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_convert_writes_a_whole_model_for_llava(tmp_path, capsys):
    tower = vv.load(golden_case("hf_clip_quickgelu"), tap=vv.Tap(-2, norm=False))
    vlm = vv.VisionLanguageModel.attach(tower, tiny_llm("llama"), tokenizer=tiny_tokenizer())
    vlm.save_pretrained(tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "llava"), "--to", "llava"]) == 0
    assert "the same inputs and logits" in capsys.readouterr().out
    make_image().save(tmp_path / "a.png")
    for folder in ("model", "llava"):
        assert main(["ask", str(tmp_path / "a.png"), "what ?", "--model", str(tmp_path / folder)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == told[1]
