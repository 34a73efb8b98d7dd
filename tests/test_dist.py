"""Ranks: what counts as a lost rank, and actions that rank 0 takes for all."""

from __future__ import annotations

import pytest
import torch.distributed

from udit import dist
from udit.errors import PeerError, RunError, UserError


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/src/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"),
        RuntimeError("Application timeout caused pair closure"),
        torch.distributed.DistNetworkError("The client socket has timed out"),
    ],
)
def test_what_torch_says_of_a_lost_peer_is_one_line(error: Exception) -> None:
    said = r"^rank 1 of 2 lost a peer \(\w.*\); start all of them again"
    with pytest.raises(RunError, match=said), dist.World(1, 2).together():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), RunError("no"), UserError("no")])
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, dist.World(1, 2).together():
        raise error
    assert raised.value is error


# -- what rank 0 does for all --------------------------------------------------------------------------------------


def of_two(monkeypatch: pytest.MonkeyPatch, rank: int, failed: bool) -> dist.World:
    """One of two ranks; where it is not rank 0, rank 0 has failed or not."""
    monkeypatch.setattr(dist.World, "agree", lambda self, value: value if self.is_main else int(failed))
    return dist.World(rank, 2)


def test_action_runs_on_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    main, other = of_two(monkeypatch, 0, failed=False), of_two(monkeypatch, 1, failed=False)
    assert main.on_main(lambda by, *, to: [*taken, by, to], 2, to=3) == [2, 3]
    assert other.on_main(taken.append, 1) is None
    assert taken == []


@pytest.mark.parametrize("error", [UserError("no"), RunError("no"), OSError(28, "No space left on device")])
def test_error_of_rank_0_is_its_own_there_and_silent_elsewhere(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        of_two(monkeypatch, 0, failed=True).on_main(fail)
    assert raised.value is error
    with pytest.raises(PeerError):
        of_two(monkeypatch, 1, failed=True).on_main(fail)
