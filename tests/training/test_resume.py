from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tests.patience import SECONDS
from tests.training.toy import Killed, ToyVLM, data, kill_after, losses, records, settings, train

from tessera.errors import TesseraError, UserError
from tessera.training import checkpoint
from tessera.training.log import Event, Log
from tessera.training.plan import Stage, TrainConfig
from tessera.training.trainer import Trainer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("killed", [3, 5])
def test_a_killed_run_continues_bit_equal(tmp_path: Path, killed: int, precision: str) -> None:
    """Two stages, dropout, checkpoint at 3 (the border of the stages) and lines beyond it in the log."""
    stages = [Stage(name="a", steps=3, train={"connector": 1.0}), Stage(name="b", steps=5, train={"*": 1.0})]
    config = settings(stages=stages, save_every=3, precision=precision)
    whole = train(tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config, on_event=kill_after(killed + 1))
    resumed = train(tmp_path / "killed", config, ToyVLM(width=16))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    model = train(tmp_path, settings(3))
    again = ToyVLM()
    result = Trainer(again, data(settings(3)), settings(3), tmp_path).run()
    assert result.step == 3 and len(losses(tmp_path)) == 3
    assert torch.equal(model.connector.weight, again.connector.weight)


def test_a_model_built_in_bfloat16_continues_bit_equal(tmp_path: Path) -> None:
    """Its weights are float32 once they train; those of the checkpoint must not be rounded again."""
    config = settings(precision="bf16", save_every=3)
    train(tmp_path / "whole", config, ToyVLM().bfloat16())
    with pytest.raises(Killed):
        train(tmp_path / "killed", config, ToyVLM().bfloat16(), on_event=kill_after(4))
    train(tmp_path / "killed", config, ToyVLM().bfloat16())
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_without_resume_it_starts_again(tmp_path: Path) -> None:
    train(tmp_path, settings(3))
    first = losses(tmp_path)
    Trainer(ToyVLM(), data(settings(3)), settings(3), tmp_path).run(resume=False)
    assert losses(tmp_path) == first
    trainer = Trainer(ToyVLM(), data(settings(3)), settings(3), tmp_path, on_event=kill_after(1))
    with pytest.raises(Killed):
        trainer.run(resume=False)
    assert not (tmp_path / "checkpoint").exists() and len(losses(tmp_path)) == 1


def test_evaluations_that_a_kill_prevented_are_made_up_for(tmp_path: Path) -> None:
    def run(on_event: Any) -> None:
        trainer = Trainer(ToyVLM(), data(settings(4)), settings(4, save_every=2), tmp_path, on_event=on_event)
        trainer.every(2, lambda model: {"step": trainer.step})
        trainer.run()

    def killed(event: Event) -> None:
        if event.kind == "checkpoint":
            raise Killed

    with pytest.raises(Killed):
        run(killed)
    run(None)
    assert [r["evaluation"]["step"] for r in records(tmp_path) if "evaluation" in r] == [2, 4]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    train(tmp_path, settings(3))
    with pytest.raises(UserError, match="seed was 0, is 1"):
        train(tmp_path, settings(3, seed=1))
    train(tmp_path, settings(3, log_every=7, prefetch=1))


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, settings(3))
    with pytest.raises(UserError, match="another model"):
        train(tmp_path, settings(3), ToyVLM(width=8))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)

    def interrupt(event: Event) -> None:
        if event.kind == "step" and event.step == 2:
            signal.raise_signal(number)

    config = settings()
    result = Trainer(ToyVLM(), data(config), config, tmp_path / "a", on_event=interrupt).run()
    assert result.stopped and result.step == 3 and "run it again" in result.text
    assert signal.getsignal(number) is before
    train(tmp_path / "a", config)
    train(tmp_path / "b", config)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_signal_in_the_last_step_is_told(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            signal.raise_signal(signal.SIGTERM)

    config = settings(3)
    ended = Trainer(ToyVLM(), data(config), config, tmp_path / "a", on_event=interrupt).run()
    assert ended.step == 3 and ended.interrupted and not ended.stopped
    assert not Trainer(ToyVLM(), data(config), config, tmp_path / "b").run().interrupted


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings(), on_event=interrupt)


def test_it_trains_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(tmp_path, settings(2)))
    thread.start()
    thread.join()
    assert len(losses(tmp_path)) == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    config = settings(save_every=2)
    written = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        written(dict(list(tensors.items())[:1]), path)
        raise error

    with pytest.raises(Killed):
        train(tmp_path, config, on_event=kill_after(3))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(TesseraError, match="disk is full.*checkpoint"):
            train(tmp_path, config)
    assert [p.name for p in tmp_path.glob(".*")] == []
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 2
    train(tmp_path, config)
    train(tmp_path / "whole", config)
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    """Moments of a save: the old folder moved aside, the new one whole or half-written."""
    train(tmp_path, settings(3))
    old = tmp_path / ".checkpoint.abc.old"
    (tmp_path / "checkpoint").rename(old)
    half = tmp_path / ".checkpoint.abc"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    checkpoint.recover(tmp_path)
    state = checkpoint.load(tmp_path)
    assert state is not None and state[0]["step"] == 3
    assert [p.name for p in tmp_path.glob(".checkpoint*")] == []

    (tmp_path / "checkpoint").rename(old)
    new = shutil.copytree(old, half)
    described = json.loads((new / "state.json").read_text())
    (new / "state.json").write_text(json.dumps(described | {"step": 5}))
    checkpoint.recover(tmp_path)
    state = checkpoint.load(tmp_path)
    assert state is not None and state[0]["step"] == 5


@pytest.mark.parametrize("damage", ["truncated", "missing", "json"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    train(tmp_path, settings(2))
    folder = tmp_path / "checkpoint"
    if damage == "truncated":
        os.truncate(folder / "model.safetensors", 100)
    elif damage == "missing":
        (folder / "optimizer.safetensors").unlink()
    else:
        (folder / "state.json").write_text("{")
    with pytest.raises(TesseraError, match="damaged|cannot be read"):
        train(tmp_path, settings(2))


def test_nothing_is_pickled(tmp_path: Path) -> None:
    train(tmp_path, settings(2))
    assert {p.name for p in (tmp_path / "checkpoint").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_the_log_drops_lines_beyond_the_step_and_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    path.write_text("\n".join(lines) + '\n{"step": 6, "lo')
    log = Log(path, 3)
    log.write({"step": 4})
    log.close()
    assert path.read_text().splitlines() == [*lines[:3], '{"step": 4}']


SCRIPT = """
import sys, time
from pathlib import Path
from tessera.training.trainer import Trainer
from tests.training.toy import ToyVLM, data, settings
class Slow(ToyVLM):
    def forward(self, **inputs):
        time.sleep(0.02)
        return super().forward(**inputs)
if __name__ == "__main__":
    config = settings(40, save_every=int(sys.argv[2]), workers=int(sys.argv[3]))
    print(Trainer(Slow(), data(config), config, sys.argv[1]).run().text)
"""


def start_and_signal(
    out: Path, root: Path, environment: dict[str, str], number: int, save_every: int, workers: int
) -> tuple[int, str]:
    """Starts `SCRIPT` in a process group of its own and signals it after some steps; (exit code, output)."""
    path = os.pathsep.join([str(root), environment["PYTHONPATH"]])
    log = out / "log.jsonl"
    seen = log.stat().st_size if log.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(out), str(save_every), str(workers)],
        env=environment | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.stat().st_size > seen + 1000:
            break
        time.sleep(0.005)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


@pytest.mark.slow
def test_kill_9_in_the_middle(tmp_path: Path, root: Path, subprocess_env: dict[str, str]) -> None:
    """Killed twice wherever it is; saving after every step, so that saves are hit too."""
    out = tmp_path / "killed"
    for _ in range(2):
        code, _ = start_and_signal(out, root, subprocess_env, signal.SIGKILL, save_every=1, workers=0)
        assert code == -signal.SIGKILL
    config: TrainConfig = settings(40, save_every=1)
    result = Trainer(ToyVLM(), data(config), config, out).run()
    assert result.step == 40
    train(tmp_path / "whole", config)
    assert losses(out) == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_workers_in_peace(
    tmp_path: Path, root: Path, subprocess_env: dict[str, str], number: int
) -> None:
    """As a terminal's Ctrl-C and a batch system's end of time do it."""
    out = tmp_path / "run"
    code, output = start_and_signal(out, root, subprocess_env, number, save_every=0, workers=2)
    assert code == 0 and "run it again" in output, output
    state = json.loads((out / "checkpoint" / "state.json").read_text())
    assert state["step"] == records(out)[-1]["step"] < 40
