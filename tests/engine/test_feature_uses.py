"""Uses of features: attributes without a class of features, attacks on pixels, and edits, each beside its control."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError, StoreError
from headspan.features.learners.make import make_learner
from headspan.features.pairs.space import HEADS, Space
from headspan.features.pairs.units import units
from headspan.features.scores.result import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNDECIDED, FeatureScores
from headspan.features.training.dictionary import Dictionary
from headspan.features.uses.attack import attack
from headspan.features.uses.bias import probe_bias
from headspan.features.uses.chosen import chosen_classes
from headspan.features.uses.defence import GRADIENTS, Defence
from headspan.features.uses.edit import edit
from headspan.features.uses.edit_study import edit_study
from headspan.features.uses.exchange import Exchanger
from headspan.features.uses.filtered import each_filtered, filtered, mean_squares
from headspan.features.uses.live_model import LiveModel
from headspan.features.uses.matched import matched_features
from headspan.features.uses.pgd import Search, margins, pgd
from headspan.features.uses.probe import fit_probe
from headspan.features.uses.saved import read_use
from headspan.features.uses.stored_pixels import stored_pixels
from headspan.tasks.attribute_task import attribute_task
from headspan.tasks.factors import Factors
from headspan.tasks.task import Task
from headspan.texts.vectors import text_vectors
from headspan.world.planted import write_planted_shards
from tests.conftest import ToyRun
from tests.tolerances import FLOAT32_SUM, ORACLE_FLOAT32, relative_error

COUNTS = {("red", "circle"): 20, ("blue", "square"): 14, ("red", "square"): 7, ("blue", "circle"): 7}
PLANTED = Task("shape", "worst_group", classes=("circle", "square"), templates=("a {c}",), groups=("colour",))
QUICK = Search(steps=2, restarts=1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    folder = tmp_path_factory.mktemp("planted")
    shards = write_planted_shards(folder / "shards", COUNTS, seed=5)
    hs.precompute(shards=[shards], out=folder / "run.zarr", model="reference", layers="last1", device="cpu")
    return hs.open(folder / "run.zarr")


@pytest.fixture(scope="module")
def small(planted: hs.Store, toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """The same images by the toy model, which is attacked in no time."""
    path = tmp_path_factory.mktemp("small") / "run.zarr"
    settings = toy_run.settings(shards=[shard.url for shard in planted.shards()], emit=("heads",))
    hs.precompute(out=path, **settings)
    return hs.open(path)


@pytest.fixture(scope="module")
def colour_and_rest(planted: hs.Store) -> Dictionary:
    return _axes(planted)


def _axes(store: hs.Store) -> Dictionary:
    """A dictionary of the joint space's axes, up and down, in a basis whose first axis is what tells colours.

    Every vector is a sum of its features, so nothing is left over.
    """
    known = _metadata(store, "colour", "shape")
    vectors = units(store.embedding).astype(np.float64)
    means = {pair: vectors[[each == pair for each in known]].mean(axis=0) for pair in COUNTS}
    # Within shapes, since most circles are red.
    away = means["red", "circle"] + means["red", "square"] - means["blue", "circle"] - means["blue", "square"]
    random = np.random.default_rng(0).standard_normal((store.joint, store.joint - 1))
    basis, _ = np.linalg.qr(np.column_stack([away, random]))
    learner = make_learner("topk", store.joint, features=2 * store.joint, k=store.joint)
    with torch.no_grad():
        rows = torch.from_numpy(np.concatenate([basis.T, -basis.T])).float()
        learner.get_parameter("W_dec").copy_(rows)
        learner.get_parameter("W_enc").copy_(rows.T)
        for name in ("b_enc", "b_dec"):
            learner.get_parameter(name).zero_()
    return Dictionary(Path("axes"), learner.eval(), Space("embedding", store.joint), "axes", {})


@pytest.fixture(scope="module")
def scores(planted: hs.Store) -> FeatureScores:
    return _scores_of_axes(planted.joint)


def _scores_of_axes(joint: int) -> FeatureScores:
    """The axis of colour, both ways, is image-dominant; one other axis is text-dominant; the rest is cross-modal."""
    classes = np.full(2 * joint, CROSS_MODAL, np.int8)
    classes[[0, joint]] = IMAGE_DOMINANT
    classes[[1, joint + 1]] = TEXT_DOMINANT
    return _scores(classes)


def _scores(classes: np.ndarray, **changed: Any) -> FeatureScores:
    found: dict[str, Any] = {each.name: None for each in fields(FeatureScores)}
    found |= {"run": "axes", "dictionary": "axes", "dictionary_sha256": "axes", "learner": "topk", "pairs": 48}
    return FeatureScores(**{**found, "class_by_interval": classes, "active": np.full(len(classes), 30), **changed})


def _no_work(*given: Any, **more: Any) -> None:
    raise AssertionError("the work begins")


def _metadata(store: hs.Store, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(json.loads(text)[key] for key in keys) for text in store.samples()["metadata"].to_pylist()]


def test_a_class_is_chosen_by_its_interval() -> None:
    classes = np.array([IMAGE_DOMINANT, UNDECIDED, CROSS_MODAL, IMAGE_DOMINANT], np.int8)
    chosen = chosen_classes(_scores(classes), ["image-dominant", "text-dominant"])
    assert {name: members.tolist() for name, members in chosen.items()} == {
        "image-dominant": [True, False, False, True]
    }
    with pytest.raises(SettingsError, match="'vision': there is no such class; choose one of image-dominant"):
        chosen_classes(_scores(classes), ["vision"])
    with pytest.raises(SettingsError, match=r"is text-dominant by the scores of run 'axes' \(image-dominant 2, "):
        chosen_classes(_scores(classes), ["text-dominant"])


@pytest.mark.parametrize("size", [1, 3, 60])
def test_random_features_are_as_many_and_have_the_energy_of_the_class(size: int) -> None:
    random = np.random.default_rng(size)
    energies = random.pareto(1.0, 257)
    members = np.zeros(257, bool)
    # Of middling energy, so that there are as many outside with less and with more.
    members[np.argsort(energies)[100 : 100 + size]] = True
    alive = np.ones(257, bool)
    alive[:5] = False
    drawn = matched_features(members, energies, alive, draws=7, seed=1, tolerance=0.05)
    assert drawn.members.shape == (7, 257)
    assert not (drawn.members & (members | ~alive)).any()
    assert (drawn.members.sum(axis=1) == size).all()
    target = energies[members].sum()
    np.testing.assert_allclose(drawn.members @ energies, target, rtol=0.05)
    np.testing.assert_allclose(drawn.energies, drawn.members @ energies / target)
    assert len({tuple(each) for each in drawn.members.tolist()}) > (1 if size > 1 else 0)
    again = matched_features(members, energies, alive, draws=7, seed=1, tolerance=0.05)
    assert np.array_equal(drawn.members, again.members)


def test_a_class_with_most_of_the_energy_shares_features_with_its_control() -> None:
    energies = np.array([8.0, 7.0, 1.0, 1.0, 1.0, 9.0, 6.0])
    members = np.array([True, True, False, False, False, False, False])
    drawn = matched_features(members, energies, np.ones(7, bool), draws=4)
    # Nothing but 9 and 6 has the energy 15 outside the class.
    assert drawn.members[:, [5, 6]].all()
    assert drawn.shared == 0
    energies[6] = 0.5
    drawn = matched_features(members, energies, np.ones(7, bool), draws=4)
    assert drawn.shared > 0
    assert drawn.remarks == ("no set outside the class has its energy, so random sets share features with it",)
    members[2:] = True
    nothing = matched_features(members[:1], energies[:1], np.zeros(1, bool), draws=4)
    assert nothing.members.all(), "the only feature is its own control"
    too_many = matched_features(np.array([True, False]), np.array([5.0, 1.0]), np.array([False, True]), draws=2)
    assert too_many.shared == 1


def test_vectors_lose_the_features_that_are_removed_and_keep_the_residual() -> None:
    torch.manual_seed(3)
    learner = make_learner("topk", 8, features=21, k=3).eval()
    vectors = units(np.random.default_rng(3).standard_normal((5001, 8)).astype(np.float32))
    keep = np.random.default_rng(4).random(21) < 0.5
    codes = learner.encode(torch.from_numpy(vectors)).detach().numpy()
    rows = learner.get_parameter("W_dec").detach().numpy()
    kept, dropped = (next(each_filtered(learner, vectors, keep[None], each)) for each in ("kept", "dropped"))
    wanted = vectors - (codes * ~keep) @ rows
    assert relative_error(kept, wanted) < FLOAT32_SUM
    assert relative_error(dropped, (codes * keep) @ rows) < FLOAT32_SUM
    one = filtered(learner, torch.from_numpy(vectors[:3]), torch.from_numpy(keep)).detach().numpy()
    assert relative_error(one, wanted[:3]) < FLOAT32_SUM
    assert (
        relative_error(mean_squares(learner, vectors), np.square(codes.astype(np.float64)).mean(axis=0)) < FLOAT32_SUM
    )


def test_a_probe_names_what_scikit_learns_regression_names() -> None:
    random = np.random.default_rng(0)
    truths = random.integers(0, 3, 301)
    vectors = (random.standard_normal((301, 7)) * 0.01 + truths[:, None] * random.standard_normal(7) * 0.008).astype(
        np.float32
    )
    probe = fit_probe(vectors, truths, 4)
    scaled = (vectors - probe.centre) / probe.scale
    oracle = LogisticRegression(C=1.0, max_iter=2000, tol=1e-10).fit(scaled, truths)
    # Weights of classes may differ by a constant for each number, which changes no probability.
    own = probe.weights[:, :3] - probe.weights[:, :3].mean(axis=1, keepdims=True)
    assert relative_error(own, oracle.coef_.T) < 1e-2
    assert (probe.named(vectors) == oracle.predict(scaled)).mean() > 0.99
    assert 0.5 < (probe.named(vectors) == truths).mean() < 1
    assert 3 not in probe.named(1000 * vectors)


def test_removing_the_features_of_colour_costs_colour_and_not_shape(
    planted: hs.Store, colour_and_rest: Dictionary, scores: FeatureScores
) -> None:
    colour = attribute_task(planted, "colour", ["a {c} shape"], by=["shape"])
    found = probe_bias(
        planted, colour_and_rest, scores, colour, classes=["image-dominant"], draws=3, samples=50, tolerance=0.5
    )
    assert (found.train_images, found.test_images, found.headline) == (24, 24, "worst_group")
    untouched = found.row("zero-shot", "untouched")
    assert untouched.figures["accuracy"] > 0.9
    # The dictionary explains all, so its reconstruction is the vector.
    assert found.row("zero-shot", "reconstruction").lost < 1e-5
    own, random = found.row("zero-shot", "class", "image-dominant"), found.row("zero-shot", "random", "image-dominant")
    assert own.features == random.features == 2
    assert random.energy == pytest.approx(own.energy, rel=0.5)
    assert own.figures["accuracy"] < untouched.figures["accuracy"] - 0.2
    assert own.change.value == pytest.approx(own.figures["worst_group"] - untouched.figures["worst_group"])
    assert random.change.low <= random.change.value <= random.change.high
    assert {"red, circle", "red, square", "blue, circle", "blue, square"} <= set(own.figures)
    # A probe that is trained without colour reads less of it than one trained with it.
    assert found.row("probe", "class", "image-dominant").figures["accuracy"] < 0.9
    assert found.row("probe", "untouched").figures["accuracy"] > 0.9
    # By hand: the axis of colour is projected out, and the nearest text is looked up.
    vectors = units(planted.embedding).astype(np.float64)
    axis = colour_and_rest.learner.get_parameter("W_dec").detach().numpy()[0].astype(np.float64)
    texts = text_vectors(planted, ["a blue shape", "a red shape"])
    named = np.array(["blue", "red"])[((vectors - np.outer(vectors @ axis, axis)) @ texts.T).argmax(axis=1)]
    test = np.sort(np.random.default_rng(0).permutation(len(named))[24:])
    right = named[test] == np.array([each for (each,) in _metadata(planted, "colour")])[test]
    assert own.figures["accuracy"] == pytest.approx(right.mean())
    shape = probe_bias(
        planted, colour_and_rest, scores, PLANTED, classes=["image-dominant"], draws=2, samples=20, tolerance=0.5
    )
    # Shape stays where colour goes.
    assert shape.row("probe", "class", "image-dominant").figures["accuracy"] > 0.85
    columns = json.loads(found.as_json())
    assert {each["kind"] for each in columns} == {"untouched", "reconstruction", "class", "random"}
    assert len(columns) == len(found.rows) == 3 * (2 + 2)


def test_the_live_model_gives_the_stored_embeddings_and_the_right_gradient(planted: hs.Store) -> None:
    model = LiveModel.of(planted, device="cpu")
    images = np.array([0, 3, 47])
    grey = stored_pixels(planted, images)
    pixels = torch.from_numpy(grey).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        assert relative_error(model.embed(pixels).numpy(), planted.embedding[images]) < ORACLE_FLOAT32
    pixels.requires_grad_()
    along = torch.randn(planted.joint, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((model.embed(pixels) @ along).sum(), pixels)
    # Against differences along a random direction: 1e-3 of the range is far from rounding and from curvature.
    step = 1e-3 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (model.embed(pixels + step) - model.embed(pixels - step)) @ along / 2
    assert relative_error((gradient * step).sum(dim=(1, 2, 3)).numpy(), difference.numpy()) < 2e-2


def test_an_attack_stays_within_epsilon_and_within_the_range_of_pixels() -> None:
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * 4 * 4, 5, generator=random)
    pixels = torch.rand(17, 3, 4, 4, generator=random)
    classes = (pixels.flatten(1) @ weights).argmax(dim=1)
    for targeted in (False, True):
        wanted = (classes + 1) % 5 if targeted else classes
        found = pgd(lambda own: own.flatten(1) @ weights, pixels, wanted, 0.2, Search(8, 2), random, targeted)
        assert (found.pixels - pixels).abs().max() <= 0.2 + 1e-6
        assert found.pixels.min() >= 0
        assert found.pixels.max() <= 1
        again = margins(found.pixels.flatten(1) @ weights, wanted, targeted)
        torch.testing.assert_close(again, found.margins)
        named = (found.pixels.flatten(1) @ weights).argmax(dim=1)
        assert torch.equal(found.succeeded, (named == wanted) if targeted else (named != wanted))
        assert found.succeeded.any()
    # Of a linear classifier of two classes, the largest margin within epsilon is known: each pixel moves by its sign.
    two = weights[:, :2]
    inner = pixels * 0.5 + 0.25
    first = torch.zeros(17, dtype=torch.int64)
    best = pgd(lambda own: own.flatten(1) @ two, inner, first, 0.05, Search(8, 1), random, stop=False)
    away = two[:, 1] - two[:, 0]
    wanted_margin = inner.flatten(1) @ away + 0.05 * away.abs().sum()
    assert relative_error(best.margins.numpy(), wanted_margin.numpy()) < FLOAT32_SUM


def test_a_filter_that_hides_the_gradient_is_seen_through(planted: hs.Store, colour_and_rest: Dictionary) -> None:
    """Where the kept features are not among the k largest, the exact gradient is 0, and the straight-through is not."""
    torch.manual_seed(0)
    learner = make_learner("topk", planted.joint, features=64, k=1).eval()
    model = LiveModel.of(planted, device="cpu")
    vectors = torch.from_numpy(units(planted.embedding[:4])).clone().requires_grad_()
    with torch.no_grad():
        keep = learner.encode(vectors).sum(dim=0) == 0
    classes = torch.randn(3, planted.joint)
    found = {}
    for gradient in GRADIENTS:
        defence = Defence(model, classes, learner, keep, "dropped", gradient)
        # The classifier itself does not depend on the gradient.
        forward = defence.cosines(vectors)
        torch.testing.assert_close(forward, Defence(model, classes, learner, keep, "dropped").cosines(vectors))
        weights = torch.arange(3.0)
        found[gradient] = torch.autograd.grad((forward * weights).sum(), vectors, allow_unused=True)[0]
    assert found["exact"] is None or not found["exact"].any()
    assert found["straight-through"].any()
    assert found["identity"].any()


def test_attacks_beat_noise_and_the_adaptive_one_is_the_stronger(
    small: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (small, _axes(small), _scores_of_axes(small.joint), PLANTED)
    asked: dict[str, Any] = {
        "keep": ["cross-modal"],
        "remove": ["image-dominant"],
        "most": 10,
        "epsilons": (2 / 255, 8 / 255),
        "search": QUICK,
        "draws": 1,
        "samples": 20,
        "tolerance": 0.5,
        "device": "cpu",
        "run": "mine",
    }
    found = attack(*given, **asked)
    assert read_use(small, "mine").row("untargeted", "plain", "plain", 2 / 255) == found.rows[0]  # type: ignore[union-attr]
    # What was made otherwise is refused before the pixels are read; the same again is compared in the end.
    monkeypatch.setattr("headspan.features.uses.attack.stored_pixels", _no_work)
    for changed, words in (
        ({"seed": 1}, "seed 0, now 1"),
        ({"epsilons": (8 / 255,)}, "other epsilon"),
        ({"remove": []}, "other classifier"),
        ({"goals": ["targeted"]}, "other goal"),
        ({"search": Search(3, 1)}, "steps 2, now 3, step share .*"),
    ):
        with pytest.raises(
            StoreError, match=rf"uses run 'mine' was made differently \({words}\); choose another --run"
        ):
            attack(*given, **asked | changed)
    for same in ({}, {"seed": 1, "overwrite": True}, {"seed": 1, "run": None}):
        with pytest.raises(AssertionError, match="the work begins"):
            attack(*given, **asked | same)
    assert found.works
    for row in found.rows:
        if row.goal == "untargeted":
            assert row.adaptive.value <= min(row.clean, row.noise, row.transferred)
        else:
            assert row.adaptive.value >= max(row.clean, row.noise, row.transferred)
        if row.by_gradient:
            assert set(row.by_gradient) == set(GRADIENTS)
    # The dictionary explains all and keeps all, so that its classifier is the plain one.
    whole = found.row("untargeted", "reconstruction", "all features", 8 / 255)
    plain = found.row("untargeted", "plain", "plain", 8 / 255)
    assert (whole.clean, whole.noise, whole.transferred) == (plain.clean, plain.noise, plain.transferred)
    assert plain.adaptive.value < plain.clean
    weaker = found.row("untargeted", "plain", "plain", 2 / 255)
    assert weaker.adaptive.value >= plain.adaptive.value
    kinds = {(each.kind, each.classifier) for each in found.rows}
    assert {("class", "only cross-modal"), ("random", "only cross-modal"), ("class", "without image-dominant")} <= kinds
    assert json.loads(found.as_json())[0]["epsilon_255"] == pytest.approx(2)


def test_an_edit_takes_the_donors_features_and_leaves_the_others(
    planted: hs.Store, colour_and_rest: Dictionary, scores: FeatureScores
) -> None:
    known = _metadata(planted, "colour", "shape")
    source, donor = known.index(("red", "circle")), known.index(("blue", "square"))
    found = edit(
        *(planted, colour_and_rest, scores, source, donor, "image-dominant"),
        factors=["colour", "shape"],
        draws=3,
        tolerance=0.5,
    )
    axis = colour_and_rest.learner.get_parameter("W_dec").detach().numpy()[0].astype(np.float64)
    own, other = units(planted.embedding[[source, donor]]).astype(np.float64)
    wanted = own + axis * (other @ axis - own @ axis)
    wanted *= np.linalg.norm(planted.embedding[source]) / np.linalg.norm(wanted)
    assert relative_error(found.embedding, wanted) < FLOAT32_SUM
    assert source not in found.images
    assert donor not in found.images
    assert len(found.images) == 10
    # By hand: the nearest images of the edited vector.
    cosines = units(planted.embedding) @ (wanted / np.linalg.norm(wanted))
    cosines[[source, donor]] = -1
    assert set(found.images.tolist()) == set(np.argsort(-cosines)[:10].tolist())
    blue = np.mean([known[image][0] == "blue" for image in found.images.tolist()])
    assert found.factors["colour"].donor == pytest.approx(blue)
    assert found.factors["colour"].donor_base == pytest.approx(21 / 48)
    assert found.controls
    assert all(each.features == "random, as image-dominant" for each in found.controls)


def test_a_study_of_edits_says_which_factor_moved(
    planted: hs.Store, colour_and_rest: Dictionary, scores: FeatureScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: tuple[Any, ...] = (planted, colour_and_rest, scores)
    asked: dict[str, Any] = {"classes": ["image-dominant"], "pairs": 12, "draws": 3, "count": 5, "tolerance": 0.5}
    study = edit_study(*given, ["colour", "shape"], **asked, run="edits")
    with monkeypatch.context() as patched:
        patched.setattr("headspan.features.uses.edit_study.embeddings", _no_work)
        patched.setattr("headspan.features.uses.bias.evaluation_of", _no_work)
        for factors, changed, words in (
            (["colour"], {}, "other factor"),
            (["colour", "shape"], {"classes": ["cross-modal"]}, "other exchanged"),
            (["colour", "shape"], {"count": 6}, "neighbours 5, now 6"),
        ):
            with pytest.raises(StoreError, match=rf"uses run 'edits' was made differently \({words}\); choose"):
                edit_study(*given, factors, **asked | changed, run="edits")
        with pytest.raises(StoreError, match=r"uses run 'edits' was made differently \(use edits, now bias\)"):
            probe_bias(*given, PLANTED, run="edits")
        with pytest.raises(AssertionError, match="the work begins"):
            edit_study(*given, ["colour", "shape"], **asked, run="edits")
    colour, random = study.row("class", "colour", "image-dominant"), study.row("random", "colour", "image-dominant")
    source, shape = study.row("source", "colour"), study.row("class", "shape", "image-dominant")
    assert colour is not None
    assert source is not None
    assert shape is not None
    assert random is not None
    # The colour comes with its axis; the shape stays.
    assert colour.donor > source.donor + 0.3
    assert colour.donor > random.donor
    shape_before = study.row("source", "shape")
    assert shape_before is not None
    assert shape.donor < shape_before.donor + 0.3
    with pytest.raises(SettingsError, match="48 images can be used and 0 donors found, but a pair needs two images"):
        edit_study(planted, colour_and_rest, scores, ["colour"], donors="captions")


def test_factors_are_paths_in_the_metadata(planted: hs.Store) -> None:
    known = Factors(planted, ["colour", "index"])
    assert known.of(0) == {
        "colour": _metadata(planted, "colour")[0][0],
        "index": str(_metadata(planted, "index")[0][0]),
    }
    with pytest.raises(SettingsError, match=r"no image's metadata has a value of 'objects.colour'; its factors are "):
        Factors(planted, ["objects.colour"])


def test_texts_are_exchanged_through_their_own_side() -> None:
    torch.manual_seed(5)
    learner = make_learner("group_sparse", 8, features=16, k=2).eval()
    with torch.no_grad():
        learner.get_parameter("b_dec_text").normal_()
    vectors = units(np.random.default_rng(5).standard_normal((2, 3, 8)).astype(np.float32).reshape(6, 8)).reshape(
        2, 3, 8
    )
    exchanger = Exchanger.of(learner, vectors[0], vectors[1], "dropped", donor_side=1)
    with torch.no_grad():
        texts = learner.encode(torch.from_numpy(vectors[1]), 1)
        every = learner.decode(texts, 0)
    found = exchanger.exchanged(np.ones(16, bool))
    assert relative_error(found, (every / every.norm(dim=1, keepdim=True)).numpy()) < FLOAT32_SUM


def test_dictionaries_of_other_spaces_are_refused(
    planted: hs.Store, colour_and_rest: Dictionary, scores: FeatureScores
) -> None:
    def other(**changed: Any) -> Dictionary:
        given = {each.name: getattr(colour_and_rest, each.name) for each in fields(Dictionary)}
        return Dictionary(**{**given, **changed})

    contrastive = make_learner("non_negative", planted.joint, features=8)
    cases: list[tuple[Dictionary, FeatureScores, str]] = [
        (other(space=Space(HEADS, planted.joint, heads=((0, 0),))), scores, "but uses change embeddings; train a"),
        (other(space=Space("embedding", 7)), scores, "7"),
        (other(learner=contrastive), scores, "codes of its learner non_negative cannot be turned back into vectors"),
        (other(sha256="another"), scores, "the scores of run 'axes' are of another dictionary"),
    ]
    for dictionary, given, message in cases:
        with pytest.raises(SettingsError, match=message):
            probe_bias(planted, dictionary, given, PLANTED)
    with pytest.raises(SettingsError, match="residual 'half': give one of kept, dropped"):
        probe_bias(planted, colour_and_rest, scores, PLANTED, residual="half")
    with pytest.raises(SettingsError, match="has metric retrieval; an attack needs classes"):
        attack(planted, colour_and_rest, scores, Task("pairs", "retrieval"))
    with pytest.raises(SettingsError, match="epsilon 8: give shares of a pixel's full range"):
        attack(planted, colour_and_rest, scores, PLANTED, epsilons=(8,))
    with pytest.raises(SettingsError, match="under 'index', which is no text; write a task file"):
        attribute_task(planted, "index")


def test_use_pages_explain_themselves_and_refuse_contradictions(capsys: pytest.CaptureFixture[str]) -> None:
    for use in ("bias", "attack", "edit"):
        with pytest.raises(SystemExit) as ended:
            main(["features", "use", use, "--help"])
        page = capsys.readouterr().out
        assert ended.value.code == 0
        assert page.count("headspan features use") >= 2
        assert max(map(len, page.splitlines())) <= 80
    for flags, message in (
        (["edit", "x.zarr", "--image", "3"], "--image is edited with one class of features of one donor"),
        (["edit", "x.zarr", "--donor", "3"], "--donor goes with --image"),
        (["edit", "x.zarr"], "many pairs are judged by factors"),
        (["attack", "x.zarr", "--epsilon", "2,x"], "--epsilon x: give levels of 255"),
        (["bias", "x.zarr", "--draws", "-1"], "--draws -1 is too small; give at least 0"),
    ):
        assert main(["features", "use", *flags]) == 2
        assert message in capsys.readouterr().err
