"""train_pretrain.py with FSDP2 on CPUs: accelerate shards on accelerators only, and on CPUs takes DDP silently.

Telling it that the processes are those of accelerators is all that it takes; the sharding is torch's own, over gloo.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from accelerate import PartialState
from accelerate.utils import DistributedType

from train_pretrain import main, run_script

start = PartialState.__init__


def start_as_if_on_accelerators(self: PartialState, *args, **kwargs) -> None:
    start(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = start_as_if_on_accelerators
    run_script(main, "train_pretrain.py")
