"""Ways to serve the same requests that must give the same answers.

Each runs some requests twice, plainly and in its own way, makes sure that its way was taken, and
returns the requests, what they got plainly, and what they got so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from infercore.engine.request import Request
from infercore.step import Step
from infercore_conformance.engine_answers import Answer, Answers
from infercore_conformance.engine_driver import Driver
from infercore_conformance.engine_serving import TOGETHER, Serving, Setting
from infercore_conformance.engine_traffic import TOKENS, alike, prompts_of, resumed, traffic
from infercore_conformance.engine_wrappers import Failing, Renamed

Pair: TypeAlias = tuple[Sequence[Request], Answers, Answers]
FAILED_STEP = 3
FIRST_TOKENS = 3  # that an earlier attempt gave


def batch(serving: Serving, rows: int) -> Pair:
    """Up to `rows` requests per step, instead of each alone; every third of them is compared."""
    requests = traffic(rows + 1, tokens=4)
    compared = requests[::3]
    return compared, serving.answers(compared), serving.answers(requests, Setting(rows=rows))


def order(serving: Serving) -> Pair:
    """In another order, one more with every step, instead of all at once."""
    requests = traffic(8)
    driver = Driver(serving.engine(TOGETHER))
    for number in np.random.default_rng(5).permutation(len(requests)):
        driver.add([requests[number]])
        driver.step()
    driver.run()
    return requests, serving.answers(requests, TOGETHER), driver.received


def chunk(serving: Serving, tokens: int) -> Pair:
    """At most `tokens` tokens per step, so that prompts come in chunks."""
    requests = traffic(6 if tokens > 1 else 3)
    found = serving.answers(requests, replace(TOGETHER, tokens=tokens))
    return requests, serving.answers(requests, TOGETHER), found


def prefix(serving: Serving) -> Pair:
    """With prompts whose beginning is in the prefix cache."""
    requests = alike(6, shared=_whole_blocks(serving) + 3)
    driver = Driver(serving.engine(replace(TOGETHER, prefix_cache=True)))
    driver.add(requests[:1])
    driver.run()
    driver.add(requests[1:])
    driver.run()
    found = [driver.received[request.request_id].cached_tokens for request in requests[1:]]
    assert min(found) >= serving.block_size, f"tokens found in the cache: {found}"
    return requests, serving.answers(requests, TOGETHER), driver.received


def preemption(serving: Serving) -> Pair:
    """With fewer blocks than the requests grow into, so that some are put back and start again."""
    size, count, tokens = serving.block_size, min(6, serving.rows), serving.tokens(8)
    requests = prompts_of(size - 2, count, tokens)
    enough_for_one = -(-(size - 2 + tokens) // size)
    driver = serving.drive(requests, replace(TOGETHER, blocks=count + enough_for_one))
    assert driver.engine.stats().preemptions, "nobody was preempted"
    return requests, serving.answers(requests, TOGETHER), driver.received


def block_order(serving: Serving) -> Pair:
    """In blocks whose numbers were drawn."""
    requests = traffic(8)
    counts = [serving.blocks(TOGETHER)] * len(serving.groups)
    found = serving.answers(
        requests, TOGETHER, lambda inner: Renamed(inner, counts, serving.block_size)
    )
    return requests, serving.answers(requests, TOGETHER), found


def used_blocks(serving: Serving) -> Pair:
    """In the blocks and slots of others that ended before."""
    requests = traffic(8)
    driver = Driver(serving.engine(TOGETHER))
    others = traffic(16)[8:]
    driver.add(others)
    driver.run()
    driver.add(requests)
    driver.run()
    return requests, serving.answers(requests, TOGETHER), driver.received


def step_ahead(serving: Serving) -> Pair:
    """With a second step submitted before the first one's result is known."""
    requests = traffic(8)
    found = serving.answers(requests, replace(TOGETHER, step_ahead=True))
    return requests, serving.answers(requests, TOGETHER), found


def failed_step(serving: Serving, *, kv_intact: bool) -> Pair:
    """With a step that fails once, after which all go on; kv_intact = False: after a reset."""
    requests = traffic(8, serving.tokens(TOKENS))
    driver = serving.drive(
        requests,
        replace(TOGETHER, step_ahead=True),
        lambda inner: Failing(inner, _nth(FAILED_STEP), kv_intact=kv_intact),
    )
    assert driver.engine.stats().failed_steps == 1
    return requests, serving.answers(requests, TOGETHER), driver.received


def resume(serving: Serving) -> Pair:
    """In a new engine, which is given the first tokens as an earlier attempt's."""
    requests = traffic(8)
    expected = serving.answers(requests, TOGETHER)
    first = [expected[request.request_id].tokens[:FIRST_TOKENS] for request in requests]
    rest = serving.answers(resumed(requests, first), TOGETHER)
    whole = {number: _joined(expected[number], answer) for number, answer in rest.items()}
    return requests, expected, whole


def bucket(serving: Serving) -> Pair:
    """Padded into the largest shape, whatever a step needs."""
    requests = traffic(8, serving.tokens(TOKENS))
    roomy = serving.drive(requests, replace(TOGETHER, buckets=1))
    snug = serving.drive(requests, TOGETHER)
    padding = roomy.engine.stats().padded_tokens, snug.engine.stats().padded_tokens
    assert padding[0] > padding[1] or len(serving.warm) <= 1, f"padded tokens: {padding}"
    return requests, snug.received, roomy.received


def everything(serving: Serving) -> Pair:
    """With small steps, few blocks, the prefix cache and a step ahead, all at once."""
    shared = _whole_blocks(serving)
    requests = [*alike(6, shared), *prompts_of(serving.block_size - 2, 12, tokens=8)[6:]]
    needed = -(-(shared + 20) // serving.block_size)
    setting = Setting(rows=7, tokens=23, blocks=2 * needed + 3, prefix_cache=True, step_ahead=True)
    driver = serving.drive(requests, setting)
    stats = driver.engine.stats()
    assert stats.preemptions or stats.cached_tokens, f"{stats}"
    return requests, serving.answers(requests, TOGETHER), driver.received


VARIATIONS: Mapping[str, Callable[[Serving], Pair]] = {
    "batch": partial(batch, rows=7),
    "order": order,
    "chunk": partial(chunk, tokens=7),
    "prefix": prefix,
    "preemption": preemption,
    "block_order": block_order,
    "used_blocks": used_blocks,
    "step_ahead": step_ahead,
    "failed_step": partial(failed_step, kv_intact=False),
    "resume": resume,
    "bucket": bucket,
    "everything": everything,
}
"""Every one, with the values that hold most."""


def _whole_blocks(serving: Serving) -> int:
    """Tokens of whole blocks: one, or as many as reach beyond the windows of tiny models."""
    size = serving.block_size
    return max(size, 40) // size * size


def _nth(number: int) -> Callable[[Step], bool]:
    """Whether it is asked for the `number`-th time, of steps since it was made."""
    seen = 0

    def is_it(step: Step) -> bool:
        nonlocal seen
        del step
        seen += 1
        return seen == number

    return is_it


def _joined(first: Answer, rest: Answer) -> Answer:
    return Answer(
        [*first.tokens[:FIRST_TOKENS], *rest.tokens],
        [*first.logprobs[:FIRST_TOKENS], *rest.logprobs],
        reason=rest.reason,
    )
