"""One forward pass of a policy in three stages, plain or as CUDA graphs with one launch per stage.

CUDA graphs help if launches take longer than the computation, as for the observations of one robot. In a captured pass every
tensor has a fixed place in memory, also the language model's growing cache.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_vision.nn.position import PositionTable
from vlm_vision.vla.batch import Batch
from vlm_vision.vla.heads.prefix import Prefix
from vlm_vision.vla.model import VisionLanguageActionModel
from vlm_vision.vlm.layout import Whole

_WARM_UP = 3
"""Forward passes before the capture, in which the libraries choose kernels and allocate workspaces."""


class PolicyRunner:
    """Encode, prefill, decode, in this order. The caller turns gradients off."""

    prefix: Prefix
    held: Any
    actions: Tensor

    def __init__(self, model: VisionLanguageActionModel):
        self.model = model

    def encode(self, batch: Batch) -> None:
        """Images and prompt, from any device, to what the language model reads."""
        device = self.model.plain_vlm.device
        self.prefix = self.model.prefix({name: value.to(device) for name, value in batch.items()})

    def prefill(self) -> None:
        self.held = self.model.head.prefill(self.prefix)

    def decode(self) -> Tensor:
        """Actions (B, K, A), normalized, float32; the next forward pass may overwrite them."""
        self.actions = self.model.head.decode(self.held)
        return self.actions


class GraphedRunner(PolicyRunner):
    """A forward pass for batches of the shapes of `batch`, as three CUDA graphs.

    Weights are read where they were at the capture: changed in place they count, except for a position table that was
    resized; moved or replaced, capture again.
    """

    def __init__(self, model: VisionLanguageActionModel, batch: Batch):
        super().__init__(model)
        device = model.plain_vlm.device
        with torch.inference_mode(False), torch.no_grad():
            self._given = {name: value.to(device, copy=True) for name, value in batch.items()}
            stages = [
                lambda: PolicyRunner.encode(self, self._given),
                lambda: PolicyRunner.prefill(self),
                lambda: PolicyRunner.decode(self),
            ]
            self._encode, self._prefill, self._decode = capture_graphs(stages, device)
            grid = model.plain_vlm.encoder.grid(*batch["pixel_values"].shape[-2:])
            tables = [part for part in model.modules() if isinstance(part, PositionTable)]
            self._tables = [table(grid) for table in tables]  # resized tables, which their own cache may let go

    def encode(self, batch: Batch) -> None:
        for name, value in batch.items():
            self._given[name].copy_(value)
        self._encode()

    def prefill(self) -> None:
        self._prefill()

    def decode(self) -> Tensor:
        self._decode()
        return self.actions


class RunnerCache:
    """The runner for each batch: captured for the latest shapes, or plain.

    Args:
        graphs: shapes (of a batch, its prompt and its images) to keep a capture of; 0 for none.

    Raises:
        ValueError: graphs below 0, for a model that is not on a CUDA device, or whose images have no fixed size.
    """

    def __init__(self, model: VisionLanguageActionModel, graphs: int = 0):
        vlm = model.plain_vlm
        if graphs < 0:
            raise ValueError(f"graphs is {graphs}: expected the number of shapes to capture, 0 for none")
        if graphs and vlm.device.type != "cuda":
            raise ValueError(
                f"CUDA graphs need a policy on a CUDA device, but this one is on {vlm.device}: set graphs to 0"
            )
        if graphs and type(vlm.layout) is not Whole:
            raise ValueError(
                f"layout {vlm.layout.name!r} reads each image's size, which a CUDA graph cannot do: set graphs to 0"
            )
        self._model, self._graphs, self._plain = model, graphs, PolicyRunner(model)
        self._captured: OrderedDict[tuple, GraphedRunner] = OrderedDict()

    def __call__(self, batch: Batch) -> PolicyRunner:
        if not self._graphs:
            return self._plain
        shape = tuple((name, tuple(value.shape)) for name, value in sorted(batch.items()))
        if shape not in self._captured:
            while len(self._captured) >= self._graphs:  # the one that was not seen for longest makes room
                self._captured.popitem(last=False)
            self._captured[shape] = GraphedRunner(self._model, batch)
        self._captured.move_to_end(shape)
        return self._captured[shape]


def capture_graphs(stages: Sequence[Callable[[], object]], device: torch.device) -> list[Callable[[], None]]:
    """Each stage as a CUDA graph that replays it, after they ran in turn a few times."""
    with torch.cuda.device(device), torch.autocast("cuda", enabled=False):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                for stage in stages:
                    stage()
        torch.cuda.current_stream().wait_stream(side)
        pool, graphs = torch.cuda.graph_pool_handle(), []
        for stage in stages:  # in one pool, in the order in which they will run
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                stage()
            graphs.append(graph)
    return [graph.replay for graph in graphs]
