"""Common sense by multiple choice: what is used for what, what happens next, what is heavier.

    Which of these is best for cutting paper?
    Options: a kettle; scissors; a bed; a compass
    Answer with one of the options.

The options stand in the question without letters, and the answer is the text of one. So both
readings ask the same: which option is likeliest, and which one is written. With letters a small
model's answer tells whether it ties letters to texts, which is another skill than this one. A row
holds turns, beside which its ``choices``, by letter, stay as they are; next to a ``prompt`` they
would be put into the question once more, with letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from replaykit.suites import Row, Suite
from replaykit.suites.tables import table, words

OPTIONS = 4

# What is best for a purpose. The tools of others are no answers, since "best" is asked for.
USES = table("""
cutting paper = scissors; writing a letter by hand = a pen; eating soup = a spoon; driving a nail
into wood = a hammer; sweeping the floor = a broom; unlocking a door = a key; keeping the rain off
your head = an umbrella; looking at distant stars = a telescope; telling the time = a clock; drying
your body after a shower = a towel; cleaning your teeth = a toothbrush; boiling water for tea = a
kettle; washing a load of clothes = a washing machine; taking a photo = a camera; taking your
temperature = a thermometer; sewing on a button = a needle and thread; digging a deep hole = a
shovel; climbing onto a roof = a ladder; sleeping on at night = a bed; toasting bread = a toaster;
rowing across a lake = a boat; flying to another continent = an aeroplane; putting out a fire = a
fire extinguisher; lighting up a dark room = a lamp; baking a cake = an oven; looking at tiny cells
= a microscope; finding out where north is = a compass; sticking two sheets of paper together =
glue; rubbing out pencil marks = an eraser; smoothing a creased shirt = an iron; mowing the lawn = a
lawnmower; weighing flour = kitchen scales; painting a wall = a paint roller; catching butterflies =
a net; pulling a cork out of a wine bottle = a corkscrew; tightening a screw = a screwdriver;
blowing up a bicycle tyre = an air pump; gliding down snowy slopes = a pair of skis; protecting
your head on a motorbike = a helmet; listening to music without disturbing others = headphones
""")

# Where something is most likely to be. What stands behind a minus sign might be right too and is
# never offered; so below.
PLACES = table("""
a cow giving milk = on a farm / -in a zoo; a shark = in the sea / -in a zoo; thousands of books to
borrow = in a library / -in a school; a surgeon at work = in a hospital; a plane waiting to take off
= at an airport; a judge at work = in a courtroom; loaves being baked to be sold = in a bakery; a
caged lion and a caged giraffe side by side = in a zoo / -in a circus; camels walking over sand
dunes = in a desert; wild penguins = in Antarctica / -in the sea; clowns and acrobats = in a circus
/ -in a theatre; a goalkeeper at work = on a football pitch; actors on a stage = in a theatre / -in
a circus / -in a school; a huge film screen = in a cinema; bottles of shampoo in daily use = in a
bathroom / -in a hotel / -in a hospital / -in a jail; a pillow on a mattress = in a bedroom / -in a
hotel / -in a hospital / -in a jail; a car being repaired = in a garage; letters being stamped and
sorted = in a post office; a vault full of other people's money = in a bank; rows of gravestones =
in a cemetery; people waiting on a platform = at a railway station; pupils and a blackboard = in a
school; an astronaut at work = in space; wild monkeys swinging from tree to tree = in the jungle;
coal being dug = in a mine; eggs with a mother bird sitting on them = in a nest / -on a farm / -in a
zoo / -in the jungle / -in Antarctica; a bee colony = in a hive / -in a nest / -on a farm / -in the
jungle / -in a zoo; prisoners = in a jail / -in a courtroom; guests who pay for a room for the night
= in a hotel
""")

# What happens next.
NEXT = table("""
A thin glass falls onto a stone floor. = It breaks. / -It bursts.; An ice cube lies in the hot sun.
= It melts. / -It evaporates. / -It shrinks. / -It breaks.; A bowl of water stands in the freezer
overnight. = It turns to ice.; A pot plant gets no water for two months. = It wilts. / -It dries. /
-It shrinks. / -It evaporates.; A needle is pushed into a balloon. = It bursts. / -It breaks. / -It
shrinks. / -It goes flat.; Fresh milk stands in a warm room for two weeks. = It goes sour. / -It
evaporates.; A pan of water stands on a hot stove for ten minutes. = It boils. / -It evaporates. /
-It overflows.; A sheet of dry paper is held in a flame. = It burns. / -It shrinks.; An iron nail
lies in the rain for months. = It rusts.; A wet shirt hangs in the sun all day. = It dries. / -It
shrinks. / -It evaporates. / -It stretches.; A sugar cube is stirred into hot tea. = It dissolves. /
-It melts. / -It sinks. / -It breaks.; Someone blows hard on a small candle flame. = It goes out.; A
bean is planted in moist, warm earth. = It sprouts. / -It rises. / -It stretches.; A wool jumper is
washed in boiling water. = It shrinks. / -It stretches. / -It sinks. / -It floats. / -It breaks.;
Bread dough with yeast stands in a warm place. = It rises. / -It dries. / -It goes sour. / -It
stretches.; A cup stands under an open tap for an hour. = It overflows.; A bicycle tyre rolls over a
sharp nail. = It goes flat. / -It bursts. / -It breaks.; A stone is thrown into a lake. = It sinks.;
A dry wooden stick is thrown into a lake. = It floats.; A telephone is used all day and never
charged. = Its battery runs out. / -It goes out.; A hungry dog is given a bowl of meat. = It starts
to eat.; A very tired baby lies in its warm, quiet bed. = It falls asleep. / -It starts to eat.; A
shallow puddle lies in the hot sun all day. = It evaporates. / -It dries. / -It boils. / -It
shrinks.; A rubber band is pulled with both hands. = It stretches. / -It breaks. / -It shrinks.; A
ball is kicked hard on flat grass. = It rolls away. / -It rises. / -It breaks.
""")

# What something is mostly made of.
MADE_OF = table("""
a window pane = glass / -sand; a newspaper = paper / -wood / -trees; a car tyre = rubber / -steel; a
snowman = snow / -frozen water; a candle = wax; a railway track = steel; a wardrobe = wood / -trees;
a brick = clay / -sand; a warm winter jumper = wool; an omelette = eggs; cheese = milk; jam = fruit
/ -grapes; a plate of chips = potatoes; wine = grapes / -fruit; toast = bread; an iceberg = frozen
water / -snow; a cloud = tiny drops of water / -frozen water; a sandcastle = sand; a skeleton =
bones; a forest = trees / -wood; a bird's plumage = feathers; ketchup = tomatoes / -fruit; a lawn =
grass
""")

# The right one first; the others are for this question alone.
MANNERS = table("""
A friend gives you a present. What do you say? = Thank you. / I am sorry. / Good night. / Leave me
alone.; You step on a stranger's foot by mistake. What do you say? = I am sorry. / You are welcome.
/ Happy birthday. / Good night.; A man holds the door open for Ann. What should she do? = thank him
/ shout at him / push him / ignore him; Tom sees a child crying alone in a shop. What is the kindest
thing to do? = ask the child what is wrong / laugh at the child / walk away / film the child; Your
neighbour's house is on fire. What should you do first? = call the fire brigade / go to bed / water
the plants / take a bath; Mia has lost her favourite toy. How does she feel? = sad / proud / amused
/ grateful; Ben won first prize in the contest. How does he feel? = proud / ashamed / lonely /
disgusted; A big dog suddenly barks at little Eva. How does she feel? = frightened / bored / proud /
sleepy; Leo has waited for the bus for three hours with nothing to do. How does he feel? = bored /
amazed / grateful / proud; Someone scratched Kim's new car on purpose. How does Kim feel? = angry /
grateful / relieved / proud; Ida ran ten miles and then carried bricks all day. How does she feel? =
tired / wide awake / cold-hearted / jealous; Sam has eaten nothing since yesterday. How does he
feel? = hungry / full / proud / jealous; Ali thought that his keys were gone, but they were in his
pocket. How does he feel? = relieved / furious / jealous / disgusted; Zoe moved to a town where she
knows nobody. How may she feel? = lonely / crowded / victorious / full; Max spilled soup on himself
in front of all the guests. How does he feel? = embarrassed / thirsty / triumphant / lonely; Your
friend is asleep in the next room. How should you walk? = quietly / loudly / backwards / in heavy
boots; You meet your teacher in the morning. What do you say? = Good morning. / Good night. / Happy
New Year. / Go away.; The guest says that the soup is too hot. What does she want? = to wait a
little / more heat / a warmer coat / a fire; A pupil wants to speak in class. What should she do
first? = raise her hand / leave the room / fall asleep / turn off the light; It is Paul's birthday.
What do his friends say? = Happy birthday. / I am sorry. / Goodbye for ever. / You are welcome.;
There is one seat left on the bus, and a very old man gets on with you. What is polite? = to offer
him the seat / to sit down quickly / to put a bag on it / to lie down on it; Rosa borrowed a book
from Jim. What should she do when she has read it? = give it back / sell it / throw it away / hide
it; The traffic light for walkers is red. What should you do? = wait / run across / lie down / dance
on the road; A colleague sneezes. What do people say? = Bless you. / Good night. / Congratulations.
/ Happy New Year.; Your friend's grandmother has died. What do you say? = I am sorry for your loss.
/ Congratulations. / You are welcome. / Good luck.; Nina has an important exam tomorrow. What do you
wish her? = Good luck. / Merry Christmas. / Get well soon. / Welcome home.; Oscar is ill in bed.
What do you wish him? = Get well soon. / Happy New Year. / Congratulations. / Welcome home.; A
waiter brings a meal that nobody ordered. What should the guest do? = tell the waiter politely /
throw the plate / cry / hide under the table; Two children both want the last piece of cake. What is
fair? = to cut it in half / to fight for it / to throw it away / to give it to the dog; A friend
tells you a secret. What should you do? = keep it to yourself / tell everyone / print it / sing it
aloud
""")

# From least to most, each far from the next.
SCALES = (
    (
        ("Which of these is the heaviest?", "Which of these is the lightest?"),
        words("""
        a grain of sand; a pencil; an apple; a bicycle; a grand piano; a car; an elephant; a jumbo
        jet; a cruise ship
        """),
    ),
    (
        ("Which of these is the biggest?", "Which of these is the smallest?"),
        words("""
        an ant; a mouse; a cat; a sheep; an adult elephant; a church; a mountain; the Moon; the Sun
        """),
    ),
    (
        ("Which of these takes the longest?", "Which of these takes the least time?"),
        words("""
        blinking once; washing your hands; cooking dinner; sleeping through a night; a summer
        holiday of three weeks; going to primary school; growing from a baby to an old man
        """),
    ),
    (
        ("Which of these moves the fastest?", "Which of these moves the slowest?"),
        words("""
        a snail; a person walking; a galloping horse; a high-speed train; a jet plane; a space
        rocket in orbit; light
        """),
    ),
    (
        ("Which of these is the hottest?", "Which of these is the coldest?"),
        words(
            "an ice cube; a glass of tap water; a warm bath; boiling water; a candle flame; the Sun"
        ),
    ),
    (
        ("Which of these costs the most?", "Which of these costs the least?"),
        words("a match; a loaf of bread; a pair of shoes; a new bicycle; a new car; a palace"),
    ),
    (
        ("Who of these is the oldest?", "Who of these is the youngest?"),
        words("""
        a newborn baby; a child in its first year at school; a university student; a father of three
        schoolchildren; a great-grandmother
        """),
    ),
)

# No word is in two kinds.
KINDS = table("""
a fruit = apple / banana / pear / cherry / grape / plum / lemon; a vegetable = carrot / cabbage /
onion / spinach / broccoli / cauliflower / leek; an animal = dog / horse / tiger / rabbit / cow /
wolf / sheep; a bird = eagle / sparrow / owl / pigeon / penguin / robin / swan; a piece of furniture
= table / chair / sofa / wardrobe / bookcase / desk / armchair; a vehicle = car / lorry / bus /
bicycle / train / tram / motorbike; a musical instrument = violin / piano / trumpet / flute / guitar
/ cello / harp; a garment = shirt / trousers / coat / sock / skirt / jacket / jumper; a tool =
hammer / saw / screwdriver / spanner / pliers / chisel / axe; a colour = red / blue / green / yellow
/ purple / white / black; a drink = tea / coffee / lemonade / beer / wine / juice / cocoa; a part of
the body = knee / elbow / shoulder / nose / ear / ankle / thumb; a country = France / Spain / Japan
/ Brazil / Kenya / Norway / India; a job = baker / teacher / nurse / plumber / pilot / carpenter /
dentist; a building = church / castle / school / hospital / theatre / museum / factory; a metal =
iron / copper / silver / zinc / tin / aluminium / nickel; a month = January / April / June / July /
October / November / December; a flower = rose / tulip / daisy / daffodil / sunflower / orchid /
carnation
""")
# Kinds of which something may be both: silver is a colour too, and a flat iron a tool.
UNCLEAR = {
    frozenset(pair)
    for pair in (
        ("a bird", "an animal"),
        ("a job", "an animal"),
        ("a colour", "a metal"),
        ("a colour", "a flower"),
        ("a colour", "a fruit"),
        ("a colour", "a drink"),
        ("a tool", "a metal"),
        ("a vegetable", "a flower"),
        ("a musical instrument", "a piece of furniture"),
    )
}


def _item(rng: Random, question: str, right: str, wrong: Sequence[str]) -> Row:
    choices = [right, *wrong]
    assert len(set(choices)) == OPTIONS
    rng.shuffle(choices)
    prompt = (
        f"{question}\nOptions: {'; '.join(choices)}\nAnswer with one of the options, in its words."
    )
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": right}]
    return {"messages": messages, "choices": dict(zip("ABCD", choices, strict=True))}


def _of_table(rng: Random, question: str, facts: dict[str, list[str]]) -> Row:
    """An entry's own value among those of others."""
    entry = rng.choice(list(facts))
    right, *never = facts[entry]
    left = {values[0] for values in facts.values()} - {right}
    left -= {value.removeprefix("-") for value in never}
    wrong = rng.sample(sorted(left), OPTIONS - 1)
    return _item(rng, question.format(entry), right, wrong)


def _use(rng: Random) -> Row:
    return _of_table(rng, "Which of these is best for {}?", USES)


def _place(rng: Random) -> Row:
    return _of_table(rng, "Where are you most likely to find {}?", PLACES)


def _next(rng: Random) -> Row:
    return _of_table(rng, "{} What happens?", NEXT)


def _made(rng: Random) -> Row:
    return _of_table(rng, "What is {} mostly made of?", MADE_OF)


def _manners(rng: Random) -> Row:
    entry = rng.choice(list(MANNERS))
    right, *wrong = MANNERS[entry]
    return _item(rng, entry, right, wrong)


def _scale(rng: Random) -> Row:
    (most, least), things = rng.choice(SCALES)
    chosen = sorted(rng.sample(range(len(things)), OPTIONS))
    named = [things[place] for place in chosen]
    if rng.random() < 0.5:
        return _item(rng, most, named[-1], named[:-1])
    return _item(rng, least, named[0], named[1:])


def _kind(rng: Random) -> Row:
    """One of a kind among those of others, or one of others among those of a kind."""
    kind = rng.choice(list(KINDS))
    others = [name for name in KINDS if name != kind and {name, kind} not in UNCLEAR]
    if rng.random() < 0.5:
        wrong = [rng.choice(KINDS[name]) for name in rng.sample(others, OPTIONS - 1)]
        return _item(rng, f"Which of these is {kind}?", rng.choice(KINDS[kind]), wrong)
    right = rng.choice(KINDS[rng.choice(others)])
    return _item(rng, f"Which of these is not {kind}?", right, rng.sample(KINDS[kind], OPTIONS - 1))


# The last two have the most questions, so that few are asked twice in 200 items.
ASKED = (_use, _place, _next, _made, _manners, *[_scale] * 3, *[_kind] * 4)


def _common_sense(rng: Random) -> Row:
    return rng.choice(ASKED)(rng)


SUITES = {
    "common_sense": Suite(
        name="common_sense",
        what="uses, places, sizes, consequences and manners, one option of four",
        cannot_say="It says nothing of puzzles, of reasoning in steps, or of rare situations.",
        score="choice",
        chance=0.25,
        max_tokens=32,
        draw=_common_sense,
    )
}
