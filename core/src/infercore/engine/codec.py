"""Requests, outputs and facts as messages of `engine.proto`, and back. Used by both ends."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf.message import Message

from infercore import errors
from infercore.engine import engine_pb2 as pb
from infercore.engine.info import EngineInfo
from infercore.engine.request import EngineStats, FinishReason, Output, Request, TokenLogprobs
from infercore.errors import InvalidRequest, Overloaded, RequestError
from infercore.sampling import SamplingParams
from infercore.watermark import Watermark

METHOD = "/infercore.engine.Engine/Connect"
"""The one RPC: a stream of ToEngine in, a stream of ToRouter out."""

UNLIMITED_MESSAGES = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""Channel options: log-probabilities of a long prompt exceed gRPC's default of 4 MiB."""

PlainToken: TypeAlias = tuple[int, int, float | None]
"""(request_id, token id, its log-probability if asked for): a row with nothing else to say."""

_TO_WIRE = {
    None: pb.NONE,
    FinishReason.LENGTH: pb.LENGTH,
    FinishReason.EOS: pb.EOS,
    FinishReason.STOP: pb.STOP,
    FinishReason.ABORT: pb.ABORT,
    FinishReason.ERROR: pb.ERROR,
}
_FROM_WIRE: Mapping[int, FinishReason | None] = {wire: r for r, wire in _TO_WIRE.items()}


def fill(message: Message, facts: object) -> None:
    """Copy a dataclass into the message whose fields have the same names."""
    for descriptor in message.DESCRIPTOR.fields:
        value = getattr(facts, descriptor.name)
        if isinstance(value, Mapping):
            getattr(message, descriptor.name).update(value)
        elif isinstance(value, Watermark):
            fill(getattr(message, descriptor.name), value)
        elif isinstance(value, tuple):
            getattr(message, descriptor.name).extend(value)
        elif value is not None:
            setattr(message, descriptor.name, value)


def facts(message: Message) -> dict[str, Any]:
    """{field name: value} of a message; an absent optional field is None."""
    found: dict[str, Any] = {}
    for descriptor in message.DESCRIPTOR.fields:
        name = descriptor.name
        value = getattr(message, name)
        if descriptor.has_presence and not message.HasField(name):
            found[name] = None
        elif isinstance(value, pb.Watermark):
            found[name] = Watermark(**facts(value))
        elif descriptor.message_type is not None:  # a map: no other message is in a dataclass
            found[name] = dict(value)
        else:
            found[name] = tuple(value) if descriptor.is_repeated else value
    return found


def encode_info(info: EngineInfo) -> bytes:
    message = pb.ToRouter()
    fill(message.hello, info)
    return message.SerializeToString()


def decode_info(hello: pb.EngineInfo) -> EngineInfo:
    return EngineInfo(**facts(hello))


def encode_heartbeat(stats: EngineStats) -> bytes:
    message = pb.ToRouter()
    fill(message.heartbeat.stats, stats)
    return message.SerializeToString()


def decode_stats(heartbeat: pb.Heartbeat) -> EngineStats:
    return EngineStats(**facts(heartbeat.stats))


def encode_progress(phase: str, done: int, total: int) -> bytes:
    progress = pb.Progress(phase=phase, done=done, total=total)
    return pb.ToRouter(progress=progress).SerializeToString()


def encode_submit(request: Request) -> bytes:
    """A request as a ToEngine message."""
    assert request.constraint is None, "constraints are made beside the engine, not sent to it"
    message = pb.ToEngine(
        submit=pb.Submit(
            request_id=request.request_id,
            prompt_ids=request.prompt_ids,
            output_ids=request.output_ids,
            attempt=request.attempt,
            priority=request.priority,
            cache_salt=request.cache_salt,
            arrival=request.arrival,
        )
    )
    fill(message.submit.sampling, request.sampling)
    return message.SerializeToString()


def decode_submit(submit: pb.Submit) -> Request:
    """Raises InvalidRequest for sampling parameters out of range."""
    return Request(
        request_id=submit.request_id,
        prompt_ids=list(submit.prompt_ids),
        sampling=SamplingParams(**facts(submit.sampling)),
        output_ids=list(submit.output_ids),
        attempt=submit.attempt,
        priority=submit.priority,
        cache_salt=submit.cache_salt,
        arrival=submit.arrival,
    )


def encode_abort(request_id: int) -> bytes:
    return pb.ToEngine(abort=request_id).SerializeToString()


def encode_outputs(outputs: Sequence[Output]) -> bytes:
    """All outputs of one step as one ToRouter message."""
    message = pb.ToRouter()
    packed = message.outputs
    packed.request_ids.extend([output.request_id for output in outputs])
    counts = [len(output.token_ids) for output in outputs]
    if any(count != 1 for count in counts):
        packed.counts.extend(counts)
    packed.tokens.extend([token for output in outputs for token in output.token_ids])
    if any(output.finish_reason is not None for output in outputs):
        packed.finish.extend([_TO_WIRE[output.finish_reason] for output in outputs])
    if any(output.logprobs is not None for output in outputs):
        packed.chosen.extend(_chosen(outputs))
    for row, output in enumerate(outputs):
        if output.logprobs is not None and any(each.top_ids for each in output.logprobs):
            _pack_logprobs(packed.tops.add(), row, output.logprobs)
        if output.queue_seconds or output.cached_tokens or output.prompt_logprobs is not None:
            _pack_first(packed.firsts.add(), row, output)
        if output.error is not None:
            _pack_failure(packed.failures.add(), row, output.error)
    return message.SerializeToString()


def decode_outputs(packed: pb.Outputs) -> tuple[list[PlainToken], list[Output]]:
    """The outputs of one step: those that are one more token and nothing else, and the others.

    A request has at most one output in a step, so nothing is lost by taking them apart.
    """
    # slices, since iterating over a packed field costs twice as much
    request_ids, tokens = packed.request_ids[:], packed.tokens[:]
    chosen: list[float | None] = [None if math.isnan(each) else each for each in packed.chosen]
    chosen = chosen or [None] * len(tokens)
    counts, finish = packed.counts[:], packed.finish[:]
    if not (counts or finish or packed.tops or packed.firsts):
        return list(zip(request_ids, tokens, chosen, strict=True)), []
    apart = {each.row for each in packed.tops} | {each.row for each in packed.firsts}
    apart.update(each.row for each in packed.failures)
    ones, unfinished = [1] * len(request_ids), [pb.NONE] * len(request_ids)
    plain: list[PlainToken] = []
    others: dict[int, Output] = {}
    start = 0
    for row, (request_id, count, wire) in enumerate(
        zip(request_ids, counts or ones, finish or unfinished, strict=True)
    ):
        if count == 1 and not wire and row not in apart:
            plain.append((request_id, tokens[start], chosen[start]))
            start += 1
            continue
        end = start + count
        output = others[row] = Output(request_id, tokens[start:end])
        output.finish_reason = _FROM_WIRE[wire]
        known = [TokenLogprobs(each) for each in chosen[start:end] if each is not None]
        output.logprobs = known or None
        start = end
    for top in packed.tops:
        others[top.row].logprobs = _unpack_logprobs(top)
    for first in packed.firsts:
        _unpack_first(first, others[first.row])
    for failure in packed.failures:
        others[failure.row].error = _unpack_failure(failure)
    return plain, list(others.values())


def _chosen(outputs: Sequence[Output]) -> Iterator[float]:
    for output in outputs:
        if output.logprobs is None:
            yield from (math.nan for _ in output.token_ids)
        else:
            yield from (each.logprob for each in output.logprobs)


def _pack_logprobs(packed: pb.RowLogprobs, row: int, logprobs: Sequence[TokenLogprobs]) -> None:
    packed.row = row
    packed.logprobs.extend([each.logprob for each in logprobs])
    packed.top_counts.extend([len(each.top_ids) for each in logprobs])
    packed.top_ids.extend([token for each in logprobs for token in each.top_ids])
    packed.top_logprobs.extend([value for each in logprobs for value in each.top_logprobs])


def _unpack_logprobs(packed: pb.RowLogprobs) -> list[TokenLogprobs]:
    if not packed.top_ids:
        return [TokenLogprobs(logprob) for logprob in packed.logprobs]
    top_ids, top_logprobs = tuple(packed.top_ids), tuple(packed.top_logprobs)
    logprobs: list[TokenLogprobs] = []
    start = 0
    for logprob, count in zip(packed.logprobs, packed.top_counts, strict=True):
        end = start + count
        logprobs.append(TokenLogprobs(logprob, top_ids[start:end], top_logprobs[start:end]))
        start = end
    return logprobs


def _pack_first(first: pb.First, row: int, output: Output) -> None:
    first.row = row
    first.cached_tokens = output.cached_tokens
    first.queue_seconds = output.queue_seconds
    if output.prompt_logprobs is not None:
        known = [each for each in output.prompt_logprobs if each is not None]
        assert len(known) == len(output.prompt_logprobs) - 1, (
            "only position 0 has no log-probability"
        )
        _pack_logprobs(first.prompt_logprobs, row, known)


def _unpack_first(first: pb.First, output: Output) -> None:
    output.cached_tokens = first.cached_tokens
    output.queue_seconds = first.queue_seconds
    if first.HasField("prompt_logprobs"):
        output.prompt_logprobs = [None, *_unpack_logprobs(first.prompt_logprobs)]


def _pack_failure(failure: pb.Failure, row: int, error: RequestError) -> None:
    failure.row = row
    failure.error = type(error).__name__
    failure.message = str(error)
    if isinstance(error, InvalidRequest) and error.param is not None:
        failure.param = error.param
    if isinstance(error, Overloaded):
        failure.retry_after = error.retry_after


def _unpack_failure(failure: pb.Failure) -> RequestError:
    kind: type[RequestError] = getattr(errors, failure.error)
    assert issubclass(kind, RequestError)
    if kind is InvalidRequest:
        return InvalidRequest(failure.message, failure.param if failure.HasField("param") else None)
    if kind is Overloaded:
        return Overloaded(failure.message, failure.retry_after)
    return kind(failure.message)
