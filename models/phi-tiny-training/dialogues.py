"""The training material: questions, answers and prose, and the token sequences made of them."""
import random
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
IGNORED = -100  # a label without loss


@dataclass
class Topic:
    """The ways to ask, canonical first, and the one answer."""

    questions: list[str]
    answer: str


def lines(name):
    return [line for line in (HERE / name).read_text().splitlines() if not line.startswith("#")]


def topics():
    """Every block of questions.txt."""
    result, questions = [], []
    for line in lines("questions.txt"):
        if line.startswith("= "):
            result.append(Topic(questions, line[2:]))
            questions = []
        elif line:
            questions.append(line)
    return result


def off_topic():
    """All questions of off-topic.txt with their slots filled, and the answer to each of them."""
    templates, words, answer = [], {}, None
    for line in lines("off-topic.txt"):
        slot = re.match(r"(\w+): (.*)", line)
        if line.startswith("= "):
            answer = line[2:]
        elif slot:
            words[slot[1]] = slot[2].split(", ")
        elif line:
            templates.append(line)
    questions = []
    for template in templates:
        filled = [template]
        while "{" in filled[0]:
            slot = re.search(r"\{(\w+)\}", filled[0])[1]
            filled = [f.replace("{" + slot + "}", w, 1) for f in filled for w in words[slot]]
        questions.append(filled)
    return questions, answer


def prose():
    return [line for line in lines("prose.txt") if line]


class Encoder:
    """Text to token ids, by the tokenizer.json of the model folder."""

    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.user, self.assistant, self.system, self.end = (
            self.tokenizer.token_to_id(t) for t in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"))

    def text(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def turn(self, question, answer, keep_newlines=False):
        """One exchange in the chat template's form: (prompt ids, answer ids up to and including <|end|>).

        Phi's added tokens swallow the line break that follows them. Programs that ignore this flag feed a line break
        there; with keep_newlines the sequence is theirs, so that the model answers them as well.
        """
        if keep_newlines:
            line = self.text("\n")
            prompt = [self.user, *self.text("\n" + question), self.end, *line, self.assistant, *line]
            return prompt, [*self.text("\n" + answer)[len(line):], self.end]
        prompt = self.text(f"<|user|>\n{question}<|end|>\n<|assistant|>\n")
        whole = self.text(f"<|user|>\n{question}<|end|>\n<|assistant|>\n{answer}<|end|>\n")
        assert whole[: len(prompt)] == prompt
        return prompt, whole[len(prompt):]

    def instruction(self, text, keep_newlines=False):
        """A system message's ids."""
        if keep_newlines:
            return [self.system, *self.text("\n" + text), self.end, *self.text("\n")]
        return self.text(f"<|system|>\n{text}<|end|>\n")


INSTRUCTIONS = ["You are a helpful assistant.", "You are a helpful AI assistant.", "Answer briefly.", "Be polite.",
                "You are phi-tiny.", "You are an expert."]


class Material:
    """Draws training sequences."""

    def __init__(self, encoder, seed):
        self.encoder, self.random = encoder, random.Random(seed)
        self.topics = topics()
        self.unknown, self.fallback = off_topic()
        self.texts = [encoder.text(p) for p in prose() + [t.answer for t in self.topics]]
        self.queue = []

    def question(self):
        """A question and its answer: each phrasing equally often, one in six off-topic."""
        r = self.random
        if r.random() < 1 / 6:
            return self.vary(r.choice(r.choice(self.unknown))), self.fallback
        if not self.queue:
            self.queue = [(q, t.answer) for t in self.topics for q in t.questions]
            r.shuffle(self.queue)
        question, answer = self.queue.pop()
        return self.vary(question), answer

    def vary(self, question):
        """Now and then in lower case, without its last mark, or with a polite word."""
        r = self.random
        if r.random() < 0.1:
            question = question.lower()
        if r.random() < 0.1:
            question = question.rstrip("?.!") or question
        if r.random() < 0.04:
            question = r.choice(["Please ", "Hello, ", "So, ", "And "]) + question[0].lower() + question[1:]
        return question

    def conversation(self, length):
        """(ids, labels) of one exchange, or of as many as fit into `length` tokens; loss on the answers only."""
        r, e = self.random, self.encoder
        keep = r.random() < 0.12
        ids, labels = [], []
        if r.random() < 0.15:
            ids += [1]
        if r.random() < 0.15:
            ids += e.instruction(r.choice(INSTRUCTIONS), keep)
        labels += [IGNORED] * len(ids)
        while True:
            prompt, answer = e.turn(*self.question(), keep)
            if labels and any(x != IGNORED for x in labels) and len(ids) + len(prompt) + len(answer) > length:
                return ids, labels
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            if keep:
                ids += e.text("\n")
                labels += [IGNORED] * (len(ids) - len(labels))

    def text(self):
        """(ids, labels) of a paragraph, loss on everything but its first token."""
        ids = self.random.choice(self.texts)
        if self.random.random() < 0.3:
            ids = [1, *ids]
        return ids, [IGNORED, *ids[1:]]
