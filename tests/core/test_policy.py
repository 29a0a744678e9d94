import pytest

from hetcache_core.policy import PRESETS, CachePolicy


def test_json_both_ways():
    policy = CachePolicy.preset("fast", warmup=3, memory_share=0.25)
    assert CachePolicy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize("name", PRESETS)
def test_presets_exist_and_say_so(name):
    assert CachePolicy.preset(name).name == name


def test_only_speed_one_and_off_are_exact():
    assert CachePolicy.preset("exact").exact and CachePolicy(method="off").exact
    assert not CachePolicy.preset("balanced").exact


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speed", 0.5), ("speed", 9), ("speed", "fast"), ("speed", float("nan")), ("memory_budget_mb", -1),
        ("warmup", 0), ("warmup", 2.5), ("max_reuse", -1), ("margin_space", True), ("memory_share", 1.5),
        ("forecast_order", 3), ("method", "magic"), ("context_sampling", "best"), ("memory_bits", 5),
        ("forecast_quantity", "noise"), ("schedule", "PFF"), ("schedule", "FXF"), ("schedule", 3),
        ("profile", None), ("speed", True), ("memory_bits", True),
    ],
)  # fmt: skip
def test_nonsense_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        CachePolicy(**{field: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"speed": 2, "sped": 3}', "unknown policy fields: sped"),
        ("{", "not a policy in JSON"),
        ("[1]", "is an object, got list"),
        ('{"speed": 99}', "speed must lie between 1.0 and 8.0, got 99"),
    ],
)
def test_bad_json_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        CachePolicy.from_json(text)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="balanced"):
        CachePolicy.preset("turbo")


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="needs method 'plan'"):
        CachePolicy(method="hetcache", schedule="FP")
    with pytest.raises(ValueError, match="partials is off"):
        CachePolicy(schedule="FP", partials=False)
    with pytest.raises(ValueError, match="unknown policy fields: typo"):
        CachePolicy.preset("fast", typo=1)
