"""Files that would load as another model, or that are damaged without being cut short."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from support.bare_states import bare
from support.golden import golden_case
from support.models import make_image

import vlm_vision as vv
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.preprocess.spec import IMAGENET

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "mean", "edge"),
    [("vit_tiny_patch16_224", HALF, 35), ("deit_tiny_patch16_224", IMAGENET[0], 35), ("vit_tiny_patch16_224.dino", IMAGENET[0], 35)],
)  # fmt: skip
def test_an_architecture_brings_its_own_preprocessing(tmp_path, name, mean, edge):
    _, state = bare(embed_dim=192, num_heads=3, num_classes=5)
    torch.save(state, tmp_path / "vit.pth")
    spec = vv.load(tmp_path / "vit.pth", architecture=name).preprocess
    assert spec.mean == mean and spec.crop == (32, 32) and spec.resize_to == (edge, edge)  # 32 / 0.9


def test_both_names_of_an_open_clip_siglip_load(tmp_path):
    from vlm_vision.checkpoints.open_clip.reader import _timm_name

    names = {
        "ViT-B-16-SigLIP": "vit_base_patch16_siglip_224", "ViT-B-16-SigLIP-i18n-256": "vit_base_patch16_siglip_256",
        "ViT-SO400M-14-SigLIP-384": "vit_so400m_patch14_siglip_384", "ViT-L-16-SigLIP2-512": "vit_large_patch16_siglip_512",
        "vit_base_patch16_siglip_224": "vit_base_patch16_siglip_224", "ViT-B-32": "ViT-B-32",
    }  # fmt: skip
    assert {name: _timm_name(name) for name in names} == names


def training_checkpoint(folder, name: str = "epoch_3.pt") -> dict[str, torch.Tensor]:
    """A folder as open_clip's own training leaves it."""
    state = state_of_open_clip()
    wrapped = {"epoch": 3, "name": "run", "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(wrapped | {"optimizer": {"state": {0: {"step": torch.zeros(())}}}}, folder / name)
    shutil.copy(golden_case("open_clip_quickgelu") / "open_clip_config.json", folder)
    return state


def state_of_open_clip() -> dict[str, torch.Tensor]:
    files = WeightFiles(golden_case("open_clip_quickgelu"))
    return {name: files.get(name) for name in files.shapes}


def test_a_checkpoint_of_open_clips_training_loads_as_folder_and_as_file(tmp_path):
    training_checkpoint(tmp_path)
    pixels = torch.randn(1, 3, *vv.load(golden_case("open_clip_quickgelu")).config.image_size)
    wanted = vv.load(golden_case("open_clip_quickgelu"))(pixels).patch_tokens
    for source in (tmp_path, tmp_path / "epoch_3.pt"):
        loaded = vv.load(source)
        assert torch.equal(loaded(pixels).patch_tokens, wanted)
        assert loaded.preprocess == vv.load(golden_case("open_clip_quickgelu")).preprocess
    training_checkpoint(tmp_path, "epoch_4.pt")
    with pytest.raises(ValueError, match="holds epoch_3.pt, epoch_4.pt: pass the path of one of them"):
        vv.load(tmp_path)


def grid_of(rows: int, columns: int, path) -> torch.Tensor:
    """Write a DINO-like file with a table of that grid. Returns the table."""
    model, state = bare(embed_dim=64, num_heads=1, image_size=(rows * 16, columns * 16))
    torch.save(state, path)
    return model.position.table.detach()


def test_a_table_that_is_not_square_needs_its_size(tmp_path):
    path = tmp_path / "dino.pth"
    table = grid_of(4, 8, path)
    with pytest.raises(ValueError, match=r"33 rows, expected a square grid .* pass image_size=\(height, width\)"):
        vv.load(path)
    loaded = vv.load(path, image_size=(64, 128))
    assert loaded.config.image_size == (64, 128) and torch.equal(loaded.model.position.table, table)
    assert loaded.preprocess(make_image(0, 90, 200)).shape == (1, 3, 64, 128)
    grid_of(4, 16, path)
    with pytest.raises(ValueError, match="of 8x8 patches, or of 4x16 as image_size asks for"):
        vv.load(path, image_size=(64, 256))
    assert vv.load(path).config.image_size == (128, 128)
    assert vv.load(path, image_size=(160, 256)).config.image_size == (128, 128)


@pytest.mark.parametrize(
    "name",
    [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.bias",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn.proj.bias",
        "norm.weight",
    ],
)
def test_a_weight_that_every_file_of_the_family_has_is_missed(tmp_path, name):
    _, state = bare(embed_dim=64, num_heads=1)
    del state[name]
    torch.save(state, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match="lacks|which this architecture does not have|timm's layout"):
        vv.load(tmp_path / "dino.pth")


def packed(path, *, compression: int, damage: bool = False) -> None:
    """The archive of a file with its members compressed, or with one byte of a tensor changed."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    data = bytearray(out.getvalue())
    if damage:
        longest = max(members.values(), key=len)
        data[data.index(longest[:64]) + len(longest) // 2] ^= 1
    path.write_bytes(data)


def test_compressed_members_are_not_mapped(tmp_path):
    _, state = bare(embed_dim=64, num_heads=1)
    path = tmp_path / "dino.pth"
    torch.save(state, path)
    pixels = torch.randn(1, 3, 32, 32)
    wanted = vv.load(path)(pixels).patch_tokens.clone()
    packed(path, compression=zipfile.ZIP_DEFLATED)
    assert torch.equal(vv.load(path)(pixels).patch_tokens, wanted)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    _, state = bare(embed_dim=64, num_heads=1)
    torch.save(state, tmp_path / "dino.pth")
    packed(tmp_path / "dino.pth", compression=zipfile.ZIP_STORED, damage=True)
    with pytest.raises(ValueError, match="the checksum of its member .* differs: it is damaged"):
        vv.load(tmp_path / "dino.pth")


def test_a_file_that_unpacks_to_much_more_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(32 * 2**20)}, tmp_path / "x.pth")
    packed(tmp_path / "x.pth", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="it unpacks to more than 20 times its size"):
        WeightFiles(tmp_path / "x.pth")


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    state: dict = {"a.weight": torch.ones(2)}
    for i in range(200):
        state[str(i)] = state
    torch.save(state, tmp_path / "x.pth")
    assert list(WeightFiles(tmp_path / "x.pth").shapes) == ["a.weight"]
    assert np.isfinite(WeightFiles(tmp_path / "x.pth").get("a.weight").numpy()).all()
