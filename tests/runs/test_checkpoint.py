"""Checkpoints: exact round trip, and one clear line for whatever can be wrong with one."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.engine.state import init_state
from jaxalign.host.errors import InputError
from jaxalign.runs.checkpoint import Checkpoints

KEY = jax.random.key(3)
SETTINGS = {"learning_rate": 1e-5, "prompts": ["builtin:train"]}


def make_state(value: float = 0.5, step: int = 7):
    params = {"layer": {"scale": jnp.full((3,), value), "kernel": jnp.arange(6.0).reshape(2, 3)}}
    return init_state(params, optax.adam(1e-3)).replace(step=jnp.int32(step))


def save(folder, state, **changes):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, root_key=KEY, config=SETTINGS | changes, wait=False)


def test_what_is_saved_comes_back_bit_by_bit(tmp_path):
    save(tmp_path, make_state(np.pi))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        state, key = checkpoints.restore(make_state(0.0, 0), config=SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(np.pi))
    assert (jax.random.key_data(key) == jax.random.key_data(KEY)).all()


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The step after a save reuses the state's buffers while the write still runs."""
    state = init_state({"kernel": jnp.arange(2.0**24)}, optax.sgd(0.1))
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, root_key=KEY, config=SETTINGS, wait=False)
        for _ in range(5):
            state = jax.block_until_ready(bump(state))
    like = init_state({"kernel": jnp.zeros(2**24)}, optax.sgd(0.1))
    with Checkpoints(tmp_path) as checkpoints:
        saved, _ = checkpoints.restore(like, config=SETTINGS)
    np.testing.assert_array_equal(saved.params["kernel"], np.arange(2.0**24))
    assert int(state.params["kernel"][0]) == 5


def test_only_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step=step), root_key=KEY, config=SETTINGS, wait=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["2", "3"]


def test_nothing_to_resume_from(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="no checkpoint"):
        checkpoints.restore(make_state(), config=SETTINGS)


def test_other_settings_are_named(tmp_path):
    save(tmp_path, make_state())
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(InputError, match="learning_rate was 1e-05 and is now 0.1"):
            checkpoints.restore(make_state(), config=SETTINGS | {"learning_rate": 0.1})


def test_a_setting_that_the_script_has_no_longer_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        older = SETTINGS | {"dropped": 3}
        checkpoints.save(make_state(step=1), root_key=KEY, config=older, wait=True)
    with Checkpoints(tmp_path) as checkpoints:
        gone = "dropped was 3, and this run has no such setting: start it again in another folder"
        with pytest.raises(InputError, match=gone):
            checkpoints.restore(make_state(), config=SETTINGS)
        with pytest.raises(InputError, match="dropped was 3 and is now 4"):
            checkpoints.restore(make_state(), config=SETTINGS | {"dropped": 4})


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (None, "written in format 1, which commit f049777 reads: resume it with that checkout"),
        (99, "written in format 99 by a newer jaxalign: update this one"),
    ],
)
def test_another_format_is_refused_before_any_of_it_is_read(written, line, tmp_path):
    """As f049777 wrote them, with another tree and without a word on the format."""
    import orbax.checkpoint as ocp

    run = {"step": 7, "key": [0, 3], "cursor": 7, "config": {"baseline": "shrinkage"}}
    run |= {} if written is None else {"format": written}
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        state = ocp.args.StandardSave({"params": np.ones(3), "critic": np.ones(2)})
        manager.save(7, args=ocp.args.Composite(state=state, run=ocp.args.JsonSave(run)))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=line) as error:
        checkpoints.restore(make_state(), config=SETTINGS)
    assert "\n" not in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_foreign_checkpoint_is_refused_in_one_line(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(5, args=ocp.args.StandardSave({"weights": np.ones(3)}))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError) as error:
        checkpoints.restore(make_state(), config=SETTINGS)
    assert "not a checkpoint of jaxalign" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    save(tmp_path, make_state())
    shutil.rmtree(tmp_path / "checkpoints" / "7" / "state")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError) as error:
        checkpoints.restore(make_state(), config=SETTINGS)
    assert "damaged" in str(error.value) and "\n" not in str(error.value)


def test_a_torn_write_is_not_taken_for_a_checkpoint(tmp_path):
    """`kill -9` while writing leaves a temporary folder beside the last whole checkpoint."""
    save(tmp_path, make_state())
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp-1").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        state, _ = checkpoints.restore(make_state(0.0, 0), config=SETTINGS)
    assert int(state.step) == 7
