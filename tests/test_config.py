"""Settings: names, parts, values, and what a wrong one is told."""

import pytest

from expunge import config
from expunge.errors import ConfigurationError
from expunge.losses import NPO, SimNPO
from expunge.methods import METHODS, method
from expunge.training import GeN, NormalizedDifference


def test_parts_by_name_mapping_and_dotted_key() -> None:
    assert method("ngdiff", {"forget": "npo"}).forget == NPO()
    assert method("ngdiff", {"forget": {"name": "npo", "beta": 0.5}}).forget == NPO(beta=0.5)
    assert method("npo", {"forget.beta": 0.2}).forget == NPO(beta=0.2)
    assert method("npo", {"beta": 0.2}).forget == NPO(beta=0.2)
    assert method("npo", {"forget": "simnpo", "forget.delta": 1}).forget == SimNPO(delta=1)


def test_composition_of_any_loss_direction_and_rate() -> None:
    made = method("NPO", {"combine": "normalized-difference", "rate": "gen", "rate.every": 5, "optimizer": "sgd"})
    assert (made.combine, made.rate) == (NormalizedDifference(), GeN(every=5))


@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_the_way_to_yaml_and_back(name) -> None:
    made = method(name, {"seed": 3, "batch_size": 7})
    assert (made.seed, made.batch_size) == (3, 7)
    assert config.build(type(made), config.to_dict(made)) == made


WRONG = [
    ("ngdif", {}, "Did you mean 'ngdiff'"),
    ("ngdiff", {"step": 3}, "Did you mean 'steps'"),
    ("npo", {"betta": 1}, "Did you mean 'beta'"),
    ("npo", {"forget": "npoo"}, "Did you mean 'npo'"),
    ("npo", {"forget.gamma": 1}, "npo has no setting 'gamma'"),
    ("npo", {"lr": -1}, "greater than 0"),
    ("npo", {"lr": "fast"}, "valid number"),
    ("npo", {"optimizer": "adam"}, "'adamw' or 'sgd'"),
    ("npo", {"lr.warmup": 1}, "single value"),
    ("npo", {"forget": {"beta": 1}}, "give its name"),
    ("gradascent", {"retain.top_k": 1}, "none here"),
    ("gradascent", {"combine": "normalizeddifference"}, "needs a retain loss"),
    ("descent", {"forget": "simnpo", "retain": "kl", "top_k": 5}, "top_k"),
]


@pytest.mark.parametrize(("name", "settings", "message"), WRONG)
def test_wrong_settings_are_explained(name, settings, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        method(name, settings)


def test_assignments_read_numbers_words_and_lists() -> None:
    words = ["lr=1e-4", "steps=30", "evaluate=true", "retain=null", "rate=gen", "names=[a, b]", "a=x=y"]
    assert config.parse_settings(words) == {
        "lr": 1e-4, "steps": 30, "evaluate": True, "retain": None, "rate": "gen", "names": ["a", "b"], "a": "x=y",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="key=value"):
        config.parse_settings(["lr"])


def test_yaml_errors_name_file_and_line(tmp_path) -> None:
    bad = tmp_path / "run.yaml"
    bad.write_text("lr: 1\nrate: [gen\n")
    with pytest.raises(ConfigurationError, match=r"run\.yaml:3: not valid YAML"):
        config.read_yaml(bad)
    bad.write_text("- a\n")
    with pytest.raises(ConfigurationError, match="found a list"):
        config.read_yaml(bad)
    with pytest.raises(ConfigurationError, match="no such file"):
        config.read_yaml(tmp_path / "none.yaml")
