from itertools import combinations_with_replacement, product

import pytest

from hetcache_core.costs import Costs
from hetcache_core.error_model import ErrorModel, total_cost
from hetcache_core.local_search import Around
from tests.core.test_plan import WAN, rules, sigmas


@pytest.mark.parametrize("sequence", ["FFPPRFPRPFRRPFPF", "FFRPRPRPPPFPPRFF"])
def test_what_a_change_errs_and_costs_is_worked_out_around_it_alone(sequence):
    costs = Costs(0.37, storing=0.05)
    model = ErrorModel(sigmas(len(sequence)), WAN, costs, rules(cooldown=1))
    around, legal = Around(model, list(sequence)), 0
    for i, j in combinations_with_replacement(range(len(sequence)), 2):
        for new in product("FPR", repeat=2):
            changes = dict(zip((i, j), new, strict=True))
            changed = "".join(changes.get(k, decision) for k, decision in enumerate(sequence))
            assert around.cost(changes) == pytest.approx(total_cost(changed, costs))
            assert around.error(changes) == pytest.approx(model.error(changed))
            legal += model.error(changed) < float("inf")
    assert legal > 100
