"""What --leankv-store names is looked at before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.offload.mooncake import parse_address
from leankv_sglang.offload.places import check_places, memory_of_this_machine
from leankv_sglang.processes import free_port
from tests.sentences import is_one_sentence


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_places(LeanKVConfig(store=f"file:{tmp_path}/a/b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []
    check_places(LeanKVConfig())


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("file:/proc/nowhere", "--leankv-store file:/proc/nowhere cannot be written to"),
        ("mooncake://127.0.0.1:{port}", "no Mooncake master listens at 127.0.0.1:"),
        ("mooncake://nohost", "takes mooncake://MASTER:PORT"),
        ("mooncake://127.0.0.1:1?protocol=pigeon", "takes mooncake://MASTER:PORT"),
        ("mooncake://127.0.0.1:1?speed=9", "takes mooncake://MASTER:PORT"),
        ("mooncake://127.0.0.1:99999", "takes mooncake://MASTER:PORT"),
    ],
)
def test_what_is_not_there_is_one_sentence(store: str, said: str) -> None:
    with pytest.raises(LeanKVError) as refusal:
        check_places(LeanKVConfig(store=store.format(port=free_port())))
    assert said in str(refusal.value)
    assert is_one_sentence(str(refusal.value))


@pytest.mark.parametrize(
    "asked",
    [{"host_memory": 900 << 30}, {"store": "mooncake://127.0.0.1:1", "host_memory": 1 << 20, "store_size": 900 << 40}],
)
def test_more_memory_than_there_is_is_one_sentence(asked: dict[str, Any]) -> None:
    with pytest.raises(LeanKVError, match=r"too little for --leankv-.* 900 .iB; ask for less\."):
        check_places(LeanKVConfig(**asked))


def test_a_container_has_the_memory_that_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("leankv_sglang.offload.places.CONTAINER_LIMIT", limit)
    unlimited = memory_of_this_machine()
    for text, memory in (("max\n", unlimited), ("4096\n", 4096), (f"{1 << 62}\n", unlimited)):
        limit.write_text(text)
        assert memory_of_this_machine() == memory


def test_an_address_says_how_data_travel() -> None:
    plain = parse_address("mooncake://127.0.0.1:50051")
    assert plain == ("127.0.0.1:50051", "tcp", "", "127.0.0.1")
    rdma = parse_address("mooncake://10.0.0.1:7?protocol=rdma&device=mlx5_0&host=10.0.0.2")
    assert rdma == ("10.0.0.1:7", "rdma", "mlx5_0", "10.0.0.2")
