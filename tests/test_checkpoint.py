"""Checkpoints: whole or not there, the newest kept, and everything that a run needs to go on."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from zerosearch.errors import RunError, UserError
from zerosearch.inference.models import load_model
from zerosearch.inference.packed import Branch, Tree
from zerosearch.report.files import sweep, whole_folder
from zerosearch.training import checkpoint
from zerosearch.training.checkpoint import (
    TrainingState,
    check_weights,
    checkpoints,
    load_critic,
    load_optimizer,
    load_state,
    save_checkpoint,
    save_model,
)
from zerosearch.training.critic import Critic

TOKENS = tiny.tokenizer()


def trained(steps: int = 3) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    model = tiny.model("qwen2-untied")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    learn(model, optimizer, steps)
    return model, optimizer


def learn(model: PreTrainedModel, optimizer: torch.optim.Optimizer, steps: int) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    for _ in range(steps):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, step: int, keep: int = 1) -> Path:
    return save_checkpoint(folder, *_parts(), TrainingState(step, 10 * step, 0.5), keep)


def _parts(steps: int = 1) -> tuple[PreTrainedModel, object, torch.optim.Optimizer]:
    model, optimizer = trained(steps)
    return model, TOKENS, optimizer


def test_a_checkpoint_is_a_model_that_transformers_loads(tmp_path: Path) -> None:
    model, optimizer = trained()
    made = save_checkpoint(tmp_path, model, TOKENS, optimizer, TrainingState(3, 24, 1.5), keep=1)
    assert made == tmp_path / "step-000003" and checkpoints(tmp_path) == [made]
    loaded = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    for mine, expected in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, expected)
    text = "<search> Alice é </search>"
    assert AutoTokenizer.from_pretrained(made).encode(text) == TOKENS.encode(text)
    assert AutoTokenizer.from_pretrained(made).chat_template == TOKENS.chat_template
    assert load_state(made) == TrainingState(3, 24, 1.5)


def test_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    model, optimizer = trained()
    made = save_checkpoint(tmp_path, model, TOKENS, optimizer, TrainingState(3), keep=1)
    loaded = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    again = torch.optim.AdamW(loaded.parameters(), lr=1e-3, fused=True)
    load_optimizer(made, loaded, again)
    learn(model, optimizer, 3)
    learn(loaded, again, 3)
    for mine, expected in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, expected)
        assert {key: value.dtype for key, value in again.state[mine].items()} == {
            key: value.dtype for key, value in optimizer.state[expected].items()
        }


def test_moments_go_where_the_parameters_are(tmp_path: Path) -> None:
    """All of them: a fused AdamW on a GPU refuses a step that it finds on the CPU."""
    model, optimizer = trained()
    made = save_checkpoint(tmp_path, model, TOKENS, optimizer, TrainingState(3), keep=1)
    elsewhere = model.to("meta")
    again = torch.optim.AdamW(elsewhere.parameters())
    load_optimizer(made, elsewhere, again)
    for parameter in elsewhere.parameters():
        assert {name: value.device.type for name, value in again.state[parameter].items()} == dict.fromkeys(
            checkpoint.MOMENTS, "meta"
        )


def some_critic(seed: int = 0) -> tuple[Critic, torch.optim.Optimizer]:
    critic = Critic(tiny.model("qwen2-untied", seed=seed))
    return critic, torch.optim.AdamW(critic.parameters(), lr=1e-3, fused=True)


def value(critic: Critic, optimizer: torch.optim.Optimizer, steps: int) -> None:
    tree = Tree([5, 6], [Branch([7, 8, 9], [True] * 3)])
    for _ in range(steps):
        (critic.values([tree]) - 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_critic_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    critic = some_critic()
    value(*critic, steps=3)
    made = save_checkpoint(tmp_path, *_parts(), TrainingState(3, kl_coefficient=0.1 + 0.2), 1, critic)
    assert sorted(path.name for path in (made / "critic").iterdir()) == ["model.safetensors", "optimizer.safetensors"]
    assert load_state(made).kl_coefficient == 0.1 + 0.2
    again = some_critic(seed=1)
    load_critic(made, *again)
    value(*critic, steps=3)
    value(*again, steps=3)
    for mine, expected in zip(again[0].parameters(), critic[0].parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_or_missing_critic_is_named_with_its_checkpoint(tmp_path: Path, name: str) -> None:
    made = save_checkpoint(tmp_path, *_parts(), TrainingState(1), 1, some_critic())
    for damage in (truncated, Path.unlink):
        damage(made / "critic" / name)
        with pytest.raises(RunError, match=rf"{name} cannot be read .+ delete the folder {made} and resume"):
            load_critic(made, *some_critic())


def test_a_deletion_that_is_broken_off_leaves_no_part_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)

    def broken_off(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / "model.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", broken_off)
        save(tmp_path, 2, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002"]
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(text: str) -> None:
        with whole_folder(tmp_path / "folder") as temporary:
            (temporary / "a").write_text(text)
            (temporary / "b").write_text(text)

    def broken_off(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / "a").unlink()
            raise KeyboardInterrupt

    write("old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", broken_off)
        write("new")
    assert {path.name: path.read_text() for path in (tmp_path / "folder").iterdir()} == {"a": "new", "b": "new"}
    write("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_only_the_newest_are_kept_and_other_folders_left_alone(tmp_path: Path) -> None:
    (tmp_path / "warm-start").mkdir()
    for step in (1, 2, 10, 9):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000009", "step-000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009", "step-000010", "warm-start"]


def test_a_step_that_is_done_again_takes_the_old_ones_place(tmp_path: Path) -> None:
    made = save(tmp_path, 1)
    (made / "old").touch()
    assert save(tmp_path, 1) == made and not (made / "old").exists()


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_rust(*_: object, **__: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["model", "tokenizer", "moments", "rename"])
@pytest.mark.parametrize(
    ("trouble", "seen"), [(no_space, RunError), (no_space_in_rust, RunError), (killed, KeyboardInterrupt)]
)
def test_trouble_while_writing_leaves_the_earlier_checkpoint_and_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    trouble: Callable[..., None],
    seen: type[BaseException],
) -> None:
    earlier = save(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    model, tokens, optimizer = _parts()
    patched = {
        "model": (type(model), "save_pretrained"),
        "tokenizer": (type(TOKENS), "save_pretrained"),
        "moments": (checkpoint, "save_file"),
        "rename": (os, "replace"),
    }[where]
    if where == "rename" and trouble is no_space_in_rust:
        trouble = no_space
    with monkeypatch.context() as patch:
        patch.setattr(*patched, trouble)
        with pytest.raises(seen) as error:
            save_checkpoint(tmp_path, model, tokens, optimizer, TrainingState(2), keep=1)
    if seen is RunError:
        assert str(tmp_path) in str(error.value) and "free some space" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    assert save(tmp_path, 2).is_dir()


def test_what_a_killed_process_leaves_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    left = tmp_path / ".step-000002.tmp"
    left.mkdir()
    (left / "state.json").write_text("{}")
    (tmp_path / "step-000003").mkdir()
    assert checkpoints(tmp_path) == []
    save(tmp_path, 2)
    assert not left.exists()


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise SafetensorError("header too large")

    monkeypatch.setattr(checkpoint, "save_file", defect)
    with pytest.raises(SafetensorError, match="header too large"):
        save(tmp_path, 1)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled(path: Path) -> None:
    path.write_bytes(bytes(reversed(range(256))) * 8)


READERS = {
    "state.json": load_state,
    "model.safetensors": check_weights,
    "optimizer.safetensors": lambda made: load_optimizer(made, *trained(0)),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", [truncated, emptied, garbled])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    older, made = save(tmp_path, 1, keep=2), save(tmp_path, 2, keep=2)
    (tmp_path / "warm-start").mkdir()
    READERS[name](made)
    damage(made / name)
    with pytest.raises(RunError) as error:
        READERS[name](made)
    said = str(error.value)
    assert said.startswith(f"{made / name} cannot be read (") and "\n" not in said
    assert said.endswith(f"delete the folder {made} and resume the run to go on from the older {older.name}")
    damage(older / name)
    with pytest.raises(RunError, match=f"delete the folder {older} and resume the run to do this stage again"):
        READERS[name](older)


def test_a_state_of_other_fields_and_missing_moments_are_damage_too(tmp_path: Path) -> None:
    made = save(tmp_path, 1)
    (made / "state.json").write_text('{"step": 1, "age": 3}')
    (made / "optimizer.safetensors").unlink()
    for name in ("state.json", "optimizer.safetensors"):
        with pytest.raises(RunError, match=f"{made / name} cannot be read"):
            READERS[name](made)


def test_moments_that_one_parameter_lacks_are_damage_but_before_the_first_update_there_are_none(tmp_path: Path) -> None:
    made = save(tmp_path, 1)
    moments = made / "optimizer.safetensors"
    stored = load_file(moments)
    del stored["model.norm.weight:exp_avg_sq"]
    save_file(stored, moments)
    with pytest.raises(RunError, match=rf"{moments} cannot be read \(model.norm.weight:exp_avg_sq is missing\)"):
        READERS[moments.name](made)
    early = save_checkpoint(tmp_path / "early", *_parts(steps=0), TrainingState(1), keep=1)
    READERS[moments.name](early)


def test_damaged_weights_of_the_warm_start_are_made_again_not_taken_from_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save_model(tiny.model(), TOKENS, tmp_path / "warm-start")
    truncated(tmp_path / "warm-start" / "model.safetensors")
    with pytest.raises(RunError, match="do this stage again"):
        check_weights(tmp_path / "warm-start")


def test_a_damaged_model_of_ones_own_is_one_sentence(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "mine")
    truncated(folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"the model '{folder}' cannot be loaded: .+") as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_a_model_folder_is_written_whole_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(TOKENS), "save_pretrained", no_space)
        with pytest.raises(RunError, match="free some space"):
            save_model(tiny.model(), TOKENS, tmp_path / "warm-start")
    assert list(tmp_path.iterdir()) == []
    save_model(tiny.model(), TOKENS, tmp_path / "warm-start")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "warm-start")
