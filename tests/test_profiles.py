"""Profiles: what is common to all heads, a head's own TOML over it, the user's settings over both."""

from amfir.meta.profiles import load_profile


def test_a_heads_own_settings_stand_over_the_common_ones_and_the_users_over_both() -> None:
    assert load_profile("otam").training["learning_rates"] == [1e-3, 5e-3]
    assert load_profile("temporal").training["learning_rates"] == [1e-3]
    assert load_profile("temporal").training["optimizer"] == "adamw"
    chosen = load_profile("temporal", settings=["training.learning_rates=[0.5]", "head.dim=7"])
    assert chosen.training["learning_rates"] == [0.5]
    assert chosen.head["dim"] == 7


def test_the_common_part_is_no_part_of_the_papers() -> None:
    paper = load_profile("trx", "paper").training
    assert (paper["optimizer"], paper["reduction"], paper["batch_episodes"]) == ("sgd", "sum", 16)


def test_variants_of_a_head_share_its_profile() -> None:
    assert load_profile("strm[pooled]", "paper") == load_profile("strm", "paper")
    assert load_profile("chamfer", "paper") == load_profile("match-mean", "paper")
