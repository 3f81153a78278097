"""metrics.py: GenEval's rules against the published tool's verdicts and at every edge; means, yes/no, distances."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unified.evaluation.metrics import (
    GENEVAL_COLOURS,
    GENEVAL_RELATIONS,
    GenevalRules,
    binary_scores,
    check_geneval_metadata,
    clustered_mean,
    frechet_distance,
    geneval_objects,
    geneval_relations,
    geneval_summary,
    geneval_verdict,
    psnr,
)
from unified.scenes.rendering import COLOURS, RELATIONS

GOLDEN = Path("/work/shared/golden/geneval_cases.jsonl")
RED, GREEN, BLUE = (GENEVAL_COLOURS.index(name) for name in ("red", "green", "blue"))
MIRRORED = {"left of": "right of", "right of": "left of", "above": "above", "below": "below"}
TURNED = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


def box(x=0.0, y=0.0, score=0.95, colour=RED, width=10.0, height=10.0):
    """A box around (x, y)."""
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2, score, colour]


def ask(*include, tag="two_object", exclude=()):
    clauses = [{"class": name, "count": count, **more} for name, count, more in include]
    limits = [{"class": name, "count": count} for name, count in exclude]
    return {"tag": tag, "include": clauses, "prompt": "", **({"exclude": limits} if limits else {})}


def test_words_are_those_of_scenes():
    assert tuple(COLOURS) == GENEVAL_COLOURS and RELATIONS == GENEVAL_RELATIONS


@pytest.mark.skipif(not GOLDEN.exists(), reason="the published tool's verdicts lie outside of the repository")
def test_verdicts_and_reasons_are_the_published_tools():
    cases = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert len(cases) == 72
    for case in cases:
        assert geneval_verdict(case["metadata"], case["detections"]) == (case["correct"], case["reason"]), case


@pytest.mark.parametrize(("tag", "threshold"), [("single_object", 0.3), ("position", 0.3), ("counting", 0.9)])
def test_a_score_must_exceed_its_threshold(tag, threshold):
    cup = ask(("cup", 1, {}), tag=tag)
    assert geneval_verdict(cup, {"cup": [box(score=threshold)]}) == (False, "expected cup>=1, found 0")
    assert geneval_verdict(cup, {"cup": [box(score=math.nextafter(threshold, 1))]}) == (True, "")
    rules = GenevalRules(score_threshold=0.1, counting_threshold=0.1)
    assert geneval_verdict(cup, {"cup": [box(score=0.2)]}, rules)[0]


def test_the_best_sixteen_of_a_class_count():
    cups = [box(score=0.91 + i / 1000) for i in range(20)]
    found = geneval_objects("counting", {"cup": cups, "dog": [box(score=0.9)]}, GenevalRules())
    assert found == {"cup": cups[:3:-1]}
    sixteen, seventeen = (ask(("cup", 1, {}), tag="counting", exclude=[("cup", count)]) for count in (16, 17))
    assert geneval_verdict(sixteen, {"cup": cups}) == (False, "expected cup<16, found 16")
    assert geneval_verdict(seventeen, {"cup": cups})[0]
    assert not geneval_verdict(seventeen, {"cup": cups}, GenevalRules(max_objects=17))[0]


@given(st.permutations([0.31, 0.5, 0.7, 0.9, 0.95]))
def test_the_order_of_detections_does_not_matter(scores):
    cups = [box(score=score, colour=RED if score > 0.6 else BLUE) for score in scores]
    assert geneval_verdict(ask(("cup", 3, {"color": "red"})), {"cup": cups})[0]
    four = "expected red cup>=4, found 3 red; and 3 red, 1 blue"
    assert geneval_verdict(ask(("cup", 4, {"color": "red"})), {"cup": cups}) == (False, four)


def test_of_equal_scores_the_later_box_comes_first():
    cups = [box(score=0.5, colour=RED), box(score=0.5, colour=BLUE)]
    assert geneval_verdict(ask(("cup", 1, {"color": "blue"})), {"cup": cups})[0]


@pytest.mark.parametrize(
    ("count", "reason"), [(1, "expected cup>=2, found 1"), (2, ""), (3, "expected cup<3, found 3")]
)
def test_counting_is_exact_by_include_and_exclude(count, reason):
    two = ask(("cup", 2, {}), tag="counting", exclude=[("cup", 3)])
    assert geneval_verdict(two, {"cup": [box()] * count + [box(score=0.9)] * 5}) == (not reason, reason)


def test_only_the_best_boxes_are_asked_for_their_colour():
    cups = {"cup": [box(score=0.9, colour=GREEN), box(score=0.8, colour=RED)]}
    reason = "expected red cup>=1, found 0 red; and 1 green"
    assert geneval_verdict(ask(("cup", 1, {"color": "red"}), tag="colors"), cups) == (False, reason)
    assert geneval_verdict(ask(("cup", 1, {"color": "green"}), tag="colors"), cups)[0]


@pytest.mark.parametrize("colour", [-1, 10])
def test_a_colour_that_is_asked_for_must_be_known(colour):
    cups = {"cup": [box(colour=colour)]}
    assert geneval_verdict(ask(("cup", 1, {})), cups)[0]
    with pytest.raises(ValueError, match="index from 0 to 9"):
        geneval_verdict(ask(("cup", 1, {"color": "white"})), cups)


def test_every_pair_must_be_in_place():
    asked = ask(("cup", 2, {}), ("dog", 2, {"position": ["left of", 0]}), tag="position")
    cups, dogs = [box(50), box(60)], [box(0), box(10)]
    assert geneval_verdict(asked, {"cup": cups, "dog": dogs})[0]
    above = "expected dog left of target, found above target"
    assert geneval_verdict(asked, {"cup": cups, "dog": [dogs[0], box(50, -50)]}) == (False, above)
    right = "expected dog left of target, found right of target"
    assert geneval_verdict(asked, {"cup": [cups[0], box(-50)], "dog": dogs}) == (False, right)


def test_reasons_are_all_told_and_a_failed_target_is_no_target():
    asked = ask(
        ("cup", 1, {"color": "red"}), ("dog", 1, {"position": ["left of", 0]}), ("cat", 1, {}), exclude=[("dog", 1)]
    )
    correct, reason = geneval_verdict(asked, {"cup": [box(50, colour=BLUE)], "dog": [box(0)]})
    assert not correct and reason.split("\n") == [
        "expected red cup>=1, found 0 red; and 1 blue",
        "no target for dog to be left of",
        "expected cat>=1, found 0",
        "expected dog<1, found 1",
    ]


def test_one_place_has_no_direction():
    assert geneval_relations(box(), box()) == []
    assert geneval_relations(box(1.9), box()) == []  # within a tenth of both widths
    asked = ask(("cup", 1, {}), ("dog", 1, {"position": ["above", 0]}), tag="position")
    nowhere = (False, "expected dog above target, found  target")
    assert geneval_verdict(asked, {"cup": [box()], "dog": [box()]}) == nowhere


def test_directions_at_their_thresholds():
    # sizes 25 and 25 take 5 off an offset of (30, 40) and length 50: exactly half is not enough
    assert geneval_relations(box(30, 40, width=25, height=0), box(width=25, height=0)) == ["below"]
    assert geneval_relations(box(30, 40, width=24.9, height=0), box(width=25, height=0)) == ["right of", "below"]
    assert geneval_relations(
        box(30, 40, width=25, height=0), box(width=25), GenevalRules(direction_threshold=0.4)
    ) == [
        "right of",
        "below",
    ]
    points = {"width": 0.0, "height": 0.0}
    assert geneval_relations(box(9e-4, 0, **points), box(0, 0, **points)) == []
    assert geneval_relations(box(-1.1e-3, 0, **points), box(0, 0, **points)) == ["left of"]
    assert geneval_relations(box(11), box(), GenevalRules(size_tolerance=0.6)) == []


numbers = st.integers(0, 64)
boxes = st.builds(lambda x, y, w, h: box(x, y, width=w, height=h), numbers, numbers, numbers, numbers)


@given(boxes, boxes)
def test_relations_are_symmetric(a, b):
    def mirrored(item):
        return [-item[2], item[1], -item[0], item[3], *item[4:]]

    def turned(item):
        return [item[1], item[0], item[3], item[2], *item[4:]]

    holding = geneval_relations(a, b)
    assert set(geneval_relations(mirrored(a), mirrored(b))) == {MIRRORED[name] for name in holding}
    assert set(geneval_relations(turned(a), turned(b))) == {TURNED[name] for name in holding}
    back = {TURNED[MIRRORED[TURNED[MIRRORED[name]]]] for name in holding}  # a half turn
    assert set(geneval_relations(b, a)) == back
    assert len(holding) <= 2 and not {"left of", "right of"} <= set(holding) and not {"above", "below"} <= set(holding)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([], "not a GenEval prompt"),
        ({"include": [{"class": "cup", "count": 1}]}, "`tag`"),
        ({"tag": "colors"}, "not both empty"),
        (ask(("cup", 0, {})), "count of 1"),
        (ask(("cup", True, {})), "count of 1"),
        (ask(("cup", 1, {"color": "grey"})), "grey"),
        (ask(("cup", 1, {"position": ["left of", 0]})), "earlier clause"),
        (ask(("cup", 1, {}), ("dog", 1, {"position": ["beside", 0]})), "left of"),
        ({"tag": "counting", "exclude": [{"class": "cup"}]}, "class, count"),
    ],
)
def test_what_is_no_prompt_is_refused(metadata, words):
    with pytest.raises(ValueError, match=words):
        check_geneval_metadata(metadata)


def test_absent_things_alone_can_be_asked_for():
    asked = {"tag": "counting", "exclude": [{"class": "cup", "count": 1}]}
    assert geneval_verdict(asked, {}) == (True, "")


@pytest.mark.parametrize(("name", "value"), [("score_threshold", 1.1), ("max_objects", 0), ("size_tolerance", -0.1)])
def test_impossible_rules_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        GenevalRules(**{name: value})


def record(tag, prompt, correct):
    return {"tag": tag, "metadata": json.dumps({"tag": tag, "prompt": prompt}), "correct": correct}


def test_summary_weighs_tasks_alike_and_images_of_a_prompt_together():
    verdicts = {("colors", "a"): [1, 1, 1, 1], ("colors", "b"): [0, 0, 0, 0], ("counting", "c"): [1, 0]}
    verdicts[("counting", "d")] = [0, 0]
    records = [record(*key, bool(v)) for key, values in verdicts.items() for v in values]
    summary = geneval_summary(iter(records))
    assert summary["overall"] == (0.5 + 0.25) / 2
    assert summary["correct_images"] == 5 / 12 and summary["correct_prompts"] == 0.5
    assert (summary["images"], summary["prompts"]) == (12, 4)
    # equal clusters: the standard deviation of the prompts' means over the root of their number
    assert summary["tasks"]["colors"] == {"value": 0.5, "stderr": pytest.approx(0.5), "images": 8, "prompts": 2}
    assert summary["tasks"]["counting"]["stderr"] == pytest.approx(0.25)
    assert summary["stderr"] == pytest.approx(math.hypot(0.5, 0.25) / 2)
    alone = geneval_summary([record("colors", "a", True)] * 4)
    assert alone["overall"] == 1 and alone["stderr"] is None
    with pytest.raises(ValueError, match="nothing to average"):
        geneval_summary([])


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=2, max_size=8))
def test_clusters_of_one_have_the_usual_standard_error(clusters):
    values = torch.tensor([float(value) for cluster in clusters for value in cluster])
    mean, stderr = clustered_mean([[value] for value in values.tolist()])
    assert mean == pytest.approx(float(values.mean())) == clustered_mean(clusters)[0]
    assert stderr == pytest.approx(float(values.std() / len(values) ** 0.5), abs=1e-6)
    doubled = clustered_mean([cluster * 2 for cluster in clusters])
    assert doubled[1] == pytest.approx(clustered_mean(clusters)[1])  # seeing images twice proves nothing


def test_binary_scores():
    assert binary_scores([True, True, False, False], [True, False, True, True]) == {
        "accuracy": 0.25,
        "precision": 0.5,
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(0.4),
        "yes_share": 0.5,
    }
    assert set(binary_scores([False], [False]).values()) == {1.0, 0.0}
    with pytest.raises(ValueError, match="2 answers to 1 questions"):
        binary_scores([True, False], [True])


def covariance(seed, size=6, rank=6):
    root = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def test_frechet_distance():
    zero, one = torch.zeros(3), torch.ones(3)
    # diagonal: sum of squared differences of means and of standard deviations
    a, b = torch.tensor([1.0, 4.0, 0.0]).diag(), torch.tensor([9.0, 4.0, 0.25]).diag()
    assert frechet_distance(zero, a, one, b) == pytest.approx(3 + 4 + 0 + 0.25)
    a, b = covariance(0), covariance(1)
    eigenvalues = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = float(a.trace() + b.trace() - 2 * eigenvalues)
    mean = torch.zeros(6)
    assert frechet_distance(mean, a, mean, b) == pytest.approx(expected)
    assert frechet_distance(mean, b, mean, a) == pytest.approx(expected)
    singular = covariance(2, size=200, rank=20)
    mean = torch.zeros(200)
    assert frechet_distance(mean, singular, mean, singular) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_refuses():
    mean, cov = torch.zeros(3), torch.eye(3)
    for wrong in ((mean, cov, torch.zeros(2), cov), (mean, cov[:2], mean, cov), (mean[None], cov, mean, cov)):
        with pytest.raises(ValueError, match="of one D"):
            frechet_distance(*wrong)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, cov * math.nan, mean, cov)


def test_psnr():
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[1] += 0.2
    assert psnr(a, b).tolist() == [math.inf, pytest.approx(20)]
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:1])
