r"""Train on a Ray cluster: Ray starts one process per GPU, and restarts all of them when one is lost.

    python deploy/ray/train.py --num_workers 8 --shared /shared/ray \
        train_pretrain.py --config recipes/a100_2day/pretrain.yaml --output_dir /shared/runs/pretrain

A restarted run continues from its last complete checkpoint, so all machines must share the run's folder and
`--shared`, and have this project at the same path.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Parse the arguments and start a run that survives the loss of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_workers", type=int, required=True, help="number of processes, each with one GPU")
    parser.add_argument("--shared", type=Path, required=True, help="folder for Ray's state of a run")
    parser.add_argument("--max_failures", type=int, default=3, help="maximum number of restarts")
    parser.add_argument("--cpu", action="store_true", help="give each process a CPU core instead of a GPU")
    parser.add_argument("script", help="train_pretrain.py, train_grpo.py or eval_medqa.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    args = parser.parse_args()
    environment = {"PYTHONPATH": str(ROOT), **({"ACCELERATE_USE_CPU": "true"} if args.cpu else {})}
    ray.init(runtime_env={"env_vars": environment})
    trainer = TorchTrainer(
        run,
        train_loop_config={"command": [args.script, *args.arguments]},
        scaling_config=ScalingConfig(num_workers=args.num_workers, use_gpu=not args.cpu),
        run_config=RunConfig(
            storage_path=str(args.shared.resolve()), failure_config=FailureConfig(max_failures=args.max_failures)
        ),
    )
    trainer.fit()


def run(config: dict[str, list[str]]) -> None:
    """One process of the run, in a thread of a Ray worker."""
    sys.argv = config["command"]  # recorded as the command in the run's folder
    import_module(Path(sys.argv[0]).stem).main(sys.argv[1:])


if __name__ == "__main__":
    main()
