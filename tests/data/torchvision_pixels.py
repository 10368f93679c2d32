"""Writes torchvision_pixels.npz: pixels of transformers' torchvision image processors on seeded images.

Made with transformers 5.24.0, torch 2.13.0 and torchvision 0.28.0, on a processor with AVX2 or AVX512:

    python tests/data/torchvision_pixels.py tests/data/torchvision_pixels.npz

Each array is float32 (3, H, W), every 20th row and column of Aria's, by "class/options/height x width"; "described" is JSON, the class's file for each "class/options".
"""

import json
import sys
import zipfile
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

SHAPES = ((40, 40), (24, 90), (97, 31), (5, 7), (133, 150))

SQUARE = {"height": 26, "width": 26}
MEAN = [0.48145466, 0.4578275, 0.40821073]
CROPPED = dict(size={"shortest_edge": 40}, crop_size=33)
SHORTER = dict(size={"shortest_edge": 21}, crop_size={"height": 33, "width": 28})
AREA = dict(patch_size=4, merge_size=2, size={"shortest_edge": 600, "longest_edge": 1500})
FRAMES = dict(patch_size=4, merge_size=2, size={"shortest_edge": 1200, "longest_edge": 3000})

CASES: list[tuple[str, dict[str, Any]]] = [
    ("AriaImageProcessor", dict(max_image_size=490, min_image_size=336)),
    ("BitImageProcessor", CROPPED),
    ("BlipImageProcessor", dict(size=SQUARE)),
    ("BridgeTowerImageProcessor", dict(size={"shortest_edge": 40}, size_divisor=8, do_center_crop=False)),
    ("BridgeTowerImageProcessor", dict(size={"shortest_edge": 40}, size_divisor=8, crop_size={"shortest_edge": 36})),
    ("BridgeTowerImageProcessor", dict(size={"shortest_edge": 40}, size_divisor=8, crop_size={"shortest_edge": 45})),
    ("CLIPImageProcessor", CROPPED),
    ("CLIPImageProcessor", SHORTER),
    ("CLIPImageProcessor", dict(size=SQUARE, do_center_crop=False)),
    ("CLIPImageProcessor", dict(size=SQUARE, do_center_crop=False, resample=1)),
    ("CLIPImageProcessor", dict(size=SQUARE, do_center_crop=False, resample=2, do_normalize=False)),
    ("CLIPImageProcessor", dict(size=SQUARE, do_center_crop=False, resample=0)),
    ("CLIPImageProcessor", dict(do_resize=False, crop_size={"height": 33, "width": 28})),
    ("ChineseCLIPImageProcessor", CROPPED),
    ("Cohere2VisionImageProcessor", dict(size=SQUARE, crop_to_patches=False)),
    ("DINOv3ViTImageProcessor", dict(size=SQUARE)),
    ("CohereCompassImageProcessor", AREA),
    ("Cosmos3EdgeImageProcessor", FRAMES),
    ("DeepseekVLHybridImageProcessor", dict(size=SQUARE, high_res_size={"height": 40, "width": 40}, min_size=14, image_mean=MEAN)),
    ("DeepseekVLImageProcessor", dict(size=SQUARE, min_size=14, image_mean=MEAN)),
    ("DeiTImageProcessor", dict(size={"height": 40, "width": 40}, crop_size=33)),
    ("Ernie4_5_VLMoeImageProcessor", AREA),
    ("Gemma3ImageProcessor", dict(size=SQUARE)),
    ("Gemma4ImageProcessor", dict(patch_size=2, max_soft_tokens=70, pooling_kernel_size=2)),
    ("Glm46VImageProcessor", FRAMES),
    ("Glm4vImageProcessor", FRAMES),
    ("GlmImageImageProcessor", AREA),
    ("Glm5NextImageProcessor", dict(patch_size=4, merge_size=2, min_image_tokens=10, max_image_tokens=20)),
    ("GlmgaImageProcessor", FRAMES),
    ("GraniteDoclingImageProcessor", dict(size=SQUARE, crop_to_patches=False)),
    ("HYV4VLImageProcessor", AREA),
    ("HunYuanVLImageProcessor", AREA),
    ("GotOcr2ImageProcessor", dict(size=SQUARE)),
    ("Idefics2ImageProcessor", dict(size={"shortest_edge": 20, "longest_edge": 50})),
    ("Idefics3ImageProcessor", dict(size={"longest_edge": 26}, max_image_size={"longest_edge": 26}, do_image_splitting=False)),
    ("IdeficsImageProcessor", dict(image_size=26)),
    ("JanusImageProcessor", dict(size=SQUARE, min_size=14, image_mean=MEAN)),
    ("Kimi_K25ImageProcessor", dict(patch_size=4, merge_size=2, max_patches=60, size={"max_height": 20, "max_width": 20})),
    ("Kosmos2_5ImageProcessor", dict(patch_size={"height": 4, "width": 4}, max_patches=50)),
    ("Lfm2VlImageProcessor", dict(
        encoder_patch_size=4, downsample_factor=2, min_image_tokens=10, max_image_tokens=20, do_image_splitting=False,
    )),
    ("LlavaNextImageProcessor", CROPPED | dict(image_grid_pinpoints=[[40, 40]])),
    ("LlavaOnevisionImageProcessor", dict(size=SQUARE, image_grid_pinpoints=[[26, 26]])),
    ("MiniCPMOcrImageProcessor", dict(patch_size=4, scale_resolution=36, max_slice_nums=1, slice_mode=False)),
    ("MiniCPMV4_6ImageProcessor", dict(patch_size=4, scale_resolution=36, max_slice_nums=1, slice_mode=False)),
    ("MiniMaxM3VLImageProcessor", AREA),
    ("Molmo2ImageProcessor", dict(size=SQUARE, max_crops=1, patch_size=2)),
    ("MuseGlimmerImageProcessor", dict(patch_size=4, merge_size=2, max_image_tokens=20)),
    ("NemotronH_Omni_Reasoning_V3ImageProcessor", dict(patch_size=4, min_num_patches=20, max_num_patches=80)),
    ("Ovis2ImageProcessor", dict(size=SQUARE)),
    ("OwlViTImageProcessor", dict(size=SQUARE)),
    ("Owlv2ImageProcessor", dict(size=SQUARE)),
    ("Owlv2ImageProcessor", dict(size=SQUARE, do_pad=False)),
    ("PI0ImageProcessor", dict(size={"max_height": 26, "max_width": 26}, pad_size=SQUARE)),
    ("PPChart2TableImageProcessor", dict(size=SQUARE)),
    ("PaddleOCRVLImageProcessor", AREA),
    ("Phi4MultimodalImageProcessor", dict(size=SQUARE, dynamic_hd=1)),
    ("Pix2StructImageProcessor", dict(patch_size={"height": 4, "width": 4}, max_patches=50)),
    ("PixtralImageProcessor", dict(size={"longest_edge": 48}, patch_size=8)),
    ("Qwen2VLImageProcessor", AREA),
    ("Sam3ImageProcessor", dict(size=SQUARE)),
    ("SamImageProcessor", dict(size={"longest_edge": 40}, pad_size={"height": 40, "width": 40})),
    ("Siglip2ImageProcessor", dict(patch_size=4, max_num_patches=90)),
    ("SiglipImageProcessor", dict(size=SQUARE)),
    ("Step3p7ImageProcessor", dict(size=SQUARE)),
    ("Tipsv2ImageProcessor", dict(size=SQUARE)),
    ("UltraVBertImageProcessor", dict(size={"longest_edge": 26}, max_image_size={"longest_edge": 26}, do_image_splitting=False)),
    ("SmolVLMImageProcessor", dict(size={"longest_edge": 26}, max_image_size={"longest_edge": 26}, do_image_splitting=False)),
    ("ViTImageProcessor", dict(size=SQUARE)),
    ("VideoLlama3ImageProcessor", AREA),
]  # fmt: skip


def image(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def from_rows(rows: torch.Tensor, height: int, width: int, patch: int) -> torch.Tensor:
    """(N, patch * patch * 3), raster order, channels last -> (3, H, W)."""
    return rows.reshape(height, width, patch, patch, 3).permute(4, 0, 2, 1, 3).reshape(3, height * patch, width * patch)


def planes(name: str, given: dict[str, Any], out: Any) -> torch.Tensor:
    """One image (3, H, W) out of what the class returns."""
    if name in ("Pix2StructImageProcessor", "Kosmos2_5ImageProcessor"):
        rows = out["flattened_patches"][0]
        rows = rows[rows[:, 0] > 0]
        height, width = int(rows[:, 0].max()), int(rows[:, 1].max())
        return from_rows(rows[:, 2:], height, width, given["patch_size"]["height"])
    if torch.is_tensor(out):  # Idefics
        return out.flatten(0, -4)[0]
    pixels = out["image_pixel_values" if "Phi4" in name else "pixel_values"]
    if "Molmo2" in name:
        side = given["size"]["height"] // given["patch_size"]
        return from_rows(pixels[0], side, side, given["patch_size"])
    if "image_grid_hw" in out:
        height, width = out["image_grid_hw"][0].tolist()
        patch = given["patch_size"]
        return (
            pixels.reshape(height, width, 3, patch, patch)
            .permute(2, 0, 3, 1, 4)
            .reshape(3, height * patch, width * patch)
        )
    if "image_grid_thw" in out:
        _, height, width = out["image_grid_thw"][0].tolist()
        patch, merge = given["patch_size"], given["merge_size"]
        if pixels.ndim == 4:  # PaddleOCR-VL: each patch an image, in raster order
            return from_rows(pixels.permute(0, 2, 3, 1).flatten(1), height, width, patch)
        if "Cosmos3Edge" in name:  # a patch's channels last, each with its frames
            pixels = pixels.reshape(len(pixels), patch, patch, 3, -1)[..., 0].permute(0, 3, 1, 2).flatten(1)
        if "HunYuan" in name or "HYV4" in name:  # raster order
            first = pixels.reshape(height, width, 3, -1, patch, patch)[:, :, :, 0]
            return first.permute(2, 0, 3, 1, 4).reshape(3, height * patch, width * patch)
        if "Muse" in name:  # raster order, frames before channels
            first = pixels.reshape(height, width, -1, 3, patch, patch)[:, :, 0]
            return first.permute(2, 0, 3, 1, 4).reshape(3, height * patch, width * patch)
        frames = pixels.shape[1] // (3 * patch * patch)
        pixels = pixels.reshape(height // merge, width // merge, merge, merge, 3, frames, patch, patch)[
            :, :, :, :, :, 0
        ]
        return pixels.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * patch, width * patch)
    if "spatial_shapes" in out:
        height, width = out["spatial_shapes"][0].tolist()
        patch = given.get("patch_size") or given["encoder_patch_size"]
        return from_rows(pixels[0][: height * width], height, width, patch)
    if "image_position_ids" in out:
        places = out["image_position_ids"][0]
        kept = places[:, 0] >= 0
        width, height = (places[kept].max(0).values + 1).tolist()
        return from_rows(pixels[0][kept], height, width, given["patch_size"])
    if "MiniCPM" in name:  # patches side by side, in raster order
        height, width = out["tgt_sizes" if "tgt_sizes" in out else "target_sizes"].flatten().tolist()
        patch = given["patch_size"]
        rows = pixels[0].reshape(3, patch, height, width, patch)
        return rows.permute(0, 2, 1, 3, 4).reshape(3, height * patch, width * patch)
    while pixels.ndim > 3:
        pixels = pixels[0]
    return pixels


SHAPE_ALONE = {
    f"{name}ImageProcessor": SHAPES[:1] for name in ("DeepseekVLHybrid", "Idefics3", "SmolVLM", "UltraVBert")
}
"""Of classes that resize a larger or squarer image first, or cut one into several: an image that they only resize."""


def main(path: str) -> None:
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    for name, given in CASES:
        processor = getattr(transformers, name)(**given)
        label = f"{name}/{sum(key.startswith(name + '/') for key in described)}"
        described[label] = json.loads(processor.to_json_string()) | {"image_processor_type": name}
        for shape in SHAPE_ALONE.get(name, SHAPES):
            try:
                out = processor(image(*shape), return_tensors="pt")
                every = 20 if "Aria" in name else 1
                arrays[f"{label}/{shape[0]}x{shape[1]}"] = planes(name, given, out).float().numpy()[:, ::every, ::every]
            except Exception as error:
                print(label, shape, type(error).__name__, str(error)[:100])
    arrays["described"] = np.array(json.dumps(described))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for label, array in arrays.items():
            with archive.open(f"{label}.npy", "w") as file:
                np.lib.format.write_array(file, array)


if __name__ == "__main__":
    main(sys.argv[1])
