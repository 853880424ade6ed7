"""torchrun that returns the training script's exit code: 2, 3, 130 and 143 where torchrun would return 1.

    python deploy/launch.py --nproc_per_node=8 train_pretrain.py --config recipes/a100_2day/pretrain.yaml

Kubernetes and SkyPilot restart a stopped run but not one refused for bad input, so they need to tell the two apart. If
a rank is killed by a signal that torchrun did not get, the code is 128 plus the signal, as in a shell. The options are
torchrun's; TORCH_ELASTIC_SHUTDOWN_TIMEOUT is how many seconds the ranks have to save (torchrun's default is 30).
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
