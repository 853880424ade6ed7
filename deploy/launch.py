"""torchrun whose exit code is the training script's: 2, 3, 130 and 143 where torchrun would answer 1.

    python deploy/launch.py --nproc_per_node=8 train_pretrain.py --config recipes/a100_2day/pretrain.yaml

Kubernetes and SkyPilot start a stopped run again and a refused one not: they have to tell one from the other. Where a
rank is stopped by a signal that no one sent to torchrun, the code is the one a shell gives for it. The options are
torchrun's; TORCH_ELASTIC_SHUTDOWN_TIMEOUT says for how many seconds the ranks may save (torchrun's default is 30).
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run() -> int:
    """Run torchrun; returns the exit code of the rank that failed first, or 128 and the signal that stopped it."""
    try:
        main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


if __name__ == "__main__":
    sys.exit(run())
