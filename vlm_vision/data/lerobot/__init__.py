"""LeRobotDataset v3, read and written with pyarrow and PyAV alone (`pip install 'vlm-vision[robot]'`).

    dataset = read_dataset("folder, or owner/name on the hub")
    window = dataset.window(0, chunk=8)  # one moment, and the actions from it on
    write_dataset("new folder", episodes, fps=20)

Order, low to high: layout; tables, video, statistics; meta; rows, cells, encode, written; reader, writer.
"""

try:
    import av as _av
    import pyarrow as _pyarrow
except ImportError as error:
    raise ImportError(
        f"robot data is read and written with pyarrow and PyAV ({error}): pip install 'vlm-vision[robot]'"
    ) from None

from vlm_vision.data.lerobot.reader import Frame, RobotDataset, read_dataset
from vlm_vision.data.lerobot.writer import write_dataset

del _av, _pyarrow

__all__ = ["Frame", "RobotDataset", "read_dataset", "write_dataset"]
