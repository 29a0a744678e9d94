import json

import torch

from benchmarks.traffic import Traffic, main, measure, table
from hetcache_core.tiers import LADDER, MemoryTier

PACKED = MemoryTier(bits=6, turn_bits=2, apart_bits=2, order=1)


def test_views_and_empty_memory_move_nothing():
    with Traffic() as traffic:
        rows = torch.empty(4, 8)
        rows.view(8, 4)[:2].transpose(0, 1)
    assert traffic.bytes == traffic.operations == 0


def test_what_is_read_and_written_is_counted_once():
    a, b, out = torch.ones(3, 10, dtype=torch.float32).unbind(0)
    with Traffic() as traffic:
        torch.add(a, b, out=out)
        a.add_(b)
        out.copy_(a)
    assert traffic.operations == 3 and traffic.bytes == 40 * (3 + 3 + 2)


def test_unpacking_takes_few_passes():
    plain, packed = measure(MemoryTier()), measure(PACKED)
    assert plain["joined"]["times"] < 8 and packed["joined"]["times"] < 17  # 9 and 35 before codes were added in one go
    assert packed["renewed"]["times"] < 27 and packed["renewed"]["operations"] < 600


def test_the_command_writes_a_row_for_each_whole_tier(tmp_path):
    main(["--out", str(tmp_path / "traffic.json")])
    result = json.loads((tmp_path / "traffic.json").read_text())
    assert len(table(result)) == 4 + len(result["rows"]) == 4 + sum(tier.share == 1.0 for tier in LADDER)
