"""The line with which a run ends where another of its processes has ended."""

from types import SimpleNamespace

import pytest

from unified.training import other_ranks
from unified.training.other_ranks import one_line_when_others_end

CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.77.0.2]:3301\nmore"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of two."""
    monkeypatch.setattr(other_ranks, "PartialState", lambda: SimpleNamespace(num_processes=2))


@pytest.mark.usefixtures("two")
def test_a_lost_process_is_one_line() -> None:
    with pytest.raises(ConnectionError, match=r"has ended .*10\.77\.0\.2.*--resume True$") as error:
        with one_line_when_others_end():
            raise RuntimeError(CLOSED)
    assert "\n" not in str(error.value)


def test_a_process_alone_has_not_lost_another() -> None:
    with pytest.raises(RuntimeError, match="timed out"), one_line_when_others_end():
        raise RuntimeError("DataLoader timed out after 5 seconds")


@pytest.mark.usefixtures("two")
def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), one_line_when_others_end():
        raise RuntimeError("shape mismatch")
