"""From model, examples and trajectory to a store: the numbers, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import base, make_examples, make_trajectory, small, with_lora

from gtp_exp.cache import StageResult
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.checkpoints import load_moments, load_trainable
from gtp_exp.gradients.collect import collect
from gtp_exp.gradients.directions import Direction, apply_direction
from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.gradients.engines.packed import PackedEngine
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.sketch import Sketch, SketchKind, make_projection
from gtp_exp.gradients.store import StorageType
from gtp_exp.gradients.store_command import main
from gtp_exp.model.lora import base_model
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.parameters import trainable_parameters
from gtp_exp.stages.gradients import proven_engine

SETTINGS = GradientConfig(
    directions=[Direction.SGD, Direction.ADAM, Direction.LESS],
    sketch=Sketch(SketchKind.COUNTSKETCH, 128, 1),
    seed=7,
    reduction=Reduction.MEAN,
    storage=StorageType.FLOAT32,
    engine=Engine.AUTO,
    shard_rows=8,
    token_budget=64,
)


@pytest.fixture(scope="module")
def model():
    return small(r=4)


@pytest.fixture(scope="module")
def trajectory(model, tmp_path_factory):
    return make_trajectory(model, tmp_path_factory.mktemp("trajectory"))


@pytest.fixture(scope="module")
def examples():
    return make_examples(19)


@pytest.fixture(scope="module")
def store(model, trajectory, examples, tmp_path_factory):
    return collect(model, examples, trajectory, tmp_path_factory.mktemp("store"), SETTINGS)


def expected_rows(model, checkpoint, examples, direction, sketch, index, seed=7):
    """One example at a time, with nothing of the collector but the formulas."""
    load_trainable(model, checkpoint)
    parameters = trainable_parameters(model)
    moments = load_moments(checkpoint, list(parameters), "cpu")
    sizes = {name: p.numel() for name, p in parameters.items()}
    projection = make_projection(sketch, sizes, seed=seed, checkpoint=index, device="cpu")
    rows, norms = [], []
    for example in examples:
        into, square = projection.empty(1), 0.0
        for name, g in reference_gradients(model, parameters, example, Reduction.MEAN).items():
            step = apply_direction(
                direction,
                g.reshape(1, -1),
                moments[name].exp_avg.flatten(),
                moments[name].exp_avg_sq.flatten(),
                step=checkpoint.step,
                betas=(0.9, 0.999),
                eps=1e-8,
            )
            square += float(step.square().sum())
            projection.add(name, step, into)
        rows.append(projection.finish(into)[0])
        norms.append(square**0.5)
    return torch.stack(rows), torch.tensor(norms)


@pytest.mark.parametrize("direction", list(Direction))
def test_the_store_holds_what_the_definition_says(model, trajectory, examples, store, direction):
    assert store.ids == tuple(e.id for e in examples)
    assert store.n_tokens.tolist() == [e.n_completion_tokens for e in examples]
    assert store.learning_rates == (0.1, 0.05)
    assert (store.n, store.dim, store.directions) == (19, 128, ("sgd", "adam", "less"))
    for t, checkpoint in enumerate(trajectory):
        expected, norms = expected_rows(model, checkpoint, examples, direction, SETTINGS.sketch, t)
        found = store.features(t, direction.value).rows(torch.arange(19))
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * scale)
        torch.testing.assert_close(store.norms(t, direction.value), norms, rtol=1e-3, atol=0)


def test_checkpoints_differ_in_gradients_and_in_sketch(store):
    first, second = (store.features(t, "sgd").rows(torch.arange(19)) for t in range(2))
    cosine = torch.nn.functional.cosine_similarity(first, second)
    # One trajectory: the gradients themselves are nearly parallel. Independent sketches are not.
    assert float(cosine.abs().mean()) < 0.3


def test_pool_and_target_share_the_sketch(model, trajectory, examples, store, tmp_path):
    """So the target, collected on its own with one direction, gives the very rows it has in the pool."""
    part = [examples[3], examples[11]]
    target = collect(model, part, trajectory, tmp_path, replace(SETTINGS, directions=[Direction.LESS]))
    for t in range(2):
        torch.testing.assert_close(
            target.features(t, "less").rows(torch.arange(2)),
            store.features(t, "less").rows(torch.tensor([3, 11])),
            rtol=1e-4,
            atol=1e-2,
        )
    with pytest.raises(UserError, match="holds the directions less, not sgd"):
        target.features(0, "sgd")


@pytest.mark.parametrize(
    "changed",
    [
        {"shard_rows": 100},
        {"shard_rows": 1},
        {"token_budget": 20},
        {"token_budget": None},
        {"engine": Engine.HOOKS},
    ]
    + [{"engine": Engine.AUTOGRAD}],
    ids=str,
)
def test_shards_batches_and_engine_do_not_enter_the_numbers(
    model, trajectory, examples, store, tmp_path, changed
):
    other = collect(model, examples, trajectory, tmp_path, replace(SETTINGS, **changed))
    for t in range(2):
        for direction in ("sgd", "less"):
            mine, theirs = (s.features(t, direction).rows(torch.arange(19)) for s in (store, other))
            torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-3 * float(mine.abs().max()))


def test_a_store_is_not_taken_for_that_of_another_base_or_of_adapters_that_count_otherwise(tmp_path):
    """The trained values are the same in all of them."""
    rows, settings = make_examples(5), replace(SETTINGS, directions=[Direction.SGD])
    one = small(r=4)
    (untuned,) = make_trajectory(one, tmp_path / "trajectory")[:1]
    first = collect(one, rows, [untuned], tmp_path / "store", settings)
    assert collect(one, rows, [untuned], tmp_path / "store", settings).key == first.key
    other_base = small(r=4)
    with torch.no_grad():
        base_model(other_base).model.layers[0].mlp.up_proj.weight.mul_(1.5)
    louder = small(r=4)
    for module in louder.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 4 * value for name, value in module.scaling.items()}
    for model in (other_base, louder):
        with pytest.raises(UserError, match="holds gradients with other settings .frozen."):
            collect(model, rows, [untuned], tmp_path / "store", settings)


def test_without_a_sketch_the_rows_are_the_gradients(model, trajectory, examples, tmp_path):
    settings = replace(SETTINGS, sketch=Sketch(SketchKind.NONE, 0, 0), directions=[Direction.SGD])
    found = collect(model, examples[:5], trajectory[1:], tmp_path, settings).features(0, "sgd")
    load_trainable(model, trajectory[1])
    parameters = trainable_parameters(model)
    for row, example in zip(found.rows(torch.arange(5)), examples[:5], strict=True):
        gradients = reference_gradients(model, parameters, example, Reduction.MEAN).values()
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in gradients]), rtol=1e-4, atol=1e-5)


def test_full_fine_tuning_has_the_same_interface(examples, tmp_path):
    model = base("llama").requires_grad_(True)
    trajectory = make_trajectory(model, tmp_path)
    store = collect(model, examples[:4], trajectory, tmp_path / "store", SETTINGS)
    for direction in (Direction.SGD, Direction.ADAM):
        expected, _ = expected_rows(model, trajectory[1], examples[:4], direction, SETTINGS.sketch, 1)
        found = store.features(1, direction.value).rows(torch.arange(4))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_the_model_is_left_as_it_was_found(model, trajectory, examples, tmp_path):
    load_trainable(model, trajectory[1])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    base_model(model).model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    with torch.no_grad():
        collect(model, examples[:3], trajectory[:1], tmp_path, SETTINGS)
    assert [m.training for m in model.modules()] == modes
    model.eval()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_what_has_no_gradient_is_refused_by_id(model, trajectory, examples, tmp_path):
    empty = TokenizedExample("no-answer", (3, 4, 5), (3, IGNORE, IGNORE))
    with pytest.raises(UserError, match="no-answer"):
        collect(model, [*examples, empty], trajectory, tmp_path, SETTINGS)
    with pytest.raises(UserError, match="not unique"):
        collect(model, [examples[0], replace(examples[1], id=examples[0].id)], trajectory, tmp_path, SETTINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"directions": []},
        {"directions": [Direction.SGD, Direction.SGD]},
        {"shard_rows": 0},
        {"token_budget": 0},
    ],
)
def test_settings_that_collect_nothing_are_refused_before_a_job_warms_up(wrong):
    with pytest.raises(UserError, match=f"gradients.{next(iter(wrong))}"):
        replace(SETTINGS, **wrong)


@pytest.mark.parametrize("place", [0, 11], ids=["in_the_checked_batch", "later"])
@pytest.mark.parametrize("engine", [Engine.PACKED, Engine.HOOKS, Engine.AUTOGRAD])
def test_a_row_that_is_not_finite_is_quarantined_and_moves_no_other_row(tmp_path, engine, place, capsys):
    model = small("llama")  # input and output embeddings apart
    trajectory = make_trajectory(model, tmp_path)
    with torch.no_grad():
        base_model(model).get_input_embeddings().weight[2] = float("nan")
    examples = make_examples(12)
    settings = replace(SETTINGS, engine=engine, shard_rows=6, token_budget=1000)  # a batch is a shard
    sound = collect(model, examples, trajectory, tmp_path / "sound", settings)
    poisoned = replace(examples[place], id="poisoned", input_ids=(2, *examples[place].input_ids[1:]))
    rows = [*examples[:place], poisoned, *examples[place + 1 :]]
    store = collect(model, rows, trajectory, tmp_path / "store", settings)
    assert sound.quarantined.tolist() == [] and store.quarantined.tolist() == [place]
    others = torch.tensor([i for i in range(12) if i != place])
    for t in range(2):
        for d in store.directions:
            found, expected = store.features(t, d), sound.features(t, d)
            assert torch.equal(found.rows(others), expected.rows(others))
            assert not found.rows(torch.tensor([place])).any() and not torch.isfinite(
                store.norms(t, d)[place]
            )
    assert main([str(tmp_path / "store")]) == 0
    assert "quarantined  1 rows, not finite: poisoned" in capsys.readouterr().out


def test_a_store_without_a_finite_row_is_shown(tmp_path, capsys):
    model = small("llama")
    trajectory = make_trajectory(model, tmp_path, segments=1)
    with torch.no_grad():
        base_model(model).get_input_embeddings().weight[2] = float("nan")
    rows = [replace(row, input_ids=(2, *row.input_ids[1:])) for row in make_examples(3)]
    settings = replace(SETTINGS, engine=Engine.AUTOGRAD)
    assert len(collect(model, rows, trajectory, tmp_path / "store", settings).quarantined) == 3
    assert main([str(tmp_path / "store")]) == 0
    shown = capsys.readouterr().out
    assert all(f"{direction}: no row is finite" in shown for direction in ("sgd", "adam", "less"))


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 24,
}


@pytest.mark.parametrize("engine", [Engine.AUTO, Engine.HOOKS])
@pytest.mark.parametrize("proven", [None, Engine.PACKED])
@pytest.mark.parametrize("rope", [LONGROPE, {"rope_type": "dynamic", "factor": 4.0}], ids=["long", "dynamic"])
def test_a_long_row_in_a_later_shard_changes_the_positions_of_no_other(tmp_path, rope, proven, engine):
    """These kinds of RoPE take their scale from the longest row of a batch."""
    context = 24 if rope["rope_type"] == "dynamic" else 96
    parameters = {"rope_theta": 10000.0, **rope}
    model = with_lora(base("llama", max_position_embeddings=context, rope_parameters=parameters))
    trajectory, rows = make_trajectory(model, tmp_path, segments=1), make_examples(12)
    long = max(rows, key=lambda row: row.n_tokens)
    rows[10] = replace(long, id="long", input_ids=long.input_ids * 3, labels=long.labels * 3)
    settings = replace(SETTINGS, directions=[Direction.SGD], engine=engine, token_budget=1000)
    with pytest.warns(UserWarning, match="one by one.* a row has .* tokens, and beyond 24"):
        store = collect(model, rows, trajectory, tmp_path / "store", settings, proven=proven)
    assert store.about["engine"] == "autograd"
    expected, _ = expected_rows(model, trajectory[0], rows, Direction.SGD, SETTINGS.sketch, 0)
    torch.testing.assert_close(store.features(0, "sgd").rows(torch.arange(12)), expected)
    proven = proven_engine(StageResult(tmp_path, "", 0.0, cached=False))  # for the target behind such a pool
    short = collect(model, rows[:10], trajectory, tmp_path / "short", settings, proven=proven)
    assert short.about["engine"] == ("packed" if engine is Engine.AUTO else "hooks")


def test_progress_shows_both_rates(model, trajectory, examples, tmp_path, capfd):
    collect(model, examples, trajectory, tmp_path, SETTINGS, label="pool")
    shown = capfd.readouterr().err
    assert "pool: 100%" in shown and "examples/s" in shown and "tok/s" in shown


def test_a_neighbour_that_a_row_without_a_finite_gradient_has_spoiled_is_computed_anew(tmp_path, monkeypatch):
    """On some machines a matrix product multiplies what stands behind a row by zero, which is NaN for NaN."""
    own, spoilt = PackedEngine.run, []

    def spoiling(engine, batch, consume):
        next_to_it = [
            (i or len(batch)) - 1 for i, e in enumerate(batch) if e.id == "poisoned" and len(batch) > 1
        ]
        spoilt.extend(batch[i].id for i in next_to_it)
        own(
            engine,
            batch,
            lambda name, g: consume(name, g.index_fill(0, torch.tensor(next_to_it).long(), torch.nan)),
        )

    model, rows = small("llama"), make_examples(7)
    trajectory = make_trajectory(model, tmp_path, segments=1)
    with torch.no_grad():
        base_model(model).get_input_embeddings().weight[2] = float("nan")
    settings = replace(SETTINGS, directions=[Direction.SGD], token_budget=1000, engine=Engine.PACKED)
    plain = collect(model, rows, trajectory, tmp_path / "plain", settings)
    rows[3] = replace(rows[3], id="poisoned", input_ids=(2, *rows[3].input_ids[1:]))
    monkeypatch.setattr(PackedEngine, "run", spoiling)
    found = collect(model, rows, trajectory, tmp_path / "spoilt", settings)
    assert len(spoilt) == 2 and found.quarantined.tolist() == [3]  # by the check of the engine, and after it
    others = torch.tensor([i for i in range(len(rows)) if i != 3])
    torch.testing.assert_close(
        found.features(0, "sgd").rows(others), plain.features(0, "sgd").rows(others), rtol=1e-4, atol=1e-6
    )
