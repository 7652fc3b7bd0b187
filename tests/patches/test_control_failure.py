"""A control request that fails in the scheduler ends alone, and whoever waits for its answer hears so."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import fields
from sglang.srt.managers import io_struct, scheduler, tokenizer_control_mixin
from sglang.srt.managers.communicator import FanOutCommunicator

from leankv_patches import control_failure, control_waits, logging_fields, profile_failure

STARTS = io_struct.ExpertDistributionReq(action=io_struct.ExpertDistributionReqType.START_RECORD)
SAID = "The server could not do this (ExpertDistributionReq): RuntimeError: Please set it."


def _fail(_request: Any) -> Any:
    raise RuntimeError("Please set it.")


@pytest.fixture(autouse=True)
def _running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_waits, "_ended", False)


async def _ask(communicator: FanOutCommunicator[Any], request: Any) -> Any:
    return await control_waits.wait(FanOutCommunicator.__call__, communicator, request)


def test_a_request_that_fails_is_answered_so() -> None:
    async def both() -> None:
        dispatch = control_failure.guarded(_fail)
        sent: list[bytes] = []
        communicator: FanOutCommunicator[Any] = FanOutCommunicator(
            lambda request: sent.append(io_struct.msgpack_encode(dispatch(request))), 1
        )
        asked = asyncio.create_task(_ask(communicator, STARTS))
        while not sent:
            await asyncio.sleep(0)
        communicator.handle_recv(io_struct.msgpack_decode(sent[0]))
        with pytest.raises(control_waits.ControlError, match="Please set it") as raised:
            await asked
        assert (str(raised.value), raised.value.status_code) == (SAID, 500)
        assert control_waits.count() == 0

    asyncio.run(both())


def test_every_answer_that_is_waited_for_can_say_that_there_is_none() -> None:
    """Of each request in the scheduler's table; those without an answer are those nobody waits for."""
    table = inspect.getsource(scheduler.Scheduler.init_request_dispatcher)
    asked = [getattr(io_struct, name) for name in re.findall(r"\(\s*(\w+Req(?:Input)?),", table)]
    assert len(asked) > 40
    waited = {spec[1] for spec in tokenizer_control_mixin._COMMUNICATOR_SPECS}
    silent = set()
    for kind in asked:
        request = type(kind.__name__, (SimpleNamespace,), {})(session_id="s")
        told = control_failure.failure(request, "why")
        if told is None:
            silent.add(kind.__name__)
            continue
        waited.discard(type(told))
        back = io_struct.msgpack_decode(io_struct.msgpack_encode(told))
        assert (type(back), back.rid) == (type(told), control_failure.MARK + "why")
        assert not getattr(back, "success", False)
        if "message" in {field.name for field in fields(type(told))}:
            assert back.message == "why"
        if isinstance(back, io_struct.OpenSessionReqOutput):
            assert back.session_id == "s"
    assert waited == set()
    generating = {name for name in silent if "Tokenized" in name}
    assert silent - generating == {
        "AbortReq",
        "CloseSessionReqInput",
        "PauseGenerationReqInput",
        "ContinueGenerationReqInput",
        "FreezeGCReq",
        "ShutdownReq",
        "ConfigureLoggingReq",
    }


def test_what_generates_and_what_ends_by_design_is_left_alone() -> None:
    request = io_struct.BatchTokenizedGenerateReqInput(batch=[])
    with pytest.raises(RuntimeError):
        control_failure.guarded(_fail)(request)

    def leave(_request: Any) -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        control_failure.guarded(leave)(STARTS)
    assert control_failure.guarded(lambda request: request)(STARTS) is STARTS


def test_an_answer_that_cannot_be_sent_is_one_that_says_so() -> None:
    sent: list[Any] = []

    def send(_scheduler: Any, output: Any, recv_req: Any) -> None:
        io_struct.msgpack_encode(output)
        sent.append((output, recv_req))

    asked = io_struct.GetInternalStateReq()
    for state in ({"a": 1}, {"a": object()}):
        output = io_struct.GetInternalStateReqOutput(internal_state=state)
        control_failure.send(send, None, output=output, recv_req=asked)
    assert [output.rid is None for output, _ in sent] == [True, False]


def test_at_the_servers_end_nobody_waits() -> None:
    async def run() -> None:
        communicator: FanOutCommunicator[Any] = FanOutCommunicator(lambda _: None, 1)
        asked = [asyncio.create_task(_ask(communicator, STARTS)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert control_waits.count() == 2
        control_waits.give_up()
        asked.append(asyncio.create_task(_ask(communicator, STARTS)))
        for one in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(one, control_waits.ControlError)
            assert one.status_code == 503

    asyncio.run(run())


def test_a_client_that_leaves_is_no_error_of_the_scheduler() -> None:
    async def run() -> None:
        asked = asyncio.create_task(_ask(FanOutCommunicator(lambda _: None, 1), STARTS))
        await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(run())


class _Profiles:
    """Of a SchedulerProfilerManager what is put back."""

    def __init__(self) -> None:
        self.torch_profiler, self.stopped = SimpleNamespace(stop=self._stop), 0

    def _stop(self) -> None:
        self.stopped += 1
        raise RuntimeError("stopped already")

    def __post_init__(self) -> None:
        self.torch_profiler = None


def test_a_profile_that_fails_ends_alone(tmp_path: Path) -> None:
    def fail(_manager: Any, _what: Any) -> None:
        raise OSError("no room")

    manager = _Profiles()
    profile_failure.step(fail, manager, "batch")
    assert (manager.torch_profiler, manager.stopped) == (None, 1)
    told = profile_failure.asked(fail, _Profiles(), io_struct.ProfileReq())
    assert (told.success, told.message) == (False, "The profile failed (OSError): no room.")
    (tmp_path / "file").touch()
    asked = io_struct.ProfileReq(output_dir=str(tmp_path / "file" / "folder"))
    told = profile_failure.asked(lambda *_: pytest.fail("started"), _Profiles(), asked)
    assert not told.success


def test_a_profile_that_does_not_run_is_the_clients_mistake() -> None:
    async def refuse(_manager: Any, _req: Any) -> None:
        raise RuntimeError("Profiling is not in progress.")

    with pytest.raises(ValueError, match="not in progress"):
        asyncio.run(control_waits.profile(refuse, None, None))


@pytest.mark.parametrize(
    ("fields", "said"), [({"log_requests_level": 99}, "not 99"), ({"log_requests_format": "x"}, "not x")]
)
def test_logs_that_no_request_could_be_written_to_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        logging_fields.check(lambda *_: None, None, io_struct.ConfigureLoggingReq(**fields))
    known = io_struct.ConfigureLoggingReq(log_requests_level=3, log_requests_format="json")
    assert logging_fields.check(lambda *_: 7, None, known) == 7
