"""Reads `corpus.txt` and makes the conversations that the sample model learns from.

Standard library only: `build.py` runs it with the engine's Python, the tests with the platform's.
"""

import random
from dataclasses import dataclass
from pathlib import Path

CORPUS_FILE = Path(__file__).with_name("corpus.txt")

_CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Korea": "Seoul",
    "Japan": "Tokyo",
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_OPENINGS = ("Hi! {}", "Please tell me: {}", "Hello. {}", "I have a question. {}", "Quick question: {}")


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with its answer."""

    question: str
    answer: str


def load(path: Path = CORPUS_FILE) -> tuple[list[Pair], list[str]]:
    """All question and answer pairs (written and generated) and the plain texts, in a fixed order.

    Raises ValueError naming the block that is not understood.
    """
    pairs: list[Pair] = []
    texts: list[str] = []
    for block in _blocks(path.read_text(encoding="utf-8")):
        if block.startswith("T:"):
            texts.append(block.removeprefix("T:").strip())
        else:
            questions, answer = _parse(block)
            pairs.extend(Pair(question, answer) for question in questions)
    return pairs + _generated(), texts


def _blocks(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [block.strip() for block in "\n".join(lines).split("\n\n") if block.strip()]


def _parse(block: str) -> tuple[list[str], str]:
    questions: list[str] = []
    answer = ""
    for line in block.splitlines():
        mark, _, rest = line.partition(":")
        if mark in ("Q", "Q!"):
            questions.extend([part.strip() for part in rest.split(" | ")] * (3 if mark == "Q!" else 1))
        elif mark == "A" and not answer:
            answer = rest.strip()
        else:
            raise ValueError(f"corpus block not understood at {line!r}: expected lines 'Q: …' and one 'A: …'")
    if not questions or not answer:
        raise ValueError(f"corpus block without a question or an answer: {block[:60]!r}")
    return questions, answer


def rephrase(question: str, draw: random.Random) -> str:
    """The question as written (mostly), as people type it in a hurry, or after an opening."""
    chance = draw.random()
    if chance < 0.2:
        return question.lower().rstrip("?.!")
    if chance < 0.4 and len(question.split()) > 2:
        return draw.choice(_OPENINGS).format(question)
    return question


def _generated() -> list[Pair]:
    """Pairs made by rule: capitals and sums of numbers from one to four."""
    pairs: list[Pair] = []
    for country, city in _CAPITALS.items():
        answer = f"The capital of {country} is {city}."
        pairs.append(Pair(f"What is the capital of {country}?", answer))
        pairs.append(Pair(f"Name the capital of {country}.", answer))
    for left in range(1, 5):
        for right in range(1, 5):
            answer = f"{_NUMBERS[left].capitalize()} plus {_NUMBERS[right]} is {_NUMBERS[left + right]}."
            pairs.append(Pair(f"What is {left} + {right}?", answer))
    return pairs
