"""Test that a run resumes only on the corpus that it began with."""

import shutil

import pytest

from xactor_platform.data.fingerprint import fingerprint, refuse_changed_corpus
from xactor_platform.data.index_file import load_index


def test_the_same_corpus_is_accepted_and_a_changed_one_is_refused(corpus):
    folder = corpus([20, 30, 40, 50, 60], samples_per_shard=2)
    before = fingerprint(load_index(folder))
    assert list(before) == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    refuse_changed_corpus(before, fingerprint(load_index(folder)), folder)
    shutil.rmtree(folder)
    corpus([20, 30, 40, 51, 60], samples_per_shard=2)
    with pytest.raises(ValueError, match=r"began with: shards 1 changed \(train-000001\.tar\): restore them"):
        refuse_changed_corpus(before, fingerprint(load_index(folder)), folder)


def test_missing_and_new_shards_are_named_up_to_five_of_them():
    before = {f"train-{i:06d}.tar": "a" for i in range(9)}
    with pytest.raises(
        ValueError, match=r"8 missing \(train-000001\.tar, .*train-000005\.tar, \.\.\.\); 1 new \(x\.tar\)"
    ):
        refuse_changed_corpus(before, {"train-000000.tar": "a", "x.tar": "b"}, "s3://b/shards")
