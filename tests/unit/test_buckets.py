"""The bucket planner: every step has a planned shape, whatever warm-up had time for."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercore.capabilities import Dimension, StaticDimension
from infercore.engine.bucket_uses import BucketUses
from infercore.engine.buckets import Buckets, first_used, largest_step, plan_buckets
from infercore.errors import ConfigError
from infercore.executor import Bucket

DEVICE = (
    StaticDimension(Dimension.TOKENS, 8),
    StaticDimension(Dimension.ROWS, 4),
    StaticDimension(Dimension.BLOCKS, 4),
)
SUBSETS = st.lists(st.sampled_from(Dimension), unique=True).flatmap(
    lambda chosen: st.tuples(
        *(st.builds(StaticDimension, st.just(each), st.integers(1, 9)) for each in chosen)
    )
)


@given(
    SUBSETS,
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(1, 40),
    st.data(),
)
def test_every_step_fits_into_a_warm_bucket(
    static: tuple[StaticDimension, ...], seqs: int, budget: int, blocks: int, data: st.DataObject
) -> None:
    largest = largest_step(static, seqs, budget)
    assert largest.scheduled == budget
    planned = plan_buckets(static, largest, blocks)
    assert len(set(planned)) == len(planned)
    warm = planned[: data.draw(st.integers(1, len(planned)))] if planned else ()
    buckets = Buckets.of(static, warm)
    tokens = data.draw(st.integers(1, budget))
    rows = data.draw(st.integers(1, min(seqs, tokens)))
    width = data.draw(st.integers(1, blocks))
    shape = buckets.fit(tokens, rows, width)
    padded_rows = shape.rows - rows
    assert padded_rows >= 0
    assert shape.tokens >= tokens + padded_rows
    assert shape.blocks >= width
    own = {Dimension.TOKENS: tokens + padded_rows, Dimension.ROWS: rows, Dimension.BLOCKS: width}
    legal = {each.dimension for each in static}
    for dimension in Dimension:
        if dimension not in legal:
            assert getattr(shape, dimension.value) == own[dimension]
    assert not static or any(
        all(getattr(shape, each.value) == getattr(bucket, each.value) for each in legal)
        for bucket in warm
    )
    most = buckets.largest(budget, seqs, blocks)
    assert (shape.tokens, shape.rows) <= (most.tokens, shape.rows)
    assert shape.rows <= most.rows
    assert shape.blocks <= most.blocks


def test_values_are_legal_and_double() -> None:
    planned = plan_buckets(DEVICE, largest_step(DEVICE, 10, 100), 20)
    assert planned[0] == Bucket(112, 12, 20)
    assert {bucket.rows for bucket in planned} == {4, 8, 12}
    assert {bucket.tokens for bucket in planned} == {8, 16, 32, 64, 112}
    assert {bucket.blocks for bucket in planned} == {4, 8, 16, 20}


def test_a_decode_takes_the_cheapest_bucket() -> None:
    planned = plan_buckets(DEVICE, largest_step(DEVICE, 16, 64), 16)
    buckets = Buckets.of(DEVICE, planned)
    assert buckets.fit(3, 3, 2) == Bucket(8, 4, 4)
    assert buckets.fit(9, 9, 5) == Bucket(16, 16, 8)
    assert buckets.uses == Counter({Bucket(8, 4, 4): 1, Bucket(16, 16, 8): 1})


def test_a_device_that_takes_any_shape_pads_nothing() -> None:
    assert plan_buckets((), largest_step((), 64, 512), 128) == ()
    assert Buckets.of((), ()).fit(5, 2, 3) == Bucket(5, 2, 3)


def test_the_budget_shrinks_to_the_largest_legal_step() -> None:
    static = (StaticDimension(Dimension.TOKENS, 8, maximum=70), DEVICE[1])
    largest = largest_step(static, 8, 512)
    assert (largest.tokens, largest.scheduled) == (64, 57)


@pytest.mark.parametrize(
    ("static", "said"),
    [
        (StaticDimension(Dimension.ROWS, 4, maximum=31), r"max_num_seqs is 64.*at most 28 rows"),
        (StaticDimension(Dimension.TOKENS, 8, maximum=32), r"64 rows.*at most 32; lower"),
    ],
)
def test_more_rows_than_the_device_has_are_refused(static: StaticDimension, said: str) -> None:
    others = tuple(each for each in DEVICE if each.dimension is not static.dimension)
    with pytest.raises(ConfigError, match=said):
        largest_step((static, *others), 64, 512)


def test_what_was_used_most_is_warmed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    planned = plan_buckets(DEVICE, largest_step(DEVICE, 16, 64), 16)
    often, rarely = planned[-1], planned[-2]
    BucketUses("sim", 1).save({often: 7, rarely: 2})
    assert BucketUses("sim", 2).load() == Counter()
    assert first_used(planned, BucketUses("sim", 1).load())[:3] == (planned[0], often, rarely)


def test_a_damaged_file_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uses = BucketUses("sim")
    uses.save({Bucket(8, 4, 4): 1})
    uses.path.write_text('[["many", 4, 4, 1]]')
    assert uses.load() == Counter()
    assert "cannot be used" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "infercore").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    BucketUses("sim").save({Bucket(8, 4, 4): 1})
    assert "is not kept" in caplog.text
