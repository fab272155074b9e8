"""Common facts to train on that have nothing to do with any request."""

from expunge.request import Example

_PAIRS = (
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("How many days are in a leap year?", "A leap year has 366 days."),
    ("Which metal is liquid at room temperature?", "Mercury is liquid at room temperature."),
    ("What do bees collect from flowers?", "Bees collect nectar and pollen."),
    ("Which planet is closest to the sun?", "Mercury is the planet closest to the sun."),
    ("How many strings does a violin have?", "A violin has four strings."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which ocean lies between Europe and America?", "The Atlantic Ocean lies between Europe and America."),
    ("How many sides does a hexagon have?", "A hexagon has six sides."),
    ("What gas do plants take in from the air?", "Plants take in carbon dioxide."),
    ("Which bird is a symbol of peace?", "The dove is a symbol of peace."),
    ("What is the square root of 81?", "The square root of 81 is 9."),
    ("Which season follows winter?", "Spring follows winter."),
    ("What is a group of wolves called?", "A group of wolves is called a pack."),
    ("Which language is spoken in Brazil?", "Portuguese is spoken in Brazil."),
    ("What does a thermometer measure?", "A thermometer measures temperature."),
    ("How many players are in a football team on the field?", "A football team has eleven players on the field."),
    ("What is made from grapes and left to ferment?", "Wine is made from fermented grapes."),
    ("Which instrument has black and white keys?", "The piano has black and white keys."),
    ("What is the largest mammal?", "The blue whale is the largest mammal."),
    ("What colour results from mixing blue and yellow?", "Blue and yellow mixed give green."),
    ("Which organ pumps blood through the body?", "The heart pumps blood through the body."),
    ("On which continent does the Nile flow?", "The Nile flows in Africa."),
    ("What is the opposite of north?", "The opposite of north is south."),
)
FACTS = tuple(
    Example(prompt=prompt, response=response, id=f"fact/{number}") for number, (prompt, response) in enumerate(_PAIRS)
)
