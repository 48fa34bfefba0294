"""What models are called: short, unlike each other, and with a way back to what the records say."""

import json

from hypothesis import given
from hypothesis import strategies as st

from overheard.report.titles import LONGEST, Titles, registry_name, whole_title


def spec(name: str = "deepspeech1", **config: object) -> str:
    return json.dumps({"name": name, "config": config})


SMALL = spec("transformer", channels=512, hidden_size=128, num_layers=2, num_heads=4, feedforward_size=256)


def test_a_title_says_name_and_size() -> None:
    titles = Titles.of(["deepspeech1", spec(hidden_size=512), SMALL, "mine:build", None])
    assert titles("deepspeech1") == "DeepSpeech 1"
    assert titles(spec(hidden_size=512)) == "DeepSpeech 1 (512 units)"
    assert titles(SMALL) == "Transformer-CTC (128 units, 2 layers, …)"
    assert titles("mine:build") == "mine:build"
    assert titles(None) == "model not stated"
    assert titles.series(SMALL, "none") == titles(SMALL)
    assert titles.series("deepspeech1", "sign") == "DeepSpeech 1, sign"


def test_what_a_title_leaves_out_can_be_found() -> None:
    titles = Titles.of(["deepspeech1", SMALL, "mine:build"])
    assert titles.explained() == [(titles(SMALL), SMALL)]
    assert "feedforward size 256" in whole_title(SMALL)
    assert (registry_name(SMALL), registry_name("mine:build")) == ("transformer", "mine:build")


def test_settings_that_differ_are_named_where_sizes_do_not_tell() -> None:
    eight = SMALL.replace('"num_heads": 4', '"num_heads": 8')
    titles = Titles.of([SMALL, eight])
    assert titles(SMALL) == "Transformer-CTC (128 units, 2 layers, num heads 4, …)"
    assert titles(eight) == "Transformer-CTC (128 units, 2 layers, num heads 8, …)"
    mel = spec(front_end={"kind": "log_mel", "num_mel": 40})
    other = spec(front_end={"kind": "log_mel", "num_mel": 80})
    assert len(set(Titles.of([mel, other]).by_model.values())) == 2


def test_long_paths_keep_their_end() -> None:
    path = "/data/experiments/of/this/spring/run-12/model.safetensors"
    assert Titles.of([path])(path) == "…" + path[1 - LONGEST :]
    other = path.replace("/data", "/disk")
    assert Titles.of([path, other])(other) == other


def test_the_same_specification_written_twice_is_numbered() -> None:
    one, two = '{"name":"deepspeech1","config":{"clip":5.0}}', '{"config":{"clip":5.0},"name":"deepspeech1"}'
    assert list(Titles.of([one, two]).by_model.values()) == ["DeepSpeech 1 (clip 5.0) #1", "DeepSpeech 1 (clip 5.0) #2"]


MODELS = st.one_of(
    st.none(),
    st.text(max_size=80),
    st.builds(
        lambda name, config: json.dumps({"name": name, "config": config}),
        st.sampled_from(["deepspeech1", "transformer", "other"]),
        st.dictionaries(
            st.sampled_from(["hidden_size", "num_layers", "clip", "cell", "front_end"]),
            st.one_of(st.integers(0, 3), st.text(max_size=30), st.dictionaries(st.text(max_size=3), st.integers())),
        ),
    ),
)


@given(st.lists(MODELS, max_size=6, unique=True))
def test_no_two_models_share_a_title(models: list[str | None]) -> None:
    titles = Titles.of(models)
    assert len({titles(model) for model in models}) == len(models)
