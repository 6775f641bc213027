"""The numbers of a comparison, as judge.json has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_llm.config import UserError
from lit_llm.evaluation.judging.agreement import Agreement, agreement
from lit_llm.evaluation.judging.comparisons import Key, Line, Match, Plan, outcomes_of, winner
from lit_llm.evaluation.judging.labels import Label
from lit_llm.evaluation.judging.outcomes import Estimate, Outcomes
from lit_llm.evaluation.judging.strengths import Strengths, bradley_terry, elo
from lit_llm.evaluation.judging.win_rates import length_controlled, win_rate
from lit_llm.evaluation.perplexity import bootstrap_interval
from lit_llm.objectives import accuracy_interval

_OFTEN = 0.5
_NO_LENGTH = "one has the longer answer to every prompt, so that its length cannot be told from its worth"


def summarize(
    plan: Plan, lines: Mapping[Key, Line], labels: Mapping[Label, str], seed: int, examples: int
) -> dict[str, Any]:
    """All numbers of a comparison.

    Args:
        plan: what was asked.
        lines: the replies, by key.
        labels: verdicts of people.
        seed: of the bootstraps.
        examples: how many disagreements and unread replies are quoted.

    Raises:
        UserError: no comparison has a verdict, or some models cannot be linked by any.
    """
    names, matches = list(plan.answers), plan.matches(lines)
    outcomes = outcomes_of(matches, names, lambda name, number: len(plan.answers[name][number]))
    unparsed = _unparsed(plan, lines, examples)
    if not len(outcomes):
        raise UserError(
            f"no comparison has a verdict: {unparsed['replies']:,} replies could not be read, as "
            f"{unparsed['examples'][0]['reply'][:80]!r} ({unparsed['examples'][0]['problem']})"
        )
    strengths = bradley_terry(outcomes, names, seed)
    ratings = elo(outcomes, len(names), seed)
    models = [
        {
            **_rates(outcomes.of_model(number), seed),
            "name": name,
            "bradley_terry": strengths.ratings[number].as_dict(),
            "elo": ratings[number].as_dict(),
            "mean_length": float(np.mean([len(answer) for answer in plan.answers[name]])),
            "empty_answers": sum(not answer.strip() for answer in plan.answers[name]),
            **({"grade": _grade(plan, lines, name, seed)} if plan.graded else {}),
        }
        for number, name in enumerate(names)
    ]
    pairs = [_pair(matches, outcomes, names, *pair, seed) for pair in plan.pairs]
    order = _order(plan, matches, lines, seed)
    return {
        "prompts": len(plan.asked),
        "models": sorted(models, key=lambda model: -model["bradley_terry"]["value"]),
        "pairs": pairs,
        "without_judge": {how: sum(match.how == how for match in matches) for how in ("same", "empty")},
        "order": order,
        "itself": _itself(plan, lines, seed),
        "labels": _labels(matches, labels, seed),
        "unparsed": unparsed,
        "tokens": {name: sum(line[name] for line in lines.values()) for name in ("prompt_tokens", "completion_tokens")},
        "replies": len(lines),
        "reminded": sum(line["reminded"] for line in lines.values()),
        "notes": _notes(strengths, order, pairs),
        "disagreements": _disagreements(plan, matches, lines, examples),
    }


def _notes(strengths: Strengths, order: Mapping[str, Any] | None, pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the numbers has to know."""
    notes = []
    if strengths.regularized:
        notes.append(
            "Some models never lose to the others, so that no finite Bradley-Terry strengths are the likeliest: each "
            "pair was given one more tie, which holds the strengths together. Their intervals are too narrow."
        )
    if any(rating.high - rating.low < 1e-9 for rating in strengths.ratings):
        notes.append(
            "A strength without an interval comes of verdicts that are alike on all prompts: other draws of the "
            "prompts tell nothing new."
        )
    if order is not None and order["agreed"]["value"] < _OFTEN:
        notes.append(
            "The verdict changed with the order of the answers in more than half of the comparisons: this judge sees "
            "places rather than answers."
        )
    return notes + [
        f"{pair['one']} and {pair['other']}: {_NO_LENGTH}." for pair in pairs if not pair["length_controlled"]
    ]


def _rates(outcomes: Outcomes, seed: int) -> dict[str, Any]:
    """Win rates, seen from a model; None where it has no verdict."""
    if not len(outcomes):
        return {"comparisons": 0, "win_rate": None, "length_controlled": None}
    return {
        "comparisons": len(outcomes),
        "win_rate": win_rate(outcomes, seed).as_dict(),
        "length_controlled": _plain(length_controlled(outcomes, seed)),
    }


def _pair(
    matches: Sequence[Match], outcomes: Outcomes, names: Sequence[str], one: str, other: str, seed: int
) -> dict[str, Any]:
    counts = Counter(match.verdict for match in matches if (match.one, match.other) == (one, other))
    return {
        "one": one,
        "other": other,
        "wins": counts[one],
        "ties": counts["tie"],
        "losses": counts[other],
        "unparsed": counts[None],
        **_rates(outcomes.of_pair(names.index(one), names.index(other)), seed),
    }


def _grade(plan: Plan, lines: Mapping[Key, Line], name: str, seed: int) -> dict[str, Any] | None:
    """The mean grade of a model's answers."""
    grades = [lines[each.id, name, None, 0]["grade"] for each in plan.asked]
    known = np.array([grade for grade in grades if grade is not None], np.float64)
    if not len(known):
        return None
    interval = bootstrap_interval([(known, np.ones_like(known))], seed) if np.ptp(known) else None
    return Estimate(float(known.mean()), *(interval or (float(known.mean()),) * 2)).as_dict()


def _order(plan: Plan, matches: Sequence[Match], lines: Mapping[Key, Line], seed: int) -> dict[str, Any] | None:
    """How much a judge minds which answer comes first; None where it was not asked in both orders."""
    asked = [match for match in matches if match.how in ("agreed", "disagreed")]
    if plan.graded or not plan.both_orders or not asked:
        return None
    both = [(match, order) for match in asked for order in ((match.one, match.other), (match.other, match.one))]
    said = [(match, lines[match.asked.id, *order, 0]["verdict"]) for match, order in both]
    decided = [(match.asked.number, float(verdict == "first")) for match, verdict in said if verdict != "tie"]
    agreed = sum(match.how == "agreed" for match in asked)
    prompts, firsts = (np.array(column) for column in zip(*decided, strict=True)) if decided else ((), ())
    same = np.zeros(len(decided))
    shares = Outcomes(np.asarray(prompts, np.int64), same, same, np.asarray(firsts, np.float64), same)
    return {
        "comparisons": len(asked),
        "agreed": Estimate(agreed / len(asked), *accuracy_interval(agreed, len(asked))).as_dict(),
        "first_wins": win_rate(shares, seed).as_dict() if decided else None,
        "decided": len(decided),
    }


def _itself(plan: Plan, lines: Mapping[Key, Line], seed: int) -> dict[str, Any] | None:
    """How far the judge says the same when it is asked again."""
    twice = [((*key[:3], 0), key) for key in plan.keys if key[3] == 1]
    field = "grade" if plan.graded else "verdict"
    said = [tuple(lines[key][field] for key in pair) for pair in twice]
    known = [pair for pair in said if None not in pair]
    if not known:
        return None
    if plan.graded:
        grades = np.array(known, np.float64)
        distance = np.abs(grades[:, 0] - grades[:, 1])
        same = int((distance == 0).sum())
        share = Estimate(same / len(known), *accuracy_interval(same, len(known)))
        return {"questions": len(known), "share": share.as_dict(), "mean_difference": float(distance.mean())}
    one, other = zip(*known, strict=True)
    return {"questions": len(known), **_told(agreement(one, other, seed))}


def _labels(matches: Sequence[Match], labels: Mapping[Label, str], seed: int) -> dict[str, Any] | None:
    """How far the judge agrees with people."""
    if not labels:
        return None
    verdicts = {(match.asked.id, match.one, match.other): match for match in matches}
    ours: list[str] = []
    theirs: list[str] = []
    missing = 0
    for (prompt, one, other), label in labels.items():
        match = verdicts.get((prompt, one, other)) or verdicts.get((prompt, other, one))
        if match is None or match.verdict is None:
            missing += 1
            continue
        # which of the two it is, in the order of the match, so that kappa sees the same three verdicts for all pairs
        for said, kept in ((match.verdict, ours), (label, theirs)):
            kept.append("tie" if said == "tie" else "one" if said == match.one else "other")
    told = _told(agreement(ours, theirs, seed)) if ours else {"share": None, "kappa": None}
    return {"labels": len(labels), "compared": len(ours), "without_verdict": missing, **told}


def _told(found: Agreement) -> dict[str, Any]:
    return {"share": found.share.as_dict(), "kappa": _plain(found.kappa)}


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else found.as_dict()


def _unparsed(plan: Plan, lines: Mapping[Key, Line], most: int) -> dict[str, Any]:
    """The replies without a verdict."""
    found = [(key, lines[key]) for key in plan.keys if lines[key]["problem"]]
    return {
        "replies": len(found),
        "problems": dict(Counter(line["problem"] for _, line in found).most_common(max(most, 1))),
        "examples": [
            {"prompt": key[0], "first": key[1], "second": key[2], "problem": line["problem"], "reply": line["text"]}
            for key, line in found[: max(most, 1)]
        ],
    }


def _disagreements(plan: Plan, matches: Sequence[Match], lines: Mapping[Key, Line], most: int) -> list[dict[str, Any]]:
    """Comparisons whose verdict changed with the order."""
    found = []
    for match in [match for match in matches if match.how == "disagreed"][:most]:
        orders = ((match.one, match.other), (match.other, match.one))
        replies = [lines[match.asked.id, *order, 0] for order in orders]
        found.append(
            {
                "prompt": match.asked.id,
                "asked": match.asked.messages[-1].content,
                "answers": {name: plan.answers[name][match.asked.number] for name in orders[0]},
                "replies": [{"first": line["first"], "better": winner(line), "text": line["text"]} for line in replies],
            }
        )
    return found
