"""The words dialogues are made of, in two disjoint halves: one to train on, one to be scored on.

Every pool that a score depends on exists twice, `TRAIN_*` and `HELD_OUT_*`, and number pairs are split by
a checksum. Invented words never equal a held-out one.
"""

from __future__ import annotations

import random
import zlib


def _pool(text: str, mark: str | None = None) -> list[str]:
    """The words of a text, apart at white space or at a mark."""
    return text.replace("\n", "" if mark else " ").split(mark)


TRAIN_NAMES = _pool("""Ada Alan Alice Amir Anna Anton Bella Ben Bob Boris Carla Carlos Chen Chloe Clara Daniel David
Diana Diego Elena Ella Emil Emma Eric Eva Fatima Felix Finn Frank Grace Greta Hana Hans Henry Ida Igor Ines Isaac
Ivan Jack James Jan Jane Jin John Jonas Jose Julia Kai Karl Kate Kim Lara Laura Leo Lena Lily Linda Lucas Lucy Luis
Maria Mark Mary Max Maya Mia Mike Mila Mohammed Nadia Nick Nina Noah Nora Olga Oliver Omar Oscar Paul Peter Pia Rosa
Ruth Sam Sara Sofia Sophie Stefan Susan Tariq Theo Tim Tom Vera Victor Wei Yuki Zoe Anna-Lena Mary-Jane O'Brien José
Jürgen Zoë Łukasz Émile""")
HELD_OUT_NAMES = _pool("""Priya
Svetlana Oluwaseun Zbigniew Marguerite Thorsten Beatriz Cornelius Dmitri Esmeralda Fiona
Giuseppe Hildegard Imogen Jacinta Kwame Leopold Mirabel Nikhil Ottilie Penelope Quentin Rajesh Siobhan Tobias Ursula
Valentina Winston Xiomara Yolanda Zachary Bartholomew Clementine Desmond Evangeline
Florian Gwendolyn Horatio""")

TRAIN_CITIES = _pool(
    """Paris|London|Berlin|Madrid|Tokyo|Vienna|Prague|Athens|Dublin|Lisbon|Warsaw|Milan|Munich|Hamburg
|Zurich|Geneva|Brussels|Amsterdam|Copenhagen|Stockholm|Helsinki|Cairo|Lagos|Nairobi|Delhi|Mumbai|Beijing|Shanghai
|Seoul|Bangkok|Sydney|Melbourne|Toronto|Montreal|Boston|Chicago|Seattle|Dallas|Miami|New York|San Francisco
|Los Angeles|Mexico City|Lima|Bogota|Buenos Aires|Sao Paulo|Cape Town|Tel Aviv|Hong Kong|Kuala Lumpur|Moscow|Kyiv
|Rome|Oslo|Barcelona|Istanbul|Dubai|Singapore|Washington|Denver|São Paulo|Köln|Málaga|Zürich""",
    "|",
)
HELD_OUT_CITIES = _pool(
    """Reykjavik|Ljubljana|Marrakesh|Vancouver|Wellington|Edinburgh|Salzburg|Santiago|Philadelphia
|Johannesburg|Bratislava|Valparaiso|Thessaloniki|Antananarivo|Gothenburg|Kathmandu|Montevideo|Nagasaki|Port Louis
|Saint Petersburg|Las Palmas|Addis Ababa|Quebec|Rotterdam|Samarkand|Tbilisi|Ulaanbaatar|Windhoek|Yokohama|Zagreb
""",
    "|",
)

TRAIN_TOPICS = [
    "weather", "time", "price", "forecast", "population", "temperature", "distance", "balance", "schedule", "status",
    "address", "score", "rating", "news", "menu", "traffic", "altitude", "area", "phone number", "stock price",
    "opening hours", "exchange rate", "timetable", "availability", "air quality", "wind speed", "delivery date",
    "tax rate", "history", "owner", "size", "color", "version", "currency", "mayor", "speed limit", "parking",
    "rainfall", "snow depth", "recipe", "lyrics", "definition", "release date", "salary", "email", "length", "weight",
    "rent", "birthday", "sunset", "local time", "capital gain", "order status", "battery level", "water level",
]  # fmt: skip
HELD_OUT_TOPICS = [
    "humidity", "tide", "pollen count", "sunrise", "elevation", "warranty", "ticket fare", "queue length",
    "moon phase",
    "ferry route", "uv index", "postal code", "crime rate", "noise level", "visa fee", "shipping cost", "power usage",
    "invoice", "ranking", "horoscope", "box office", "fuel level", "library card", "voltage", "serial number",
]  # fmt: skip

COMMON = _pool("""the a red blue green small big old new cat dog bird fish house tree river stone table lamp book door
window garden apple bread water coffee tea sun moon star rain snow wind fire light dark night day morning evening
summer winter music song dance road bridge boat train car wheel box cup plate spoon knife happy quiet loud quick slow
bright cold warm soft hard sweet sour run walk jump sleep read write sing open close give take find lose under over
between behind with without very never always today tomorrow hello world good nice lucky silver golden orange purple
engine tandem model token server code test data list tiger lemon cloud paper glass metal school market ocean island
this is that it was my your our we you they sees likes has and or but not all some many one two three""")
HELD_OUT_COMMON = _pool("""lantern
pepper velvet thunder walnut saddle harvest copper marble whisper cactus pillow anchor
basket feather jungle kitten ladder mirror needle oyster parrot quartz ribbon salmon trumpet umbrella violin wagon
yogurt zebra blanket candle dolphin emerald fountain guitar hammer""")

ONSETS = _pool(
    "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr kr ph pl pr qu sh sk sl sp st sw th tr"
)
VOWELS = _pool("a e i o u a e i o u a e i o u ai ea ee ia ie io oa oo ou y")
CODAS = [""] * 24 + _pool("n n r r l l s t m k d ck ll nd ng nt rd rk rn rt sk ss st x ph th b g p z v")
OTHER_SCRIPTS = _pool("café naïve über 你好 世界 привет мир こんにちは 🙂 🚀 ✅ 🎉 ñandú Ελλάδα שלום مرحبا €5 →")
ODDITIES = [
    "!",
    "?",
    "...",
    "-",
    "/",
    "(x)",
    "[1]",
    "a=b",
    "x+y",
    "#7",
    "50%",
    "C++",
    "a_b",
    "foo.bar",
    "@you",
    "&",
    "$3",
]

# The words of schemas and questions. Prompts are full of them, answers are not; what a tokenizer makes of them is
# copied only where invented words contain their parts.
PROMPT_WORDS = _pool("""arguments object properties description required string integer boolean number function
parameters assistant system answer user title employee customer destination location product query what could please
add subtract give find show check look current weather repeat exactly following write start finish always every
sentence upper letters pirate single word result respond containing person named aged list need know tell capital
difference together apples remember called tandem server model stream thinking tools request support demonstration
serve install train language engine command available schedule under ground station office mount mother winter forty
percent salt verse seven minute father small never quantity amount urgent price""")

HELD_OUT_WORDS = {
    word.lower()
    for pool in (HELD_OUT_NAMES, HELD_OUT_CITIES, HELD_OUT_TOPICS, HELD_OUT_COMMON)
    for phrase in pool
    for word in phrase.split()
}


def held_out_pair(sign: str, a: int, b: int) -> bool:
    """Whether the sum or difference belongs to the score: a tenth of the pairs with two digits each."""
    if sign == "+":
        a, b = min(a, b), max(a, b)
    return min(a, b) >= 10 and zlib.crc32(f"{a}{sign}{b}".encode()) % 10 == 0


class Words:
    """Draws words and numbers from one of the two halves.

    `held_out=False` draws what training may see, `held_out=True` what only the score uses. All randomness
    comes from `rng`.
    """

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def pick(self, *options: str) -> str:
        """One of the options."""
        return self.rng.choice(options)

    def invented(self, shortest: int = 1, longest: int = 4) -> str:
        """A lower-case word of syllables and of parts of other words that is in no pool of the score."""
        while True:
            count = self.rng.randint(shortest, longest)
            word = "".join(self._part() if self.chance(0.3) else self._syllable() for _ in range(count))
            if self.chance(0.2):
                word = word[1:]
            if word not in HELD_OUT_WORDS and len(word) > 1:
                return word

    def _syllable(self) -> str:
        return self.rng.choice(ONSETS) + self.rng.choice(VOWELS) + self.rng.choice(CODAS)

    def _part(self) -> str:
        word = self.rng.choice(PROMPT_WORDS)
        first = self.rng.choice((0, self.rng.randrange(len(word) - 1)))
        return word[first : first + self.rng.randint(3, 6)]

    def name(self) -> str:
        """A first name."""
        if self.held_out:
            return self.rng.choice(HELD_OUT_NAMES)
        first = self.rng.choice(TRAIN_NAMES) if self.chance(0.3) else self.cased(self.invented(1, 4))
        return f"{first} {self.invented(1, 3).capitalize()}" if self.chance(0.06) else first

    def cased(self, word: str) -> str:
        """The word with a capital, and rarely in another casing."""
        case = self.rng.random()
        if case < 0.9:
            return word.capitalize()
        return word.upper() if case < 0.93 else word

    def city(self) -> str:
        """A place."""
        if self.held_out:
            return self.rng.choice(HELD_OUT_CITIES)
        if self.chance(0.4):
            return self.rng.choice(TRAIN_CITIES)
        words = [self.cased(self.invented(1, 4)) for _ in range(2 if self.chance(0.35) else 1)]
        return " ".join(words)

    def topic(self) -> str:
        """What a tool is about."""
        if self.held_out:
            return self.rng.choice(HELD_OUT_TOPICS)
        if self.chance(0.6):
            return self.rng.choice(TRAIN_TOPICS)
        words = [self.rng.choice(COMMON[2:]) if self.chance(0.5) else self.invented(1, 3)]
        if self.chance(0.3):
            words.append(self.invented(1, 2))
        return " ".join(words)

    def noun(self) -> str:
        """A common word or an invented one."""
        if self.held_out:
            return self.rng.choice(HELD_OUT_COMMON)
        return self.rng.choice(COMMON[2:]) if self.chance(0.4) else self.invented(1, 4)

    def code(self) -> str:
        """Letters and digits without sense."""
        alphabet = self.pick(
            "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", "0123456789", "abc123-_"
        )
        return "".join(self.rng.choice(alphabet) for _ in range(self.rng.randint(2, 8)))

    def number(self) -> int:
        """A number as it occurs in JSON objects and arguments."""
        return self.rng.randint(*self.rng.choice(((0, 9), (10, 99), (10, 99), (100, 999), (1000, 9999))))

    def text(self, longest: int = 12) -> str:
        """Some words to repeat: common, held-out or invented ones, numbers, a little of everything."""
        count = min(self.rng.randint(1, longest), self.rng.randint(1, longest))
        plain = self.chance(0.75)
        words = [self.rng.choice(COMMON) if self.chance(0.4) else self.noun() for _ in range(count)]
        if count > 2 and not self.held_out and self.chance(0.15):
            words = [self.rng.choice(words[: self.rng.randint(1, 3)]) for _ in words]
        if not plain:
            words = [self._unusual(word) for word in words]
        text = " ".join(words)
        if self.chance(0.4):
            text = text[0].upper() + text[1:]
        if count > 2 and self.chance(0.3):
            cut = self.rng.randrange(1, count)
            text = " ".join(words[:cut]) + self.pick(", ", "; ", ": ", " - ") + " ".join(words[cut:])
        return text

    def _unusual(self, word: str) -> str:
        kind = self.rng.random()
        if kind < 0.5:
            return word
        if kind < 0.62:
            return word.capitalize()
        if kind < 0.74:
            return str(self.number())
        if kind < 0.82:
            return self.rng.choice(OTHER_SCRIPTS)
        if kind < 0.9:
            return self.rng.choice(ODDITIES)
        return self.code() if kind < 0.97 else word.upper()

    def pair(self, sign: str) -> tuple[int, int]:
        """Two numbers up to 99, from the half that is asked for."""
        while True:
            small = not self.held_out and self.chance(0.12)
            a, b = self.rng.randint(0, 12 if small else 99), self.rng.randint(0, 12 if small else 99)
            if held_out_pair(sign, a, b) == self.held_out:
                return a, b
