"""A peer that is gone: noticed by the kernel, and told in one line."""

import socket
import sys

import pytest
import torch

from ptft_recipes import cli, connections
from ptft_recipes.connections import as_lost_process, keep_connections_alive

GLOO = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.77.0.2]:3784: Connection timed "
    "out. This is typically caused by a remote worker hanging or bugs in the application."
)


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_every_connection_asks_whether_the_other_end_is_there():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        server.accept()[0] as theirs,
    ):
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert keep_connections_alive() >= 2
        for end in (ours, theirs):
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, times = (
                end.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}"))
                for name in ("IDLE", "INTVL", "CNT")
            )
            assert idle + interval * times == connections.SILENCE
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * connections.SILENCE
        ours.sendall(b"as before")
        assert theirs.recv(9) == b"as before"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(GLOO), "Read error [10.77.0.2]:3784: Connection timed out"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "NCCL error: remote process exited"),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), "failed to recv, got 0 bytes"),
    ],
)
def test_a_broken_connection_is_told_as_what_it_means(error, reason):
    assert f"cannot be reached ({reason}); its own log says why" in str(as_lost_process(error))


def test_other_errors_are_left_as_they_are():
    assert as_lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_recipe_ends_in_one_line_with_the_rank_and_a_code(monkeypatch, capsys):
    def lose():
        raise RuntimeError(GLOO)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["finetune_cls.py"])
    monkeypatch.setattr(cli.os, "_exit", sys.exit)
    monkeypatch.setattr(cli, "LINGER", 0)
    with pytest.raises(SystemExit) as stop:
        cli.run_command(lose)
    assert stop.value.code == 6
    assert capsys.readouterr().err.startswith("finetune_cls.py, rank 1: lost: another process of this run is gone")
