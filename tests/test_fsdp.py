"""Weights that are split over ranks (FSDP2) train as whole ones do, and their checkpoints fit any number of ranks."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import TINY, batch, perturb
from ranks import Ranks, on_ranks
from runs import finished_at, image_folder, metrics, newest, small_run, state_hash, train
from udit import sharding
from udit.checkpoint import MANIFEST, CheckpointStore
from udit.data.sources import parts_of
from udit.dist import World
from udit.errors import RunError, UserError
from udit.files import unseal
from udit.models.build import checkpoint_activations, configure
from udit.models.catalog import list_models
from udit.nn.init import fill
from udit.training.batches import batches_of
from udit.training.learner import Learner
from udit.training.parallel import Split
from udit.training.saving import ShardedSaves

OneLine = Callable[[BaseException], str]
FSDP = "training.parallel=fsdp"
SLOW = pytest.mark.slow


def split(name: str, world: World, shards: int | None = None, half: bool = False, **overrides: Any) -> nn.Module:
    """A network of the catalogue, split over the ranks, with noise on every weight."""
    config = configure(name, **overrides)
    with torch.device("meta"):
        network = config.build()
    sharding.shard(network, sharding.mesh_of(world, shards, 60), half=half)
    fill(network, network.INIT, 0, "cpu", sharding.put)
    noisy = perturb(udit.build(config)).state_dict()
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            sharding.put(tensor, noisy[key])
    return network


# ---- one process -----------------------------------------------------------------------------------------------------


def test_single_process_trains_to_the_bits_of_whole_weights(tmp_path: Path) -> None:
    train(tmp_path / "whole", "training.steps=4")
    train(tmp_path / "split", "training.steps=4", FSDP)
    assert state_hash(tmp_path / "split") == state_hash(tmp_path / "whole")
    assert metrics(tmp_path / "split") == metrics(tmp_path / "whole")
    for name in ("model.safetensors", "model.raw.safetensors", "config.json"):
        files = [tmp_path / which / "model" / name for which in ("split", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    path = newest(tmp_path / "split")
    assert {entry.name for entry in path.iterdir()} == {sharding.file_of(0), MANIFEST}
    whole, halves = (udit.load(tmp_path / which).fingerprint for which in ("whole", "split"))
    assert whole == halves


@pytest.mark.slow
def test_run_may_change_between_whole_and_split_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path / "unbroken", "training.steps=6")
    with caplog.at_level(logging.INFO):
        for steps, words in ((2, []), (3, [FSDP]), (5, [FSDP]), (6, [])):
            assert train(tmp_path / "out", f"training.steps={steps}", *words) == finished_at(tmp_path / "out", steps)
    assert "training.parallel was ddp and is fsdp now: samples and noise stay the same" in caplog.text
    assert "training.parallel was fsdp and is ddp now" in caplog.text
    assert state_hash(tmp_path / "out") == state_hash(tmp_path / "unbroken")


@pytest.mark.slow
def test_fork_of_split_weights_goes_on_with_their_bits(tmp_path: Path) -> None:
    train(tmp_path / "run", "training.steps=6", FSDP)
    made = udit.fork(tmp_path / "run", tmp_path / "fork", checkpoint=3)
    train(made.out, "training.steps=6", FSDP)
    assert state_hash(made.out) == state_hash(tmp_path / "run")


@pytest.mark.slow
def test_averages_of_every_length_are_kept_and_written(tmp_path: Path) -> None:
    words = ["training.steps=4", "training.posthoc_ema.every=2"]
    train(tmp_path / "whole", *words)
    train(tmp_path / "split", "training.steps=2", *words[1:], FSDP)
    train(tmp_path / "split", *words, FSDP)
    for step in (2, 4):
        name = Path("posthoc", f"step-{step:08d}.safetensors")
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_damaged_shard_is_named_and_the_checkpoint_before_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, "training.steps=6", FSDP)
    wanted = state_hash(tmp_path)
    file = newest(tmp_path) / sharding.file_of(0)
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    train(tmp_path, "training.steps=6", FSDP)
    assert f"step-00000006 is damaged ({sharding.file_of(0)} does not match its sha256)" in caplog.text
    assert state_hash(tmp_path) == wanted


def test_checkpoint_of_another_model_is_refused(tmp_path: Path, one_line: OneLine) -> None:
    train(tmp_path, "training.steps=3", FSDP)
    found = CheckpointStore(tmp_path / "checkpoints").at(3)
    other = Learner(small_run(tmp_path, FSDP, "model.depths=[1,1,1]"), World())
    with pytest.raises(UserError, match=r"step-00000003 holds another model than this run's \(model differs in ") as e:
        other.load(found)
    one_line(e.value)
    wide = Learner(small_run(tmp_path, FSDP, "model.width=16"), World())
    with pytest.raises(UserError, match="holds another model than this run's") as e:
        wide.load(found)
    one_line(e.value)


def test_full_disk_is_one_line_and_leaves_what_is_there(tmp_path: Path, one_line: OneLine) -> None:
    run = small_run(tmp_path, FSDP)
    learner, store = Learner(run, World()), CheckpointStore(tmp_path / "checkpoints")
    saves = ShardedSaves(store, World(), 60)
    saves.begin(3, learner.tensors(), dict, None)
    saves.finish()
    before = newest(tmp_path)
    full = OSError(28, os.strerror(28))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", _raising(full))
        saves.begin(6, learner.tensors(), dict, None)
        with pytest.raises(
            RunError, match=r"cannot write checkpoint .*step-00000006: No space left on device; step 3 is intact"
        ) as e:
            saves.finish()
    one_line(e.value)
    assert [entry.name for entry in store.folder.iterdir()] == [before.name]
    saves.begin(6, learner.tensors(), dict, None)
    saves.finish()
    assert store.newest() is not None
    assert newest(tmp_path).name == "step-00000006"


def _raising(error: OSError) -> Callable[..., Any]:
    def raised(*_: Any, **__: Any) -> Any:
        raise error

    return raised


def test_abandoned_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    learner, store = Learner(small_run(tmp_path, FSDP), World()), CheckpointStore(tmp_path / "checkpoints")
    saves = ShardedSaves(store, World(), 60)
    saves.begin(3, learner.tensors(), dict, None)
    saves.close()
    assert list(store.folder.iterdir()) == []


def test_loop_that_is_left_saves(tmp_path: Path) -> None:
    for record in udit.Trainer(small_run(tmp_path, FSDP), World()).steps():
        if record.step == 2:
            break
    assert newest(tmp_path).name == "step-00000002"


def test_ranks_that_do_not_split_into_shards_are_named(one_line: OneLine) -> None:
    with pytest.raises(UserError, match=r"^training\.shards is 4 and there are 6 ranks, which it must divide") as e:
        sharding.mesh_of(World(0, 6), 4, 60)
    one_line(e.value)


def test_rank_that_does_not_see_the_folder_says_so(tmp_path: Path, one_line: OneLine) -> None:
    from udit.training.files import RunFiles

    run = small_run(tmp_path / "local", FSDP)
    trainer = udit.Trainer(run, World())
    trainer.learner.world = World(3, 4)
    with pytest.raises(UserError, match=r"^rank 3 does not see the run folder .*local that rank 0 has made") as e:
        RunFiles(run, trainer.source, trainer.parts, trainer.learner).check_seen()
    one_line(e.value)


# ---- several ranks ---------------------------------------------------------------------------------------------------


def gradients(world: World, name: str, shards: int | None, recompute: Any, half: bool, overrides: Any) -> float:
    """The largest error of a gradient of split weights, against that of whole ones on the whole batch.

    Relative to the largest entry of all gradients, so that a gradient which is zero but for rounding counts little.
    """
    network = split(name, world, shards, half, **overrides)
    checkpoint_activations(network, recompute)
    whole = perturb(udit.build(configure(name, **overrides)))
    x, t, y = batch(whole, 4 * world.size)
    own = slice(4 * world.rank, 4 * world.rank + 4)
    network.train()
    whole.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        for model, part in ((whole, slice(None)), (network, own)):
            given = None if y is None else y[part]
            model(x[part], t[part], given).float().square().mean().backward()
    found = {key: p.grad for key, p in network.named_parameters()}
    most, worst = 0.0, 0.0
    for key, parameter in whole.named_parameters():
        assert (parameter.grad is None) == (found[key] is None), key
        if parameter.grad is not None:
            gathered = sharding.whole(found[key])
            assert gathered.dtype == torch.float32
            most = max(most, float(parameter.grad.abs().max()))
            worst = max(worst, float((gathered - parameter.grad).abs().max()))
    return worst / most


def many_gradients(world: World, cases: list[tuple[int | None, Any]]) -> list[float]:
    """``gradients`` with these shards and ways of recomputing."""
    return [gradients(world, "U-DiT-S", shards, recompute, False, TINY) for shards, recompute in cases]


@SLOW
@pytest.mark.parametrize(("size", "cases"), [(3, [(None, "selective")]), (4, [(None, True), (2, False)])])
def test_gradients_are_those_of_whole_weights(size: int, cases: list[tuple[int | None, Any]]) -> None:
    """Sums of float32 in another order: a few hundred roundings of 6e-8. Two ranks are in the sweep over families."""
    errors = on_ranks(size, many_gradients, cases)
    assert max(max(row) for row in errors) < 2e-5


@SLOW
def test_blocks_are_gathered_in_bfloat16_and_gradients_stay_float32() -> None:
    """Weights are rounded to bfloat16 (relative 2**-9) before products, where autocast rounds them as well."""
    errors = on_ranks(2, gradients, "U-DiT-S", None, False, True, TINY)
    assert max(errors) < 0.05


def compiled(world: World) -> float:
    """The largest error of a gradient where each block is one graph."""
    network = split("U-DiT-S", world, **TINY)
    for block in sharding.blocks_of(network):
        block.compile(fullgraph=True, dynamic=False, backend="eager")
    whole = perturb(udit.build(configure("U-DiT-S", **TINY)))
    x, t, y = batch(whole, 2 * world.size)
    own = slice(2 * world.rank, 2 * world.rank + 2)
    whole.train()(x, t, y).square().mean().backward()
    network.train()(x[own], t[own], y[own]).square().mean().backward()
    found = {key: sharding.whole(p.grad) for key, p in network.named_parameters()}
    most = max(float(p.grad.abs().max()) for p in whole.parameters())
    return max(float((found[key] - p.grad).abs().max()) for key, p in whole.named_parameters()) / most


@SLOW
def test_each_block_of_split_weights_is_one_graph() -> None:
    """Captured as ``training.compile`` does it; what a compiler makes of a graph does not depend on FSDP."""
    assert max(on_ranks(2, compiled)) < 2e-5


def every_family(world: World, names: list[str]) -> dict[str, float]:
    """``gradients`` of many models."""
    return {name: gradients(world, name, None, False, False, {}) for name in names}


@SLOW
@pytest.mark.timeout(600)
def test_every_family_can_be_split() -> None:
    names = [name for name in list_models() if name.endswith("-tiny")]
    for errors in on_ranks(2, every_family, names, seconds=500):
        assert max(errors.values()) < 1e-4, errors


def shards_of(world: World) -> dict[str, int]:
    """Bytes of what this rank has of a network, and the largest weight that it ever held whole."""
    seen: list[int] = []
    honest = sharding.put

    def put(target: Tensor, whole: Tensor) -> None:
        seen.append(whole.numel())
        honest(target, whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "put", put)
        model = Split(world, None, 60, half=False).build(configure("U-DiT-S", **TINY), 0)
    plain = udit.build(configure("U-DiT-S", **TINY)).state_dict()
    state = {key: sharding.whole(tensor) for key, tensor in model.state_dict().items()}
    assert all(torch.equal(state[key], plain[key]) for key in plain)
    assert state.keys() == plain.keys()
    own = sum(sharding.local(p).numel() for p in model.parameters())
    return {"own": own, "all": sum(p.numel() for p in plain.values()), "largest": max(seen)}


@SLOW
@pytest.mark.parametrize("size", [2, 3])
def test_shards_are_filled_with_the_weights_of_every_other_number_of_ranks(size: int) -> None:
    found = on_ranks(size, shards_of)
    assert sum(rank["own"] for rank in found) == found[0]["all"]
    assert all(rank["own"] < 1.1 * rank["all"] / size for rank in found)


def saved(world: World, folder: Path) -> None:
    """Saves a state and changes it at once."""
    state = {"model": split("U-DiT-S", world, **TINY).state_dict()}
    saves = ShardedSaves(CheckpointStore(folder), world, 60)
    saves.begin(1, state, dict, None)
    with torch.no_grad():
        for tensor in state["model"].values():
            tensor.zero_()
    for _ in range(10_000):
        saves.poll()
        if saves._writing is None:
            break
    assert saves._writing is None
    assert CheckpointStore(folder).path(1).is_dir() or not world.is_main


def read(world: World, folder: Path, names: list[str]) -> None:
    """Reads it on other ranks."""
    wanted = perturb(udit.build(configure("U-DiT-S", **TINY))).state_dict()
    network = split("U-DiT-S", world, **TINY)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    found = CheckpointStore(folder).opened(1)
    assert sorted(found.manifest["files"]) == names
    found.read_into({"model": network.state_dict()}, world)
    for key, tensor in network.state_dict().items():
        assert torch.equal(sharding.whole(tensor), wanted[key])


@SLOW
def test_checkpoint_of_some_ranks_is_read_by_any_other_number(tmp_path: Path) -> None:
    on_ranks(3, saved, tmp_path)
    names = [sharding.file_of(rank) for rank in range(3)]
    for size in (1, 2, 4):
        on_ranks(size, read, tmp_path, names)


def refused(world: World, folder: Path) -> str:
    """Tries to save where the last rank's disk is full."""
    saves = ShardedSaves(CheckpointStore(folder), world, 60)
    state = {"model": split("U-DiT-S", world, **TINY).state_dict()}
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == world.size - 1:
            full = _raising(OSError(28, os.strerror(28)))
            patch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", full)
        saves.begin(1, state, dict, None)
        with pytest.raises(RunError) as error:
            saves.finish()
    return str(error.value)


@SLOW
def test_full_disk_of_one_rank_is_an_error_of_all(tmp_path: Path) -> None:
    told = on_ranks(2, refused, tmp_path)
    assert re.search(r"cannot write checkpoint .*step-00000001: No space left on device", told[0])
    assert told[1] == "rank 0 gave up and says why"
    assert list(tmp_path.iterdir()) == []


def replicas(world: World) -> tuple[bool, bool]:
    """Whether replicas of split weights differ, before and after one weight of the last rank has changed."""
    parallel = Split(world, 2, 60, half=False)
    model = parallel.build(configure("U-DiT-S", **TINY), 0)
    same = parallel.differs(model)
    if world.rank == world.size - 1:
        with torch.no_grad():
            sharding.local(next(model.parameters())).add_(1)
    return same, parallel.differs(model)


@SLOW
def test_replicas_of_shards_are_compared() -> None:
    assert on_ranks(4, replicas) == [(False, True)] * 4


@SLOW
@pytest.mark.timeout(600)
def test_any_number_of_ranks_trains_on_the_same_samples_and_noise(tmp_path: Path) -> None:
    """Losses of the first step are equal up to rounding; of later ones, up to what Adam makes of it."""
    data = image_folder(tmp_path / "images")
    losses = {}
    for name, size, words in (
        ("whole", 1, ["training.parallel=ddp"]),
        ("2", 2, []),
        ("3", 3, []),
        ("2x2", 4, ["training.shards=2", "training.accumulation=3"]),
    ):
        out = tmp_path / name
        ranks = Ranks(out, [*data, *words, "training.steps=4"], size)
        assert ranks.wait() == [0] * size, ranks.told()
        losses[name] = [line["loss"] for line in metrics(out)]
    for name, found in losses.items():
        assert found[0] == pytest.approx(losses["whole"][0], rel=1e-5), name
        assert found == pytest.approx(losses["whole"], rel=0.05), name


@SLOW
@pytest.mark.timeout(600)
def test_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    data, out = image_folder(tmp_path / "images"), tmp_path / "run"
    previous = 4
    for size, step in {4: 1, 2: 2, 3: 3, 1: 4}.items():
        ranks = Ranks(out, [*data, f"training.steps={step}"], size)
        assert ranks.wait() == [0] * size, ranks.told()
        assert size == 4 or f"ranks was {previous} and is {size} now" in ranks.told()[0]
        previous = size
    assert [line["step"] for line in metrics(out)] == list(range(1, 5))
    manifest = unseal((newest(out) / MANIFEST).read_text())
    assert list(manifest["files"]) == [sharding.file_of(0)]
    whole = Ranks(tmp_path / "whole", [*data, "training.parallel=ddp", "training.steps=4"], 1)
    assert whole.wait() == [0]
    found, wanted = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("run", "whole"))
    assert found == pytest.approx(wanted, rel=0.05)


def started(world: World, out: Path) -> float:
    """The largest difference of split weights to the average of a run that they are initialised from."""
    run = small_run(out.with_name("new"), FSDP, f"init_from={out}")
    learner = Learner(run, world)
    learner.load(None)
    wanted = udit.load(out).backbone.state_dict()
    state = learner.model.state_dict()
    return max(float((sharding.whole(state[key]) - wanted[key]).abs().max()) for key in wanted)


@SLOW
def test_split_weights_start_from_trained_ones(tmp_path: Path) -> None:
    train(tmp_path / "old", "training.steps=2")
    assert on_ranks(2, started, tmp_path / "old") == [0, 0]


@SLOW
@pytest.mark.timeout(600)
def test_signal_to_one_rank_saves_and_the_same_command_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images")
    unbroken = Ranks(tmp_path / "unbroken", data, 2)
    assert unbroken.wait() == [0, 0], unbroken.told()
    out = tmp_path / "out"
    ranks = Ranks(out, data, 2)
    log = out / "metrics.jsonl"
    while not (log.is_file() and log.read_bytes().count(b"\n") >= 2):
        assert not ranks.done(), ranks.told()
    ranks.processes[1].terminate()
    codes = ranks.wait()
    assert codes == [143, 143], ranks.told()
    assert "saved; the same command goes on from there" in ranks.told()[0]
    again = Ranks(out, data, 2)
    assert again.wait() == [0, 0], again.told()
    assert state_hash(out) == state_hash(tmp_path / "unbroken")


def deferred(world: World, out: Path) -> list[str]:
    """Digests of this rank's weights and averages after some steps, read at once and a step late as on a GPU."""
    found = []
    for late in (False, True):
        run = small_run(out, FSDP, "training.clip_norm=0.5")
        learner = Learner(run, world)
        learner.load(None)
        learner.share(0)
        learner.defers = late
        stream = batches_of(run, run.source(), parts_of(run.source(), run.data).train, 0, world.rank, world.size)
        for step, micro_batches in zip(range(4), stream, strict=False):
            learner.begin(step, micro_batches)
            if not late:
                learner.settle()
        learner.settle()
        digest = hashlib.sha256()
        for part in ("model", "ema", "optim"):
            for name, tensor in sorted(learner.tensors()[part].items()):
                digest.update(name.encode() + sharding.whole(tensor).numpy().tobytes())
        found.append(digest.hexdigest())
    return found


@SLOW
def test_steps_that_are_read_late_change_split_weights_alike(tmp_path: Path) -> None:
    [[first, late], [other, _]] = on_ranks(2, deferred, tmp_path / "out")
    assert first == late == other
