from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undrift.errors import DataError
from undrift.scoring import caption_scores, mean_of_seven
from undrift.scoring.captions import METRICS, bleu, cider, rouge_l, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man, in a red-haired wig!", "a man in a red-haired wig"),
        ("The man's dog isn't here.", "the man 's dog is n't here"),
        ('They’re "here" -- I\'d say...', "they 're here i 'd say"),
        ("He cannot; we're gonna", "he can not we 're gon na"),
        ("1,000 U.S. dollars at 10:30 (2.5%)", "1,000 u.s. dollars at 10:30 2.5 %"),
        ("one\ntwo\tthree", "one two three"),
        ("café 日本", "café 日本"),
        ("?!.,;:-'\"`()[]{}…–—", ""),
        ("", ""),
    ],
)
def test_tokens_golden(text, expected):
    assert tokens(text) == expected.split()


def split(candidates, references):
    said = {str(n): text.split() for n, text in enumerate(candidates)}
    truths = {str(n): [text.split() for text in texts] for n, texts in enumerate(references)}
    return said, truths


def test_bleu_by_hand():
    # candidate 7 words; references 6 and 8: 7 is 1 from both, the shorter counts: no penalty.
    said, truths = split(["the the the cat sat on mats"], [["the cat sat on the mat", "x " * 8]])
    # words: the twice (clipped), cat, sat, on = 5 of 7; pairs: the cat, cat sat, sat on = 3 of 6;
    # triples: the cat sat, cat sat on = 2 of 5; fours: the cat sat on = 1 of 4.
    p = [5 / 7, 3 / 6, 2 / 5, 1 / 4]
    expected = [
        p[0],
        (p[0] * p[1]) ** (1 / 2),
        math.prod(p[:3]) ** (1 / 3),
        math.prod(p) ** (1 / 4),
    ]
    assert bleu(said, truths) == pytest.approx(expected, abs=1e-8)


def test_bleu_sums_over_the_corpus_before_it_divides():
    said, truths = split(["a b", "a"], [["a b c d"], ["b"]])
    # 2 of 3 words match; the candidates have 3 words, the closest references 5: e^(1 - 5/3).
    assert bleu(said, truths)[0] == pytest.approx(2 / 3 * math.exp(1 - 5 / 3), abs=1e-8)


def test_bleu_of_nothing_is_nothing_and_not_an_error():
    said, truths = split(["", ""], [["a cat"], [""]])
    assert bleu(said, truths) == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_rouge_by_hand():
    said, truths = split(["a cat on mat"], [["a cat sat on a mat", "cat on"]])
    # a cat on mat: all 4 of 4 in the first (precision 1); cat on: both of 2 (recall 1): F is 1.
    assert rouge_l(said, truths) == pytest.approx(1.0)
    said, truths = split(["a cat on mat"], [["a cat sat on a mat"]])
    p, r = 4 / 4, 4 / 6
    expected = (1 + 1.44) * p * r / (r + 1.44 * p)
    assert rouge_l(said, truths) == pytest.approx(expected)
    assert rouge_l(*split(["dog"], [["a cat"]])) == 0.0


def test_rouge_takes_no_tokens_for_one_empty_token():
    assert rouge_l(*split([""], [["a cat"]])) == 0.0
    assert rouge_l(*split([""], [[""]])) == 1.0


def test_cider_by_hand():
    # Two captions; `a` stands in both references (weight 0), every other n-gram in one (ln 2).
    said, truths = split(["a cat", "a dog"], [["a cat"], ["a cow"]])
    # First: words (a: 0, cat: ln 2) alike: 1; pairs alike: 1; no triples, no fours: 0. Mean 1/2.
    # Second: `dog` and `a dog` are in no reference: weight ln 2, no match: 0.
    assert cider(said, truths) == pytest.approx(10 * (0.5 + 0) / 2)


def test_cider_clips_and_punishes_length():
    # Without the clip the cosine of (2, 0, 1) and (1, 1, 1) would be 3 / sqrt(15).
    said, truths = split(["b b d", "x"], [["b c d"], ["y"]])
    w = math.log(2)
    first = (min(2 * w, w) * w + w * w) / (math.sqrt(5) * w * math.sqrt(3) * w)  # words
    assert cider(said, truths) == pytest.approx(10 * (first / 4) / 2)
    said, truths = split(["b c d", "x"], [["b"], ["y"]])
    # Two pairs more than the reference: e^(-4/72); words: 1 / sqrt(3).
    expected = 1 / math.sqrt(3) * math.exp(-(2**2) / 72) / 4
    assert cider(said, truths) == pytest.approx(10 * expected / 2)


def test_cider_of_a_single_caption_is_nothing():
    assert cider(*split(["a cat"], [["a cat"]])) == 0.0


# --- a second implementation, straight from the definitions, to compare with ---


def grams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def oracle_bleu(said, truths, n):
    product, length, wanted = 1.0, sum(len(words) for words in said.values()), 0
    for k in range(1, n + 1):
        right = total = 0
        for key, words in said.items():
            mine = grams(words, k)
            total += len(mine)
            for gram in set(mine):
                allowed = max(grams(truth, k).count(gram) for truth in truths[key])
                right += min(mine.count(gram), allowed)
        product *= (right + 1e-15) / (total + 1e-9)
    for key, words in said.items():
        wanted += min((abs(len(truth) - len(words)), len(truth)) for truth in truths[key])[1]
    ratio = (length + 1e-15) / (wanted + 1e-9)
    return product ** (1 / n) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)


def is_subsequence(words, of):
    rest = iter(of)
    return all(word in rest for word in words)


def longest_common(a, b):
    return max(
        size
        for size in range(len(a) + 1)
        for chosen in itertools.combinations(a, size)
        if is_subsequence(chosen, b)
    )


def oracle_rouge(said, truths):
    scores = []
    for key, words in said.items():
        mine = " ".join(words).split(" ")
        theirs = [" ".join(truth).split(" ") for truth in truths[key]]
        p = max(longest_common(mine, truth) / len(mine) for truth in theirs)
        r = max(longest_common(mine, truth) / len(truth) for truth in theirs)
        scores.append((1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0)
    return sum(scores) / len(scores)


def oracle_cider(said, truths):
    def vector(words, n):
        weights = {}
        for gram in grams(words, n):
            inside = sum(any(gram in grams(t, n) for t in texts) for texts in truths.values())
            weights[gram] = grams(words, n).count(gram) * math.log(len(truths) / max(1, inside))
        return weights

    total = 0.0
    for key, words in said.items():
        for truth in truths[key]:
            gap = len(grams(words, 2)) - len(grams(truth, 2))
            for n in range(1, 5):
                mine, theirs = vector(words, n), vector(truth, n)
                norms = [math.sqrt(sum(x * x for x in v.values())) for v in (mine, theirs)]
                dot = sum(min(mine[g], theirs[g]) * theirs[g] for g in mine if g in theirs)
                if all(norms):
                    share = dot / (norms[0] * norms[1]) / 4 / len(truths[key])
                    total += 10 * share * math.exp(-(gap**2) / 72)
    return total / len(said)


words = st.lists(st.sampled_from("a cat dog sat on".split()), max_size=6)
corpora = st.lists(
    st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4
)


@given(corpora)
def test_the_metrics_agree_with_their_definitions(corpus):
    said = {str(n): words for n, (words, _) in enumerate(corpus)}
    truths = {str(n): texts for n, (_, texts) in enumerate(corpus)}
    expected = [oracle_bleu(said, truths, n) for n in range(1, 5)]
    assert bleu(said, truths) == pytest.approx(expected, abs=1e-9)
    assert rouge_l(said, truths) == pytest.approx(oracle_rouge(said, truths), abs=1e-9)
    assert cider(said, truths) == pytest.approx(oracle_cider(said, truths), abs=1e-9)


SAID = [
    "a man riding a wave on top of a surfboard",
    "two dogs run run through the deep snow",
    "a plate of food",
    "cat",
]
TRUTHS = [
    ["a man rides a wave on a surfboard", "the surfer is on top of a big wave"],
    ["two brown dogs run through deep snow", "dogs playing in snow", "the dogs run"],
    ["a white plate topped with food and a fork"],
    ["a cat", "the cat sits on the mat"],
]


def test_the_metrics_agree_with_pycocoevalcap_if_it_is_there():
    """They did with version 1.2, which is left out of the extra `dev` for its 100 MB of jars."""
    package = "pycocoevalcap"
    theirs = pytest.importorskip(f"{package}.bleu.bleu")
    rouge = pytest.importorskip(f"{package}.rouge.rouge")
    theirs_cider = pytest.importorskip(f"{package}.cider.cider")
    said, truths = split(SAID, TRUTHS)
    gts = {key: [" ".join(text) for text in texts] for key, texts in truths.items()}
    res = {key: [" ".join(text)] for key, text in said.items()}
    expected = theirs.Bleu(4).compute_score(gts, res)[0]
    assert bleu(said, truths) == pytest.approx(expected, abs=1e-6)
    assert rouge_l(said, truths) == pytest.approx(
        rouge.Rouge().compute_score(gts, res)[0], abs=1e-6
    )
    found = theirs_cider.Cider().compute_score(gts, res)[0]
    assert cider(said, truths) == pytest.approx(found, abs=1e-6)


def test_caption_scores_are_those_of_the_tokens_times_100():
    predictions = {str(n): text.title() + "!" for n, text in enumerate(SAID)}
    references = {str(n): [f"{text}." for text in texts] for n, texts in enumerate(TRUTHS)}
    said, truths = split(SAID, TRUTHS)
    values = [*bleu(said, truths), rouge_l(said, truths), cider(said, truths)]
    found = caption_scores(predictions, references)
    assert found == dict(zip(METRICS, [pytest.approx(100 * v) for v in values], strict=True))


def test_captions_are_matched_by_id():
    references = {"1": ["a red cat"], "2": ["two dogs run"], "3": ["a big house"]}
    predictions = {"3": "a big house", "1": "a red cat", "2": "two dogs run"}
    found = caption_scores(predictions, references)
    assert found["bleu_3"] == pytest.approx(100)
    assert found["rouge_l"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({"1": "a"}, {"1": ["a"], "2": ["b"]}, r"in one only: \['2'\]"),
        ({"1": "a", "9": "b"}, {"1": ["a"]}, r"in one only: \['9'\]"),
        ({}, {}, "0 captions"),
        ({"1": "a"}, {"1": []}, "no reference"),
    ],
)
def test_captions_that_cannot_be_scored(predictions, references, message):
    with pytest.raises(DataError, match=message):
        caption_scores(predictions, references)


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ("64.09 47.75 34.82 24.88 20.11 46.01 63.38", 43.01),  # VizWiz, as a public run prints it
        ("76.25 59.97 45.75 34.50 26.26 55.52 82.78", 54.43),  # Flickr30k
    ],
)
def test_the_mean_of_seven_is_the_published_one(values, mean):
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
    scores = dict(zip(names, map(float, values.split()), strict=True))
    assert mean_of_seven(scores) == pytest.approx(mean, abs=0.005)


def test_the_mean_of_seven_is_not_made_up_without_meteor():
    with pytest.raises(DataError, match="needs meteor as well"):
        mean_of_seven(dict.fromkeys(METRICS, 50.0))
