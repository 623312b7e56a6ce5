"""Keys are random, say what they open, and are kept as hashes only."""

import hashlib
import re

import pytest

from fedcybgd.coordinator.services.records import keys


@pytest.mark.parametrize("prefix", [keys.OPERATOR, keys.AGENT, keys.TOKEN])
def test_a_key_has_256_random_bits_behind_its_prefix(prefix: str) -> None:
    made = {keys.new_key(prefix) for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(prefix + r"[A-Za-z0-9_-]{43}", key) for key in made), "43 base64 characters are 32 bytes"


def test_prefixes_tell_keys_apart() -> None:
    assert len({keys.OPERATOR, keys.AGENT, keys.TOKEN}) == 3


def test_the_hash_is_that_of_the_whole_key_and_does_not_show_it() -> None:
    key = keys.new_key(keys.AGENT)
    assert keys.key_hash(key) == hashlib.sha256(key.encode()).hexdigest()
    assert keys.key_hash(key) != keys.key_hash(key[:-1])
    assert key.removeprefix(keys.AGENT) not in keys.key_hash(key)


def test_ids_are_unique_and_fit_their_column_and_the_paths() -> None:
    made = {keys.new_id("asg") for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(r"asg_[0-9a-f]{16}", i) for i in made)
    assert max(map(len, made)) <= 40
