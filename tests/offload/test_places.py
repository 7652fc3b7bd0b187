"""What --leankv-store names is looked at before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.offload.mooncake import parse_address
from leankv_sglang.offload.places import check_places
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


def test_an_address_says_how_data_travel() -> None:
    plain = parse_address("mooncake://127.0.0.1:50051")
    assert plain == ("127.0.0.1:50051", "tcp", "", "127.0.0.1")
    rdma = parse_address("mooncake://10.0.0.1:7?protocol=rdma&device=mlx5_0&host=10.0.0.2")
    assert rdma == ("10.0.0.1:7", "rdma", "mlx5_0", "10.0.0.2")
