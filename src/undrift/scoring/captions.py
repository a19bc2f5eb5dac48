"""Caption metrics: BLEU-1 to 4, ROUGE-L and CIDEr, as pycocoevalcap computes them from tokens.

On GIVEN tokens the three follow pycocoevalcap's formulas (a test compares where it is installed).
The tokens are ours: pycocoevalcap calls Stanford's PTB tokenizer, a Java program, and `tokens` is a
short imitation of it (its docstring lists the differences), so scores of whole captions may
differ; by how much has not been measured.

METEOR is NOT here. pycocoevalcap calls another Java program with its own stemmer, WordNet synonyms,
a paraphrase table and tuned weights; a version without these would be a different number under the
same name. UCIT's published caption score is the mean of seven metrics, METEOR among them:
`mean_of_seven` takes METEOR's value from whoever has computed it.

Captions are matched by id. The public code numbers predictions by their line instead, so that a
shuffled file is compared with the wrong references.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from statistics import fmean

from rapidfuzz.distance import LCSseq

from undrift.errors import DataError
from undrift.scoring.edit_distance import COMPARED

Tokens = Sequence[str]
Ngrams = Counter[tuple[str, ...]]

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
SEVEN = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
_ORDERS = range(1, 5)

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_JOINED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_TOKEN = re.compile(
    r"n't|'(?:s|re|ve|ll|d|m)\b"  # clitics
    r"|(?:[^\W\d_]\.){2,}"  # u.s.
    r"|\d+(?:[.,:/]\d+)+"  # 1,000  2.5  10:30  1/2
    r"|\w+(?:[-'&]\w+)*"  # words, also red-haired
    r"|[^\w\s.,:;?!\-'\"`()\[\]{}…–—‘’“”]"  # other signs, one by one
)


def tokens(text: str) -> list[str]:
    """Part a caption into lower-case words, without punctuation, nearly as Stanford's PTB does.

    Alike: `isn't` is `is n't`, `man's` is `man 's`, `cannot` is `can not`; numbers, hyphenated
    words and `u.s.` stay whole; periods, commas, quotes, dashes, colons, `?` and `!` go.

    Not alike: British spelling is kept (theirs turns `colour` into `color`); brackets vanish
    (theirs may stay as `-lrb-`); a period after an abbreviation (`mr.`) is dropped; fractions,
    currencies, slashes, web addresses and smileys get no treatment of their own. Of a text of more
    tokens the first `COMPARED` count (no caption comes near).
    """
    text = text.lower().replace("’", "'")
    text = _JOINED.sub(lambda found: " ".join(filter(None, found.groups())), text)
    found = _TOKEN.finditer(_CLITIC.sub(r" \1", text))
    return [token.group() for token in islice(found, COMPARED)]


def bleu(
    candidates: Mapping[str, Tokens], references: Mapping[str, Sequence[Tokens]]
) -> list[float]:
    """Compute BLEU-1 to BLEU-4 of a corpus.

    Clipped n-gram counts and lengths are summed over the corpus before they are divided. The length
    that a candidate is held against is the closest of its references', the shorter of two equally
    close. The tiny constants of the public code (1e-15 above, 1e-9 below the fraction bar) are
    kept: they make an order without any match nearly 0 instead of an error.

    Returns four scores in [0, 1], BLEU-1 first, of one candidate per id and its references.
    """
    matched, guessed = Counter[int](), Counter[int]()
    length = wanted = 0
    for key, candidate in candidates.items():
        lengths = [len(reference) for reference in references[key]]
        length += len(candidate)
        wanted += min(lengths, key=lambda n: (abs(n - len(candidate)), n))
        for n in _ORDERS:
            allowed: Ngrams = Counter()
            for reference in references[key]:
                allowed |= _ngrams(reference, n)
            said = _ngrams(candidate, n)
            matched[n] += (said & allowed).total()
            guessed[n] += said.total()
    ratio = (length + 1e-15) / (wanted + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    precisions = [(matched[n] + 1e-15) / (guessed[n] + 1e-9) for n in _ORDERS]
    return [math.prod(precisions[:n]) ** (1 / n) * brevity for n in _ORDERS]


def _ngrams(words: Tokens, n: int) -> Ngrams:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def rouge_l(candidates: Mapping[str, Tokens], references: Mapping[str, Sequence[Tokens]]) -> float:
    """Compute the mean over captions of ROUGE-L, an F-score of the longest common subsequence.

    beta is 1.2. Precision and recall are each the best over the references, so they may come
    from two of them. No tokens count as one token that is empty, as splitting an empty line at
    spaces gives: against a reference without tokens they score 1.
    """
    return fmean(_rouge_l(candidates[key], references[key]) for key in candidates)


def _rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    candidate = candidate or [""]
    pairs = [(_common_length(candidate, r or [""]), len(r or [""])) for r in references]
    precision = max(common for common, _ in pairs) / len(candidate)
    recall = max(common / length for common, length in pairs)
    if not precision:
        return 0.0
    beta_squared = 1.2**2
    return (1 + beta_squared) * precision * recall / (recall + beta_squared * precision)


def _common_length(left: Tokens, right: Tokens) -> int:
    numbers: dict[str, int] = {}
    numbered = [
        [numbers.setdefault(token, len(numbers)) for token in tokens] for tokens in (left, right)
    ]
    return LCSseq.similarity(*numbered)


def cider(candidates: Mapping[str, Tokens], references: Mapping[str, Sequence[Tokens]]) -> float:
    """Compute CIDEr as pycocoevalcap's class Cider does, which is in truth CIDEr-D without stems.

    For n = 1 to 4, captions are vectors of n-gram counts times log(captions / captions with that
    n-gram in a reference). Similarity is the cosine with the candidate's weight CLIPPED at the
    reference's, times exp(-d^2 / 72), d the difference in words (sigma is 6). The mean over
    references, orders and captions is multiplied by 10. The weights depend on the whole file: with
    a single id all are 0, and so is the score. Where a vector is 0 its similarity is 0; the first
    public code divided by 0 there. The score is in [0, 10]; tables print it times 100.
    """
    captions = Counter[tuple[str, ...]]()
    for truths in references.values():
        captions.update({gram for truth in truths for n in _ORDERS for gram in _ngrams(truth, n)})
    total = math.log(len(references))

    def weight(gram: tuple[str, ...]) -> float:
        return total - math.log(max(1, captions[gram]))

    return fmean(
        fmean(_similarity(candidates[key], truth, weight) for truth in truths)
        for key, truths in references.items()
    )


def _similarity(
    candidate: Tokens, truth: Tokens, weight: Callable[[tuple[str, ...]], float]
) -> float:
    apart = len(candidate) - len(truth)
    cosines: list[float] = []
    for n in _ORDERS:
        said = {gram: count * weight(gram) for gram, count in _ngrams(candidate, n).items()}
        true = {gram: count * weight(gram) for gram, count in _ngrams(truth, n).items()}
        norms = math.hypot(*said.values()) * math.hypot(*true.values())
        dot = sum(
            min(value, true.get(gram, 0.0)) * true.get(gram, 0.0) for gram, value in said.items()
        )
        cosines.append(dot / norms if norms else 0.0)
    return 10 * fmean(cosines) * math.exp(-(apart**2) / (2 * 6.0**2))


def caption_scores(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Score a file of captions.

    Args:
        predictions: One caption per id, in any order.
        references: The captions that people wrote, at least one per id, of the same ids.

    Returns:
        Each of METRICS, times 100 as tables print it. Captions and references are parted by
        `tokens`.

    Raises:
        DataError: If the ids of the two differ, if there are none, or if one has no reference.
    """
    apart = sorted(predictions.keys() ^ references.keys())
    if apart or not references:
        raise DataError(
            f"{len(predictions)} captions and references for {len(references)}; expected the same "
            f"ids in both, at least one; the first that is in one only: {apart[:1]}"
        )
    for key, texts in references.items():
        if not texts:
            raise DataError(f"the caption {key!r} has no reference; give at least one")
    said = {key: tokens(predictions[key]) for key in references}
    truths = {key: [tokens(text) for text in texts] for key, texts in references.items()}
    values = [*bleu(said, truths), rouge_l(said, truths), cider(said, truths)]
    return {name: 100 * value for name, value in zip(METRICS, values, strict=True)}


def mean_of_seven(scores: Mapping[str, float]) -> float:
    """Compute UCIT's caption score: the plain mean of the metrics SEVEN, each times 100.

    They are those of `caption_scores` and `meteor` from elsewhere; a missing one is a DataError.
    CIDEr is not bounded by 100, so neither is this.
    """
    missing = [name for name in SEVEN if name not in scores]
    if missing:
        raise DataError(
            f"the mean of seven needs {', '.join(missing)} as well; METEOR is not computed here: "
            "run pycocoevalcap, which needs Java, and add its value times 100 as 'meteor'"
        )
    return fmean(scores[name] for name in SEVEN)
