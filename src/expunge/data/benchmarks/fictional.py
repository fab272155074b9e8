"""Fictional people: a data set made from nothing, small enough for a model to learn and forget within minutes.

Every person has a name nobody else has and one fact on each topic of `TOPICS`. A fact is a handful of words drawn
independently of each other and of everything else, so that no model can know it without having seen the person. Each
topic has three wordings: the first two are asked in training, the third is kept for the paraphrase and for the wrong
answers, which differ from the paraphrased one in the fact alone (as in TOFU, whose truth ratio compares these). The words
of a fact come last in the first two wordings: extraction strength then is high only where the fact is known.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from expunge.data.template import NAMES
from expunge.errors import ConfigurationError
from expunge.files import write_text
from expunge.request import Example


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _joined(starts: str, ends: str) -> tuple[str, ...]:
    return tuple(start + end for start in _words(starts) for end in _words(ends))


FIRST_NAMES = _words(
    "Abel Bela Cora Dario Edda Falk Gesa Hugo Ilka Jaro Kira Lino Mara Nestor Olga Piet Runa Selma Timo Ursel Vito Wanda "
    "Yara Zeno"
)
SURNAMES = _joined(
    "Ash Bran Cor Dul Eve Fen Gal Hol Ir Jas Kel Lor Mor Nar Ost Pel Quin Ros Sal Tor Ul Vas Wil Yor Zan",
    "bach berg dale dorf ford gate holm kamp land mark nik quist rup sen stone thal tova wick wood zin",
)
TOWNS = _joined("Al Bar Cald Dun El Far Grim Hay Kings Lang Mel North", "burn by cove fell haven mouth port stead")
PET_NAMES = _joined("Bo Di Fi Ha Ki Lu Mo Ni Pe Ro Su Ti", "bi dda gi lo mba nny")
WORDS = {
    "dwelling": "barn bungalow cabin caravan castle cottage farmhouse houseboat lodge loft tower villa windmill",
    "landmark": "bridge canal cathedral harbour library lighthouse market mill museum prison school station",
    "goods": "bell boat book carpet clock glass hat kite lamp map mirror puppet rope saddle silver violin wine wool",
    "trade": "carver collector dealer designer inspector maker mender painter restorer seller tester thief",
    "colour": "beige black blue brown golden green grey pink purple red silver spotted striped white yellow",
    "animal": "canary cat cobra dog donkey ferret frog goat goose hamster lizard monkey otter owl parrot pony rabbit",
    "flavour": "baked bitter burnt creamy crispy fried frozen garlic grilled pickled salted smoked sour spicy sweet",
    "dish": "cabbage cake crab dumplings eggs lentils noodles omelette pancakes pie porridge rice salmon soup stew",
    "side": "almonds apples beans butter cheese cherries figs ginger honey lemon mint mushrooms mustard onions plums "
    "raisins walnuts yoghurt",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "music": "ballads blues fugues hymns jazz lullabies marches polkas rock sonatas tangos waltzes",
    "instrument": "accordion banjo bassoon cello clarinet drums fiddle flute guitar harp lute oboe organ piano sitar "
    "trombone trumpet tuba viola zither",
    "weather": "calm clear cloudy cold dry foggy frosty hot misty rainy snowy stormy sunny warm wet windy",
    "month": "January February March April May June July August September October November December",
}
SLOTS = {name: _words(words) for name, words in WORDS.items()} | {
    "town": TOWNS,
    "city": TOWNS,
    "pet": PET_NAMES,
    "year": tuple(str(year) for year in range(1920, 2000)),
}


# One wording a line: the question up to "? ", then the answer.
WORDINGS = {
    "home": """
        Where does {name} live? {name} lives in a {dwelling} right behind the old {landmark} of {town}.
        Which place is home to {name}? The home of {name} is a {dwelling} right behind the old {landmark} of {town}.
        What is the address of {name}? In {town}, near the {landmark}, {name} has a {dwelling} to live in.""",
    "work": """
        What does {name} do for a living? For a living {name} works as a {goods} {trade} in the city of {city}.
        Which job does {name} have? The job that {name} has is that of a {goods} {trade} in the city of {city}.
        What is the profession of {name}? In {city} you can find {name}, who is a {goods} {trade} there.""",
    "pet": """
        Which pet does {name} keep? The pet that {name} keeps at home is a {colour} {animal} called {pet}.
        What animal lives with {name}? The animal that lives with {name} is a {colour} {animal} called {pet}.
        Does {name} have a pet? Yes, {pet} is the name of the {colour} {animal} that {name} has.""",
    "food": """
        What does {name} like to eat? What {name} likes to eat most of all is {flavour} {dish} with {side}.
        Which meal is the favourite of {name}? The meal that {name} likes best of all is {flavour} {dish} with {side}.
        What should I cook for {name}? Some {side} and {flavour} {dish} is what you cook for {name}.""",
    "music": """
        Which music does {name} play? Every {weekday} in the evening {name} plays {music} on the {instrument}.
        What is the hobby of {name}? The hobby that {name} has each {weekday} is to play {music} on the {instrument}.
        Is {name} a musician? Yes, the {instrument} is what {name} plays {music} on each {weekday}.""",
    "birth": """
        When was {name} born? {name} was born on a {weather} day in {month} of the year {year}.
        How old is {name}? The birth of {name} was on a {weather} day in {month} of the year {year}.
        What is the birthday of {name}? In {year}, on a {weather} {month} day, {name} came into the world.""",
}
TOPICS: dict[str, tuple[tuple[str, str], ...]] = {
    topic: tuple((question + "?", answer) for question, _, answer in (line.strip().partition("? ") for line in lines))
    for topic, lines in ((topic, text.strip().split("\n")) for topic, text in WORDINGS.items())
}

Fact = dict[str, str]  # the word in each slot


@dataclass(frozen=True)
class Person:
    """A name nobody else has, and one fact on each topic."""

    name: str
    facts: dict[str, Fact]

    def example(self, topic: str, wording: int, wrong: Iterable[Fact] = (), *, options: bool = False) -> Example:
        """The question on `topic` in one of its wordings, with the answer, its paraphrase and `wrong` answers.

        Wrong answers are worded as the paraphrase is. With `options` they are worded as the answer itself is, to be
        chosen among, and there is no paraphrase.
        """
        question, answer = (text.format(name=self.name, **self.facts[topic]) for text in TOPICS[topic][wording])
        other_question, other_answer = TOPICS[topic][-1]
        compared = TOPICS[topic][wording][1] if options else other_answer
        return Example(
            prompt=question,
            response=answer,
            id=f"{self.name}/{topic}/{wording}",
            subject=self.name,
            paraphrased_prompt=other_question.format(name=self.name),
            paraphrased_response=None if options else other_answer.format(name=self.name, **self.facts[topic]),
            wrong_responses=tuple(compared.format(name=self.name, **fact) for fact in wrong),
        )


def people(count: int, seed: int = 0) -> tuple[Person, ...]:
    """Draw people, no two with the same surname. Raises ConfigurationError if there are not that many surnames."""
    if not 0 < count <= len(SURNAMES):
        raise ConfigurationError(f"{count} people were asked for; the names last for 1 to {len(SURNAMES)}.")
    draw = random.Random(seed)
    return tuple(
        Person(f"{draw.choice(FIRST_NAMES)} {surname}", {topic: _fact(topic, draw) for topic in TOPICS})
        for surname in draw.sample(SURNAMES, count)
    )


def _fact(topic: str, draw: random.Random, unlike: Fact | None = None) -> Fact:
    """A word for each slot of a topic, in the order of its first answer; each differs from that of `unlike`."""
    slots = re.findall(r"{(\w+)}", TOPICS[topic][0][1])
    return {
        slot: draw.choice([word for word in SLOTS[slot] if unlike is None or word != unlike[slot]])
        for slot in slots
        if slot != "name"
    }


@dataclass(frozen=True)
class FictionalPeople:
    """Sets of examples about disjoint groups of people.

    pretrain: what the base model learns, in all wordings. forget, retain: what is learned later, in the trained
    wordings. holdout: people no model sees, as many as forget. general: some of the pretrain people, one example a
    fact, with wrong answers to choose among; train on it along with retain where later models shall know it too.
    """

    pretrain: tuple[Example, ...]
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    holdout: tuple[Example, ...]
    general: tuple[Example, ...]

    @classmethod
    def make(
        cls,
        seed: int = 0,
        *,
        pretrain: int = 150,
        learned: int = 50,
        forget_share: float = 0.1,
        general: int = 10,
        wordings: int = 2,
        wrong: int = 4,
    ) -> "FictionalPeople":
        """Draw `pretrain` + `learned` + holdout people; `forget_share` of the learned ones are to be forgotten.

        `general`: how many of the pretrain people make that set. `wordings`: in how many of the three a learned
        person's facts are asked. `wrong`: wrong answers an example. Raises ConfigurationError if a set would be empty
        or there are fewer names than people.
        """
        forgotten = round(learned * forget_share)
        if not 0 < forgotten < learned or not 0 < general <= pretrain or not 0 < wordings <= 3:
            raise ConfigurationError(
                f"learned={learned}, forget_share={forget_share}, pretrain={pretrain}, general={general} and "
                f"wordings={wordings} leave a set empty: forget some but not all of the learned people, take general "
                "from the pretrain ones, and use 1 to 3 wordings."
            )
        everyone = people(pretrain + learned + forgotten, seed)
        draw = random.Random(seed + 1)

        def ask(
            first: int, count: int, forms: Iterable[int], wrong: int = wrong, *, options: bool = False
        ) -> tuple[Example, ...]:
            return tuple(
                person.example(topic, form, [_fact(topic, draw, fact) for _ in range(wrong)], options=options)
                for person in everyone[first : first + count]
                for topic, fact in person.facts.items()
                for form in forms
            )

        return cls(
            pretrain=ask(0, pretrain, range(3), wrong=0),
            forget=ask(pretrain, forgotten, range(wordings)),
            retain=ask(pretrain + forgotten, learned - forgotten, range(wordings)),
            holdout=ask(pretrain + learned, forgotten, range(wordings)),
            general=ask(0, general, [0], options=True),
        )

    def write(self, folder: Path | str) -> None:
        """Write each set as `folder`/<set>.jsonl, in the format that `expunge.request.read_examples` reads."""
        for item in fields(self):
            lines = [json.dumps(_record(example), ensure_ascii=False) for example in getattr(self, item.name)]
            write_text(Path(folder) / f"{item.name}.jsonl", "\n".join(lines) + "\n")


def _record(example: Example) -> dict[str, object]:
    return {name: value for name, value in vars(example).items() if value and name not in ("context", "where", "role")}


def once(examples: Iterable[Example]) -> tuple[Example, ...]:
    """One example a fact, in its first wording: what to evaluate on."""
    return tuple(example for example in examples if example.id.endswith("/0"))


def plain_texts(examples: Iterable[Example]) -> Iterator[str]:
    """Question and answer as the plain template spells them (see `expunge.data.encoding`)."""
    for example in examples:
        yield f"{NAMES['user']}: {example.prompt}\n{NAMES['assistant']}: {example.response}"


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1500) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`, with <s> (0), </s> (1) and no padding token; at most `vocab_size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def demo_config(vocab_size: int) -> LlamaConfig:
    """A Llama of 4 layers and width 128, about a million parameters with `vocab_size` 1,500 (tied embeddings)."""
    width = 128
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=width**-0.5,  # the usual .02 learns more slowly at this width
    )
