"""How requests are served must not change what they get: design by metamorphosis, no golden text.

Each check serves the same requests twice, with one thing different.
"""

import pytest

from infercore_conformance import AtLeast, Feature, Level, check, thorough
from infercore_conformance import engine_variations as variations
from infercore_conformance.engine_answers import differing_bits
from infercore_conformance.engine_fixtures import Same, Serve
from infercore_conformance.engine_needs import Planned


@check("engine.same.batch", "An answer does not depend on how many rows a step has.")
@pytest.mark.parametrize("rows", [2, pytest.param(7, marks=thorough), 32])
def test_batch_size(serve: Serve, architecture: str, rows: int, same: Same) -> None:
    """Against each request alone. A row that reads another's parameters, seed or keys shows."""
    serving = serve(architecture)
    same(serving, *variations.batch(serving, rows))


@check("engine.same.order", "An answer does not depend on when the other requests came.")
def test_arrival_order(serve: Serve, architecture: str, same: Same) -> None:
    """Rows change places, slots and neighbours, and steps mix prompts with decodes."""
    serving = serve(architecture)
    same(serving, *variations.order(serving))


@check("engine.same.chunk", "An answer does not depend on the chunks that a prompt comes in.")
@pytest.mark.parametrize("tokens", [pytest.param(1, marks=thorough), 7, 64])
def test_chunk_size(serve: Serve, architecture: str, tokens: int, same: Same) -> None:
    """Against whole prompts. Chunks end within blocks, and other rows' decodes share the step."""
    serving = serve(architecture)
    same(serving, *variations.chunk(serving, tokens))


@check("engine.same.prefix_cache", "An answer does not depend on what the prefix cache holds.")
def test_prefix_cache(serve: Serve, architecture: str, same: Same) -> None:
    """Requests start behind blocks that another one wrote, and share them while they run."""
    serving = serve(architecture)
    same(serving, *variations.prefix(serving))


@check("engine.same.preemption", "A request that is preempted gets the answer it would have got.")
def test_preemption(serve: Serve, architecture: str, same: Same) -> None:
    """It starts again in another slot: its output so far is prompt to the model, not to penalties.

    Noise is counted by position, so seeded requests go on with the same draws.
    """
    serving = serve(architecture)
    same(serving, *variations.preemption(serving))


@check("engine.same.block_order", "An answer does not depend on which blocks hold it.")
def test_block_order(serve: Serve, architecture: str, same: Same) -> None:
    """The engine hands out consecutive blocks at first; nothing may rest on that."""
    serving = serve(architecture)
    same(serving, *variations.block_order(serving))


@check("engine.same.used_blocks", "An answer does not depend on what ran before.")
def test_used_blocks(serve: Serve, architecture: str, same: Same) -> None:
    """Blocks still hold others' keys, and slots held others' parameters and counts."""
    serving = serve(architecture)
    same(serving, *variations.used_blocks(serving))


@check(
    "engine.same.step_ahead",
    "An answer does not depend on whether a step is submitted ahead.",
    level=Level.EXTENDED,
    needs=AtLeast("max_in_flight", 2),
)
def test_step_ahead(serve: Serve, architecture: str, same: Same) -> None:
    """The second step takes its tokens from the first one's choice, on the device."""
    serving = serve(architecture)
    same(serving, *variations.step_ahead(serving))


@check("engine.same.failed_step", "After a failed step all requests get what they would have got.")
@pytest.mark.parametrize("kv_intact", [True, False])
def test_failed_step(serve: Serve, architecture: str, kv_intact: bool, same: Same) -> None:
    """The step ran, and its result is lost: slots have counted a token that the engine has not.

    Where the cache is lost too the engine resets the executor, and everyone starts again.
    """
    serving = serve(architecture)
    same(serving, *variations.failed_step(serving, kv_intact=kv_intact))


@check("engine.same.resume", "A request that is resumed elsewhere goes on where it stood.")
def test_resume(serve: Serve, architecture: str, same: Same) -> None:
    """A new engine process gets prompt and output so far, and no more than that."""
    serving = serve(architecture)
    same(serving, *variations.resume(serving))


@check(
    "engine.same.bucket",
    "An answer does not depend on the shape that its steps are padded to.",
    level=Level.EXTENDED,
    needs=Planned(),
)
def test_bucket(serve: Serve, architecture: str, same: Same) -> None:
    """Padding is rows of no slot on block 0, and tokens of no row: neither may reach a real row."""
    serving = serve(architecture)
    same(serving, *variations.bucket(serving))


@check("engine.same.everything", "All of that at once changes no answer.")
@thorough
def test_everything_at_once(serve: Serve, architecture: str, same: Same) -> None:
    """Small steps, few blocks, a prefix cache and a step ahead, against whole prompts in plenty."""
    serving = serve(architecture)
    same(serving, *variations.everything(serving))


@check(
    "engine.same.bits",
    "Served in any way, an answer's log-probabilities are the same to the last bit.",
    level=Level.EXTENDED,
    needs=Feature("batch_invariant"),
)
@pytest.mark.parametrize("variation", variations.VARIATIONS)
def test_bits(serve: Serve, architecture: str, variation: str) -> None:
    """What lets a resumed stream go on exactly, and two runs of an evaluation agree."""
    wrong = differing_bits(*variations.VARIATIONS[variation](serve(architecture)))
    assert not wrong, "; ".join(wrong[:3])
