"""ventoux train: what cannot be trained is told before anything takes long."""

import pytest

from tests.tiny import tiny_config, tiny_draft_config, write_tiny


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "no such folder"),
        (tiny_config(), "a whole model, not a draft"),
        (tiny_draft_config(hidden_size=48), "its hidden_size is 48"),
        (tiny_draft_config(num_hidden_layers=1, first_k_dense_replace=1), "not a draft of this model's shape"),
    ],
)
def test_a_start_that_cannot_be_continued_is_told_before_answers_are_recorded(tmp_path, ventoux, config, said):
    """It used to be found out after recording: ten minutes later, with the published model hours."""
    write_tiny(tmp_path / "model", tokenizer=True)
    if config is not None:
        write_tiny(tmp_path / "start", config=config)
    words = ("train", "draft", tmp_path / "model", "--data", tmp_path / "none", "--out", tmp_path / "out")
    status, _, error = ventoux(*words, "--start-from", tmp_path / "start")
    assert status == 2 and said in error and not (tmp_path / "out").exists()
