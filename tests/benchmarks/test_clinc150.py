"""CLINC150 phrased as instructions, read from a file or from the hub, with copies and decoys."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest

from gtp_benchmarks.clinc150 import Clinc150Benchmark, Clinc150Pool
from gtp_benchmarks.clinc150.intents import DOMAIN_OF, INTENTS
from gtp_benchmarks.clinc150.phrasing import EDITS, TEMPLATES
from gtp_benchmarks.clinc150.source import Split, Version, _from_hub, read_split
from gtp_exp.errors import UserError
from gtp_exp.records.selected import target_labels

SIZES = {"train": 4, "val": 3, "test": 6}  # rows of each intent


def request(intent, split, i):
    return f"please do {intent.replace('_', ' and ')} for my {split} number {i}"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A generated file of the shape of data_full.json."""
    path = tmp_path_factory.mktemp("clinc150") / "data_full.json"
    content = {
        split: [[request(intent, split, i), intent] for i in range(n) for intent in DOMAIN_OF]
        for split, n in SIZES.items()
    }
    content |= {f"oos_{split}": [["what is this", "oos"]] for split in SIZES}
    path.write_text(json.dumps(content))
    return str(path)


def pool(path, **changes):
    return Clinc150Pool(**{"path": path, **changes}).load()


def bare(prompt):
    """Return the request in an instruction, with its edit."""
    (text,) = {
        prompt[len(before) : len(prompt) - len(after)]
        for before, after in (template.split("{}") for template in TEMPLATES)
        if prompt.startswith(before) and prompt.endswith(after) and (before or after)
    }
    return text


def test_the_table_has_ten_domains_of_fifteen_intents_each():
    assert [len(set(intents)) for intents in INTENTS.values()] == [15] * 10 and len(DOMAIN_OF) == 150
    assert DOMAIN_OF["pay_bill"] == "banking" and DOMAIN_OF["uber"] == "auto_and_commute"


def test_the_pool_asks_every_request_once_and_hides_its_labels(published):
    rows = pool(published)
    assert len(rows.examples) == 600 and [e.id for e in rows.examples] == sorted(rows.hidden)
    expected = Counter((request(intent, "train", i), intent) for intent in DOMAIN_OF for i in range(4))
    assert Counter((bare(e.prompt), rows.hidden[e.id]["intent"]) for e in rows.examples) == expected
    for example in rows.examples:
        hidden = rows.hidden[example.id]
        assert example.completion == hidden["label"] == hidden["intent"].replace("_", " ")
        assert hidden["domain"] == DOMAIN_OF[hidden["intent"]] and hidden["kind"] == "request"
    used = {next(t for t in TEMPLATES if t.format(bare(e.prompt)) == e.prompt) for e in rows.examples}
    assert used == set(TEMPLATES)


def test_a_subset_is_seeded_and_of_the_wanted_size_and_domains(published):
    first, same, other = (pool(published, rows=50, seed=s) for s in (0, 0, 1))
    assert first == same != other and len(first.examples) == len(other.examples) == 50
    home = pool(published, domains=["home", "work"])
    assert Counter(h["domain"] for h in home.hidden.values()) == {"home": 60, "work": 60}


def test_copies_of_a_quarter_of_the_requests_come_in_other_templates_with_small_edits(published):
    rows = pool(published, rows=225, copies=5)
    originals = {i: h for i, h in rows.hidden.items() if "copy_of" not in h}
    copies = {i: h for i, h in rows.hidden.items() if "copy_of" in h}
    assert (len(originals), len(copies)) == (100, 125)
    assert set(Counter(h["copy_of"] for h in copies.values()).values()) == {5}
    text = {e.id: e.prompt for e in rows.examples}
    for original in {h["copy_of"] for h in copies.values()}:
        family = [original, *(i for i, h in copies.items() if h["copy_of"] == original)]
        said = bare(text[original])
        assert len({text[i].replace(bare(text[i]), "{}") for i in family}) == 6  # templates
        assert {bare(text[i]) for i in family[1:]} <= {edit.format(said) for edit in EDITS}
        assert len({rows.hidden[i]["intent"] for i in family}) == 1
    assert set(originals) == set(
        pool(published, rows=100).hidden
    )  # the copies are added to the same requests


def test_decoys_are_requests_of_the_pool_with_another_task(published):
    rows = pool(published, rows=300, decoys=60)
    decoys = [e for e in rows.examples if rows.hidden[e.id]["kind"] == "decoy"]
    said = {bare(e.prompt) for e in rows.examples if rows.hidden[e.id].get("intent") in INTENTS["banking"]}
    assert len(decoys) == 60 and len(rows.examples) == 300
    answers = Counter()
    for example in decoys:
        assert rows.hidden[example.id] == {"domain": "banking", "kind": "decoy"}
        (text,) = [t for t in said if t in example.prompt]
        rules = {"same": text, "words": str(text.count(" ") + 1), "capitals": text.upper(), "first": "please"}
        answers[next(name for name, answer in rules.items() if answer == example.completion)] += 1
    assert len(answers) == 4 and len({e.prompt for e in decoys}) == 60
    assert target_labels(list(rows.hidden.values()), Clinc150Benchmark(path=published).target())


def test_a_decoy_and_a_request_of_one_name_are_two_rows(published):
    """`repeat` is an intent of the domain meta, and what a decoy asks."""
    rows = pool(published, domains=["meta"], decoy_domain="meta", decoys=240)
    assert len(rows.examples) == len(rows.hidden) == 60 + 240


def test_the_target_has_rows_of_every_intent_of_its_domains_and_coverage_counts_them(published):
    target = Clinc150Benchmark(path=published, domains=["banking", "travel"]).target()
    assert Counter(e.completion.replace(" ", "_") for e in target) == {
        intent: 2 for domain in ("banking", "travel") for intent in INTENTS[domain]
    }
    assert all(e.subtask == DOMAIN_OF[e.completion.replace(" ", "_")] for e in target)
    assert all("my val number" in e.prompt for e in target)
    wanted = target_labels(list(pool(published).hidden.values()), target)
    assert wanted == {e.completion for e in target} and len(wanted) == 30


def test_a_test_row_is_a_choice_among_intents_of_its_domain(published):
    tasks = Clinc150Benchmark(path=published, domains=["banking", "travel"], test_rows=40).tasks()
    assert [(task.name, len(task.docs)) for task in tasks] == [
        ("clinc150_banking", 40),
        ("clinc150_travel", 40),
    ]
    for task, domain in zip(tasks, ("banking", "travel"), strict=True):
        for doc in task.docs:
            intents = [choice.replace(" ", "_") for choice in doc["choices"]]
            assert len(set(intents)) == 5 and set(intents) <= set(INTENTS[domain])
            assert bare(doc["query"]).startswith(
                f"please do {intents[doc['gold']].replace('_', ' and ')} for"
            )
        assert len({doc["gold"] for doc in task.docs}) == 5 and len({doc["query"] for doc in task.docs}) == 40
    assert tasks == Clinc150Benchmark(path=published, domains=["banking", "travel"], test_rows=40).tasks()
    (whole,) = Clinc150Benchmark(path=published, test_rows=None).tasks()
    assert len(whole.docs) == 15 * 6


def test_the_hub_gives_what_the_file_gives(published, monkeypatch):
    """In the hub's form intents are numbers, with those out of scope among them."""
    rows = json.loads(open(published).read())["train"] + [["what is this", "oos"]]
    names = [*sorted(DOMAIN_OF), "oos"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=names)}
    )
    columns = {"text": [text for text, _ in rows], "intent": [intent for _, intent in rows]}
    data = datasets.Dataset.from_dict(columns, features=features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or data)
    _from_hub.cache_clear()
    try:
        assert pool(None) == pool(published)
    finally:
        _from_hub.cache_clear()
    assert asked == [(("clinc/clinc_oos",), {"name": "plus", "split": "train"})]


def test_without_network_the_error_says_what_to_download(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Offline mode is enabled")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"from the hub.*data_full.json elsewhere and set dataset.path="):
        pool(None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": ["bank"]}, "domains=.*bank.*banking, credit_cards"),
        ({"copies": 6}, "copies=6 must lie in 0 to 5"),
        ({"copied_share": 0.0}, "copied_share=0.0"),
        ({"rows": 601}, "rows=601 needs 601 requests, but there are 600"),
        ({"decoys": 241}, "decoys=241 is more than the 240 that 60 sentences"),
        ({"decoys": 2, "rows": 2}, "decoys=2"),
        ({"decoys": 1, "domains": ["home"]}, "decoy_domain=banking must be one of dataset.domains"),
        ({"version": Version.SMALL}, "version=small is of the hub; with dataset.path the file decides"),
        ({"path": "nowhere.json"}, "path=nowhere.json is not a file; it must be a copy of https"),
    ],
)
def test_a_pool_that_cannot_be_made_says_why(published, changes, message):
    with pytest.raises(UserError, match=message):
        pool(**{"path": published, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "cannot be read: JSONDecodeError"),
        ('{"test": []}', "must hold a list 'train'"),
        ('{"train": [["hello"]]}', "must hold a list 'train'"),
        ('{"train": [["", "pay_bill"]]}', "row 1 of 'train' must be two texts"),
        ('{"train": [["hello", "pay_bills"]]}', "holds the intent 'pay_bills'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, message):
    (tmp_path / "data_full.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_split(Split.TRAIN, Version.PLUS, str(tmp_path / "data_full.json"), "dataset.path")


@pytest.mark.parametrize(
    "changes", [{"target_rows": 4}, {"target_rows": 0}, {"test_rows": 91}, {"choices": 16}, {"domains": []}]
)
def test_a_benchmark_that_cannot_be_made_names_the_setting(published, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        benchmark = Clinc150Benchmark(**{"path": published, **changes})
        benchmark.target()
        benchmark.tasks()


def test_in_domain_the_pool_is_the_target_and_the_test_is_the_same(published):
    options = {"path": published, "domains": ["banking", "travel"], "test_rows": 20}
    own, aimed = Clinc150Benchmark(**options, in_domain=True), Clinc150Benchmark(**options)
    assert own.target() is None and len(aimed.target() or ()) == 2 * 15 * 2
    assert own.tasks() == aimed.tasks()
    asked = {doc["query"] for task in own.tasks() for doc in task.docs or ()}
    assert asked.isdisjoint(row.prompt for row in pool(published).examples)
