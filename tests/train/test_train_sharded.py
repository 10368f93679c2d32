"""A run in two processes that torch.distributed.run starts: killed while it writes a checkpoint, and taken up again."""

import torch
from support.recipe_records.conversations import DROPOUT, VQA
from support.two_processes import launch, launch_by_torch

import vlm_vision as vv


def test_a_sharded_run_killed_while_it_writes_goes_on_as_if_it_had_not_been(tmp_path):
    folder = VQA.prepare(tmp_path)
    changes = (*DROPOUT, "--sharding", "fsdp2", "--steps", "6", "--checkpoint_every", "2")
    runs = {name: {"recipe": "vqa", "arguments": VQA.arguments(folder, name, *changes)} for name in ("killed", "whole")}
    died = launch_by_torch(folder, [runs["killed"] | {"dies": 2}])
    assert died.returncode != 0 and "SIGKILL" in died.stderr, died.stderr[-3000:]
    assert sorted(path.name for path in (folder / "killed/checkpoints").iterdir()) == ["step-00000002", "writing"]
    together = launch(folder, runs)
    assert together["killed"]["first_step"] == 2
    assert together["killed"]["losses"] == together["whole"]["losses"][2:]
    first, second = (vv.VisionLanguageModel.from_pretrained(folder / name / "model") for name in ("whole", "killed"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
