"""Facts that do not age: capitals, opposites, elements, authors, how many legs an ant has.

An entry is asked in three ways. Left out is what changes or is disputed: capitals that move or are
shared, currencies of countries that may join another, continents of countries that lie on two.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from replaykit.suites import Row, Suite
from replaykit.suites.tables import table

CAPITALS = table("""
France = Paris; Spain = Madrid; Italy = Rome; Germany = Berlin; Poland = Warsaw; Greece = Athens;
Norway = Oslo; Sweden = Stockholm; Finland = Helsinki; Denmark = Copenhagen; Portugal = Lisbon;
Austria = Vienna; Hungary = Budapest; Ireland = Dublin; Belgium = Brussels; Switzerland = Bern /
Berne; Romania = Bucharest; Bulgaria = Sofia; Croatia = Zagreb; Serbia = Belgrade; Slovakia =
Bratislava; Slovenia = Ljubljana; Estonia = Tallinn; Latvia = Riga; Lithuania = Vilnius; Iceland =
Reykjavik / Reykjavík; Ukraine = Kyiv / Kiev; Russia = Moscow; Turkey = Ankara; the United Kingdom =
London; Albania = Tirana; Malta = Valletta; the Czech Republic = Prague; Egypt = Cairo; Kenya =
Nairobi; Ethiopia = Addis Ababa; Ghana = Accra; Senegal = Dakar; Morocco = Rabat; Tunisia = Tunis;
Algeria = Algiers; Libya = Tripoli; Uganda = Kampala; Rwanda = Kigali; Zambia = Lusaka; Zimbabwe =
Harare; Angola = Luanda; Mozambique = Maputo; Namibia = Windhoek; Madagascar = Antananarivo;
Somalia = Mogadishu; Sudan = Khartoum; Mali = Bamako; Canada = Ottawa; the United States =
Washington; Mexico = Mexico City; Cuba = Havana; Jamaica = Kingston; Costa Rica = San José / San
Jose; Nicaragua = Managua; Colombia = Bogotá / Bogota; Venezuela = Caracas; Ecuador = Quito; Peru =
Lima; Chile = Santiago; Argentina = Buenos Aires; Uruguay = Montevideo; Paraguay = Asunción /
Asuncion; Brazil = Brasília / Brasilia; Japan = Tokyo; China = Beijing; India = New Delhi / Delhi;
Iran = Tehran; Iraq = Baghdad; Nepal = Kathmandu; Thailand = Bangkok; Vietnam = Hanoi; the
Philippines = Manila; South Korea = Seoul; North Korea = Pyongyang; Mongolia = Ulaanbaatar / Ulan
Bator; Pakistan = Islamabad; Afghanistan = Kabul; Bangladesh = Dhaka; Cambodia = Phnom Penh; Laos =
Vientiane; Jordan = Amman; Lebanon = Beirut; Syria = Damascus; Saudi Arabia = Riyadh; Qatar = Doha;
Oman = Muscat; Uzbekistan = Tashkent; Azerbaijan = Baku; Armenia = Yerevan;
Australia = Canberra; New Zealand = Wellington; Fiji = Suva
""")

CONTINENTS = table("""
France = Europe; Spain = Europe; Germany = Europe; Poland = Europe; Sweden = Europe; Austria =
Europe; Hungary = Europe; Belgium = Europe; Switzerland = Europe; Romania = Europe; Ireland =
Europe; Finland = Europe; Kenya = Africa; Ghana = Africa; Nigeria = Africa; Ethiopia = Africa;
Morocco = Africa; Algeria = Africa; Uganda = Africa; Zambia = Africa; Angola = Africa; Mali =
Africa; Senegal = Africa; Tanzania = Africa; Japan = Asia; China = Asia; India = Asia; Nepal = Asia;
Thailand = Asia; Vietnam = Asia; Mongolia = Asia; Pakistan = Asia; Iraq = Asia; Laos = Asia;
Bangladesh = Asia; South Korea = Asia; Brazil = South America; Peru = South America; Chile = South
America; Argentina = South America; Bolivia = South America; Uruguay = South America; Ecuador =
South America; Paraguay = South America; Canada = North America; the United States = North America;
Mexico = North America
""")

LANGUAGES = table("""
Brazil = Portuguese; Portugal = Portuguese; Austria = German; Germany = German; Mexico = Spanish;
Argentina = Spanish; Chile = Spanish; Cuba = Spanish; Colombia = Spanish; Egypt = Arabic; Saudi
Arabia = Arabic; Jordan = Arabic; Japan = Japanese; Italy = Italian; France = French; Poland =
Polish; Hungary = Hungarian; Sweden = Swedish; Norway = Norwegian; Denmark = Danish; Russia =
Russian; Turkey = Turkish; Greece = Greek; Thailand = Thai; Vietnam = Vietnamese; Iran = Persian /
Farsi; Romania = Romanian; Bulgaria = Bulgarian; Australia = English
""")

CURRENCIES = table("""
Japan = the yen / yen; the United Kingdom = the pound / pound / pounds; the United States = the
dollar / dollar / dollars; India = the rupee / rupee / rupees; China = the yuan / yuan / renminbi /
RMB; Russia = the rouble / rouble / ruble / roubles / rubles; Switzerland = the franc / franc /
francs; Sweden = the krona / krona / kronor; Norway = the krone / krone / kroner; Mexico = the peso
/ peso / pesos; Thailand = the baht / baht; Vietnam = the dong / dong; Israel = the shekel / shekel
/ shekels; South Africa = the rand / rand; Turkey = the lira / lira; Canada = the dollar / dollar /
dollars
""")

OPPOSITES = table("""
hot = cold / cool; big = small / little / tiny; tall = short / small; fast = slow; early = late; old
= young / new; rich = poor; happy = sad / unhappy; hard = soft / easy; wet = dry; dark = light /
bright; heavy = light; empty = full; open = closed / shut / close; strong = weak; loud = quiet /
silent / soft; clean = dirty; wide = narrow; deep = shallow; thick = thin; sharp = blunt / dull;
near = far / distant; up = down; left = right; north = south; east = west; day = night; summer =
winter; black = white; first = last; inside = outside; begin = end / finish / stop; buy = sell; win
= lose; push = pull; love = hate; give = take / receive; alive = dead; true = false; always = never;
above = below / under / beneath; before = after; brave = cowardly / afraid / fearful / timid; cheap
= expensive / dear / costly; beautiful = ugly; smooth = rough; noisy = quiet / silent; arrive =
leave / depart; remember = forget; guilty = innocent; ancient = modern / new; success = failure;
enemy = friend / ally; increase = decrease / reduce; maximum = minimum; import = export; victory =
defeat
""")

# Of two letters that are no word, since an answer may have any words around the symbol.
SYMBOLS = table("""
gold = Au; silver = Ag; iron = Fe; copper = Cu; lead = Pb; sodium = Na; tin = Sn; mercury = Hg; zinc
= Zn; nickel = Ni; aluminium = Al; magnesium = Mg; calcium = Ca; chlorine = Cl; silicon = Si;
lithium = Li; titanium = Ti; platinum = Pt; cobalt = Co; chromium = Cr; manganese = Mn; bromine =
Br; barium = Ba; radium = Ra; neon = Ne; argon = Ar; krypton = Kr
""")

ELEMENTS = table("""
Au = gold; Ag = silver; Fe = iron; Cu = copper; Pb = lead; Na = sodium; Sn = tin; Hg = mercury; Zn =
zinc; Ni = nickel; Al = aluminium / aluminum; Mg = magnesium; Ca = calcium; Cl = chlorine; Si =
silicon; Li = lithium; Ti = titanium; Pt = platinum; H = hydrogen; O = oxygen; N = nitrogen; C =
carbon; K = potassium; S = sulphur / sulfur; P = phosphorus; He = helium; Ne = neon; I = iodine; F =
fluorine; U = uranium; W = tungsten / wolfram
""")

AUTHORS = table("""
Hamlet = William Shakespeare / Shakespeare; Macbeth = William Shakespeare / Shakespeare; Romeo and
Juliet = William Shakespeare / Shakespeare; Pride and Prejudice = Jane Austen / Austen; Emma = Jane
Austen / Austen; Oliver Twist = Charles Dickens / Dickens; A Christmas Carol = Charles Dickens /
Dickens; Moby-Dick = Herman Melville / Melville; War and Peace = Leo Tolstoy / Tolstoy; Anna
Karenina = Leo Tolstoy / Tolstoy; Crime and Punishment = Fyodor Dostoevsky / Dostoevsky /
Dostoyevsky; Don Quixote = Miguel de Cervantes / Cervantes; Faust = Johann Wolfgang von Goethe /
Goethe / Marlowe / Gounod; The Divine Comedy = Dante Alighieri / Dante; The Odyssey = Homer;
Frankenstein = Mary Shelley / Shelley; Dracula = Bram Stoker / Stoker; Jane Eyre = Charlotte Brontë
/ Charlotte Bronte; Wuthering Heights = Emily Brontë / Emily Bronte; The Adventures of Tom Sawyer =
Mark Twain / Twain; Alice's Adventures in Wonderland = Lewis Carroll / Carroll; Les Misérables =
Victor Hugo / Hugo; Nineteen Eighty-Four = George Orwell / Orwell; Animal Farm = George Orwell /
Orwell; The Hobbit = J. R. R. Tolkien / Tolkien; The Picture of Dorian Gray = Oscar Wilde / Wilde;
The Jungle Book = Rudyard Kipling / Kipling; Treasure Island = Robert Louis Stevenson / Stevenson;
The Great Gatsby = F. Scott Fitzgerald / Fitzgerald; The Canterbury Tales = Geoffrey Chaucer /
Chaucer; Madame Bovary = Gustave Flaubert / Flaubert; The Time Machine = H. G. Wells / Wells
""")

YOUNG = table("""
dog = puppy / pup / puppies / whelp; cat = kitten / kittens; cow = calf / calves; horse = foal /
foals / colt / filly; sheep = lamb / lambs; goat = kid / kids; pig = piglet / piglets; bear = cub /
cubs; lion = cub / cubs; duck = duckling / ducklings; goose = gosling / goslings; swan = cygnet /
cygnets; deer = fawn / fawns; kangaroo = joey / joeys; hen = chick / chicks; frog = tadpole /
tadpoles / froglet; owl = owlet / owlets; butterfly = caterpillar / caterpillars
""")

PAST = table("""
go = went; eat = ate; see = saw; write = wrote; run = ran; take = took; give = gave; drink = drank;
swim = swam; begin = began; buy = bought; bring = brought; think = thought; teach = taught; catch =
caught; find = found; know = knew; grow = grew; fly = flew; sing = sang; speak = spoke; break =
broke; drive = drove; fall = fell; feel = felt; keep = kept; leave = left; lose = lost; make = made;
meet = met; sell = sold; send = sent; sit = sat; stand = stood; tell = told; win = won; wear = wore;
build = built; choose = chose; hold = held
""")

PLURALS = table("""
mouse = mice; child = children; man = men; woman = women; foot = feet; tooth = teeth; goose = geese;
ox = oxen; knife = knives; wife = wives; leaf = leaves; wolf = wolves; baby = babies; city = cities;
box = boxes; half = halves; shelf = shelves; potato = potatoes; hero = heroes; person = people /
persons
""")

# A question as it stands, with the number in digits and in words.
NUMBERS = table("""
How many legs does a spider have? = 8 / eight; How many legs does an ant have? = 6 / six; How many
legs does a bee have? = 6 / six; How many legs does a horse have? = 4 / four; How many legs does a
chicken have? = 2 / two; How many arms does an octopus have? = 8 / eight; How many legs does a snake
have? = 0 / no / none / zero; How many days are in a week? = 7 / seven; How many months are in a
year? = 12 / twelve; How many minutes are in an hour? = 60 / sixty; How many seconds are in a
minute? = 60 / sixty; How many hours are in a day? = 24 / twenty-four; How many days are in April? =
30 / thirty; How many days are in July? = 31 / thirty-one; How many years are in a century? = 100 /
hundred; How many years are in a decade? = 10 / ten; How many sides does a triangle have? = 3 /
three; How many sides does a square have? = 4 / four; How many sides does a pentagon have? = 5 /
five; How many sides does a hexagon have? = 6 / six; How many sides does an octagon have? = 8 /
eight; How many faces does a cube have? = 6 / six; How many letters are in the English alphabet? =
26 / twenty-six; How many vowel letters (a, e, i, o, u) are there? = 5 / five; How many cents make a
dollar? = 100 / hundred; How many centimetres are in a metre? = 100 / hundred; How many metres are
in a kilometre? = 1000 / 1,000 / thousand; How many grams are in a kilogram? = 1000 / 1,000 /
thousand; How many degrees are in a right angle? = 90 / ninety; How many degrees are in a full
circle? = 360; How many strings does a violin have? = 4 / four; How many wheels does a bicycle have?
= 2 / two; How many wheels does a tricycle have? = 3 / three; How many squares are on a chessboard?
= 64 / sixty-four; How many pieces does each player have at the start of a chess game? = 16 /
sixteen; How many planets are in the solar system? = 8 / eight; How many players of one football
(soccer) team are on the pitch? = 11 / eleven; How many players of one basketball team are on the
court? = 5 / five; How many eggs are in a dozen? = 12 / twelve; How many inches are in a foot? = 12
/ twelve; How many sides does a standard die have? = 6 / six; How many keys does a full-size piano
have? = 88 / eighty-eight; How many musicians play in a quartet? = 4 / four; How many musicians play
in a trio? = 3 / three; How many weeks are in a year, to the nearest whole number? = 52 / fifty-two;
How many fingers, thumb included, are on one hand? = 5 / five; How many noughts does one million
have? = 6 / six
""")

OTHERS = table("""
Which planet is closest to the Sun? = Mercury; Which planet is the largest of the solar system? =
Jupiter; Which planet is called the Red Planet? = Mars; Which planet do we live on? = Earth; Which
planet is known for its bright, wide rings? = Saturn; Which planet is the farthest from the Sun? =
Neptune; Which star does the Earth travel around? = the Sun / Sun; Which natural satellite circles
the Earth? = the Moon / Moon; Which gas do plants take in from the air to make sugar? = carbon
dioxide / CO2; Which gas must people breathe in to stay alive? = oxygen; Which gas makes up most of
the air? = nitrogen; Which liquid turns into ice when it freezes? = water; Which metal is liquid at
room temperature? = mercury / gallium; What do caterpillars turn into? = butterflies / butterfly /
moths / moth; Which insect makes honey? = the bee / bee / bees / honeybee / honeybees; Which animal
is known as the king of the jungle? = the lion / lion / lions; Which is the tallest living land
animal? = the giraffe / giraffe / giraffes; Which is the largest animal alive today? = the blue
whale / whale / whales; Which is the fastest land animal? = the cheetah / cheetah / cheetahs; Which
is the largest living bird? = the ostrich / ostrich / ostriches; Which organ pumps blood through the
body? = the heart / heart; Which organ do we think with? = the brain / brain; Which organs do people
breathe with? = the lungs / lungs / lung; Which organ do we see with? = the eye / eye / eyes; Which
organ do we hear with? = the ear / ear / ears; Who painted the Mona Lisa? = Leonardo da Vinci / da
Vinci / Leonardo; Who painted The Starry Night? = Vincent van Gogh / van Gogh; Who painted Guernica?
= Pablo Picasso / Picasso; Who painted the ceiling of the Sistine Chapel? = Michelangelo; Who
developed the theory of relativity? = Albert Einstein / Einstein; Who wrote On the Origin of
Species? = Charles Darwin / Darwin; Who was the first person on the Moon? = Neil Armstrong /
Armstrong; Who was the first human in space? = Yuri Gagarin / Gagarin; Who was the first president
of the United States? = George Washington / Washington; Who composed The Magic Flute? = Wolfgang
Amadeus Mozart / Mozart; Who composed the Moonlight Sonata? = Ludwig van Beethoven / Beethoven; Who
composed the Brandenburg Concertos? = Johann Sebastian Bach / Bach; Who composed The Four Seasons,
the violin concertos? = Antonio Vivaldi / Vivaldi; Which ocean lies between Europe and North
America? = the Atlantic Ocean / Atlantic; Which is the largest ocean? = the Pacific Ocean / Pacific;
Which is the highest mountain above sea level? = Mount Everest / Everest; Which river flows through
Cairo? = the Nile / Nile; Which river flows through London? = the Thames / Thames; Which river flows
through Paris? = the Seine / Seine; Which is the largest hot desert? = the Sahara / Sahara; Which
river flows through the largest rainforest? = the Amazon / Amazon; In which country are the pyramids
of Giza? = Egypt; In which country is the Taj Mahal? = India; In which city is the Eiffel Tower? =
Paris; In which city is the Colosseum? = Rome; In which city is Big Ben? = London; In which city is
the Brandenburg Gate? = Berlin; In which city is the Statue of Liberty? = New York / New York City;
In which country is Machu Picchu? = Peru; What colour is a ripe banana? = yellow; What colour is
fresh grass? = green; What colour is snow? = white; What colour is coal? = black; What colour is the
daytime sky without clouds? = blue; What colour does blue paint mixed with yellow paint give? =
green; What colour does red paint mixed with yellow paint give? = orange; What colour does red paint
mixed with blue paint give? = purple / violet; What colour does black paint mixed with white paint
give? = grey / gray; What colour does red paint mixed with white paint give? = pink; Which day comes
right after Monday? = Tuesday; Which day comes right after Wednesday? = Thursday; Which day comes
right after Friday? = Saturday; Which day comes right before Monday? = Sunday; Which month comes
right after March? = April; Which month comes right after July? = August; Which month comes right
before January? = December; Which month comes right before October? = September; Which season comes
right after spring? = summer; Which season comes right after autumn? = winter; What is the chemical
formula of water? = H2O / H₂O; What is the chemical name of table salt? = sodium chloride; What does
a thermometer measure? = temperature; Which instrument shows where north is? = the compass /
compass; What do we call frozen water? = ice; What do we call the shape with three sides? = triangle
""")


class Relation(NamedTuple):
    """Facts of one kind, and how they are asked."""

    questions: tuple[str, ...]
    facts: dict[str, list[str]]


OPENINGS = ("{}", "Please answer in a few words: {}", "Here is a quiz question. {}")
RELATIONS = (
    Relation(
        (
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Name the capital city of {}.",
        ),
        CAPITALS,
    ),
    Relation(
        (
            "{} is the capital of which country?",
            "Which country has {} as its capital?",
            "Name the country whose capital is {}.",
        ),
        {
            cities[0]: [country, country.removeprefix("the ")]
            for country, cities in CAPITALS.items()
            if country not in cities[0]
        },
    ),
    Relation(
        (
            "On which continent is {}?",
            "Which continent does {} belong to?",
            "Name the continent on which {} lies.",
        ),
        CONTINENTS,
    ),
    Relation(
        (
            "What is the main language of {}?",
            "Which language do most people in {} speak?",
            "Name the language that most people speak in {}.",
        ),
        LANGUAGES,
    ),
    Relation(
        (
            "What is the currency of {}?",
            "Which money do people pay with in {}?",
            "Name the currency that is used in {}.",
        ),
        CURRENCIES,
    ),
    Relation(
        (
            "What is the opposite of '{}'?",
            "Which word means the opposite of '{}'?",
            "Name the antonym of '{}'.",
        ),
        OPPOSITES,
    ),
    Relation(
        (
            "What is the chemical symbol of {}?",
            "Which symbol does {} have in the periodic table?",
            "Name the chemical symbol for the element {}.",
        ),
        SYMBOLS,
    ),
    Relation(
        (
            "Which chemical element has the symbol {}?",
            "What element does the symbol {} stand for in the periodic table?",
            "Name the element with the chemical symbol {}.",
        ),
        ELEMENTS,
    ),
    Relation(("Who wrote '{}'?", "Which author wrote '{}'?", "Name the author of '{}'."), AUTHORS),
    Relation(
        (
            "What is a young {} called?",
            "What do you call the young of a {}?",
            "Name the word for a young {}.",
        ),
        YOUNG,
    ),
    Relation(
        (
            "What is the past tense of 'to {}'?",
            "What is the simple past of the verb '{}'?",
            "Name the past tense of the verb '{}'.",
        ),
        PAST,
    ),
    Relation(
        (
            "What is the plural of '{}'?",
            "Which word is the plural of '{}'?",
            "Name the plural of the noun '{}'.",
        ),
        PLURALS,
    ),
    Relation(OPENINGS, NUMBERS),
    Relation(OPENINGS, OTHERS),
)
# Every fact is drawn as often as any other.
FACTS = [
    (relation.questions, entry, answers)
    for relation in RELATIONS
    for entry, answers in relation.facts.items()
]


def _fact(rng: Random) -> Row:
    questions, entry, answers = rng.choice(FACTS)
    return {
        "prompt": rng.choice(questions).format(entry),
        "completion": answers[0],
        "answers": list(dict.fromkeys(answers)),
    }


SUITES = {
    "facts": Suite(
        name="facts",
        what="capitals, opposites, elements, authors, numbers and other plain facts",
        cannot_say="It says nothing of rare facts, nor of what has changed in the last years.",
        score="contains",
        chance=0.02,
        max_tokens=64,
        draw=_fact,
    )
}
