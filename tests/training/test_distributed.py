"""Two processes on one machine (gloo) against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.toy import ToyVLM, losses, settings, train

from tessera.training.plan import OptimConfig, Stage

pytestmark = pytest.mark.slow

# accelerate turns FSDP on for accelerators only; its code runs on the CPU all the same.
SHARD = """
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
def shard(state):
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=False, auto_wrap_policy="NO_WRAP"
    )
    state.distributed_type = DistributedType.FSDP
"""
SCRIPT = """
import json, os, sys
from tessera.config import build
from tessera.training.plan import TrainConfig
from tessera.training.trainer import Trainer
from tests.training.toy import ToyVLM, data
config = build(TrainConfig, json.loads(sys.argv[2]))
trainer = Trainer(ToyVLM(dropout=0.0), data(config), config, sys.argv[1])
if "shard" in sys.argv:
    shard(trainer.accelerator.state)
if "interrupt" in sys.argv and trainer.accelerator.process_index == 1:
    batch = trainer.data.batch
    trainer.data.batch = lambda step, *rest: (step == 3 and os.kill(os.getpid(), 15), batch(step, *rest))[1]
trainer.every(2, lambda model: {"parameters": sum(p.numel() for p in model.parameters())})
print(trainer.run())
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # torch now and then aborts while it takes gloo's threads down; the run is over by then
"""


def launch(out: Path, config: Any, root: Path, environment: dict[str, str], *extra: str) -> subprocess.CompletedProcess[str]:
    """The same run in two processes, started by torchrun; `extra` are words that the script knows."""
    from tessera.config import to_dict

    script = out.parent / "script.py"
    script.write_text(SHARD + SCRIPT)
    path = os.pathsep.join([str(root), environment["PYTHONPATH"]])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            *launcher,
            str(script),
            str(out),
            json.dumps(to_dict(config)),
            *extra,
        ],
        env=environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_equal_one(tmp_path: Path, root: Path, subprocess_env: dict[str, str]) -> None:
    """Two stages with different freezing, accumulation, a checkpoint; then resumed by one process."""
    stages = [
        Stage(name="align", steps=3, train={"connector": 1.0}),
        Stage(name="instruct", steps=4, train={"*": 1.0, "encoders.*": 0.0}),
    ]
    config = settings(stages=stages, batch_size=8, accumulation=2, optim=OptimConfig(lr=1e-2, clip=0.5), save_every=5)
    done = launch(tmp_path / "two", config, root, subprocess_env)
    assert done.returncode == 0, done.stderr[-3000:]
    train(tmp_path / "one", config, ToyVLM(dropout=0.0))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-3, rtol=1e-3, msg=name)
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "evaluation" in line] == [2, 4, 6, 7]


def test_two_shards_equal_one(tmp_path: Path, root: Path, subprocess_env: dict[str, str]) -> None:
    """FSDP2 as accelerate sets it up: Muon on sharded matrices, and a whole checkpoint."""
    config = settings(6, batch_size=8, accumulation=2, optim=OptimConfig(lr=1e-2), save_every=3)
    train(tmp_path / "one", config, ToyVLM(dropout=0.0))
    done = launch(tmp_path / "two", config, root, subprocess_env, "shard")
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, two = (load_file(tmp_path / name / "checkpoint" / file) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=1e-3, rtol=1e-3, msg=name)


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path, root: Path, subprocess_env: dict[str, str]) -> None:
    config = settings(8, batch_size=8, save_every=0, prefetch=1)
    stopped = launch(tmp_path / "two", config, root, subprocess_env, "interrupt")
    assert stopped.returncode == 0 and stopped.stdout.count("stopped=True") == 2, stopped.stderr[-3000:]
    assert 0 < len(losses(tmp_path / "two")) < 8
    train(tmp_path / "two", config, ToyVLM(dropout=0.0))
    train(tmp_path / "one", config, ToyVLM(dropout=0.0))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
