r"""Train on a Ray cluster: Ray starts a process for each GPU, and starts all of them again when one is lost.

    python deploy/ray/train.py --num_workers 8 --shared /shared/ray \
        train_pretrain.py --config recipes/a100_2day/pretrain.yaml --output_dir /shared/runs/pretrain

A run that is started again continues from its last complete checkpoint. So all machines share the folder of the run
and `--shared`, and have this project under the same path.
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
    """Arguments, and a run that outlives its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_workers", type=int, required=True, help="processes, each with a GPU")
    parser.add_argument("--shared", type=Path, required=True, help="folder for what Ray keeps of a run")
    parser.add_argument("--max_failures", type=int, default=3, help="how often processes are started again")
    parser.add_argument("--cpu", action="store_true", help="processes with a CPU core in place of a GPU")
    parser.add_argument("script", help="train_pretrain.py, train_grpo.py or eval_medqa.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
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
    sys.argv = config["command"]  # what the run's folder says of this start
    import_module(Path(sys.argv[0]).stem).main(sys.argv[1:])


if __name__ == "__main__":
    main()
