"""The plainest backend: core's torch defaults on the processor, in float32. For calibration."""

from typing import ClassVar

import torch

from infercore.backend import Backend
from infercore.executor import ExecutorConfig, Probe


class PlainTorch(Backend):
    """Every weight dense, every operation core's default. It is no plugin and serves nobody."""

    name: ClassVar[str] = "plain"

    def __init__(self, longest: int) -> None:
        self.config = ExecutorConfig(
            dtype="float32",
            kv_dtype="float32",
            block_size=64,
            max_num_seqs=1,
            max_batch_tokens=longest,
            max_model_len=longest,
        )

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True, devices=(f"torch {torch.__version__}",))

    def device(self, rank: int) -> torch.device:
        del rank
        return torch.device("cpu")

    def memory(self) -> tuple[int, int]:
        """Nothing is planned by it: calibration takes what one layer needs."""
        return 0, 0
