"""How often each bucket was used in earlier runs: a start warms first what it will need."""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple
from hashlib import blake2b
from pathlib import Path

from infercore.executor import Bucket

log = logging.getLogger(__name__)


class BucketUses:
    """A file of one device, model and configuration. Losing it costs time, never an answer.

    key: whatever tells one configuration from another.
    """

    def __init__(self, *key: object) -> None:
        name = blake2b(repr(key).encode(), digest_size=16).hexdigest()
        self.path = _folder() / f"{name}.json"

    def load(self) -> Counter[Bucket]:
        """What was saved; nothing if there is no file, or if it is damaged."""
        try:
            rows = json.loads(self.path.read_bytes())
            return Counter({Bucket(*map(int, shape)): int(uses) for *shape, uses in rows})
        except FileNotFoundError:
            return Counter()
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be used (%s); all buckets count the same", self.path, error)
            return Counter()

    def save(self, uses: Mapping[Bucket, int]) -> None:
        """Replace the file. A folder that cannot be written is told of, and no failure."""
        rows = [[*astuple(bucket), count] for bucket, count in uses.items()]
        part = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(rows))
            part.replace(self.path)
        except OSError as error:
            log.warning("the use of buckets is not kept: %s", error)


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "infercore" / "buckets"
