"""Ranks: what counts as a lost peer."""

from __future__ import annotations

import pytest
import torch.distributed

from udit import dist
from udit.errors import RunError, UserError


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
