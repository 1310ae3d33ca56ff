"""Questions in nine languages other than English, to be answered in the language they are put in.

"Was ist ein Vulkan? Antworte in zwei oder drei Sätzen."    de
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from replaykit.suites import Row, Suite


@dataclass(frozen=True)
class _Language:
    """Sentences of a language."""

    what: tuple[str, ...]
    """They ask what a thing is."""
    things: str
    """With their articles."""
    questions: tuple[str, ...]
    length: tuple[str, ...]
    """How long the answer shall be."""


LANGUAGES = {
    "de": _Language(
        what=(
            "Was ist {thing}?",
            "Erkläre mir, was {thing} ist.",
            "Ich möchte wissen, was {thing} ist.",
        ),
        things="ein Vulkan; ein Regenbogen; eine Bibliothek; ein Leuchtturm; ein Gedicht; ein "
        "Museum; eine Wüste; ein Gletscher; ein Fahrrad; eine Brücke; ein Bahnhof; ein "
        "Kompass; eine Insel; ein Planet; ein Krankenhaus",
        questions=(
            "Warum fallen im Herbst die Blätter von den Bäumen?",
            "Wie backt man ein gutes Brot?",
            "Was kann man an einem verregneten Sonntag machen?",
            "Warum ist Schlaf für den Menschen wichtig?",
            "Wie lernt man am besten eine neue Sprache?",
            "Was sollte man auf eine Wanderung mitnehmen?",
            "Wie entsteht der Schnee?",
            "Warum halten viele Menschen eine Katze?",
        ),
        length=("Antworte in zwei oder drei Sätzen.", "Eine kurze Antwort von zwei Sätzen genügt."),
    ),
    "fr": _Language(
        what=(
            "Qu'est-ce qu'{thing} ?",
            "Explique-moi ce qu'est {thing}.",
            "J'aimerais savoir ce qu'est {thing}.",
        ),
        things="un volcan; une bibliothèque; un musée; un phare; un poème; un désert; un "
        "glacier; un vélo; une gare; une boussole; une planète; un hôpital; un marché; un "
        "jardin; un château",
        questions=(
            "Pourquoi les feuilles tombent-elles en automne ?",
            "Comment fait-on un bon pain ?",
            "Que peut-on faire un dimanche de pluie ?",
            "Pourquoi le sommeil est-il important pour la santé ?",
            "Quelle est la meilleure façon d'apprendre une langue ?",
            "Que faut-il emporter pour une randonnée ?",
            "Comment se forme la neige ?",
            "Pourquoi beaucoup de gens ont-ils un chat ?",
        ),
        length=("Réponds en deux ou trois phrases.", "Une courte réponse de deux phrases suffit."),
    ),
    "es": _Language(
        what=("¿Qué es {thing}?", "Explícame qué es {thing}.", "Me gustaría saber qué es {thing}."),
        things="un volcán; un arcoíris; una biblioteca; un faro; un poema; un museo; un "
        "desierto; un glaciar; una bicicleta; un puente; una brújula; una isla; un "
        "planeta; un hospital; un castillo",
        questions=(
            "¿Por qué se caen las hojas de los árboles en otoño?",
            "¿Cómo se hace un buen pan?",
            "¿Qué se puede hacer un domingo de lluvia?",
            "¿Por qué es importante dormir bien?",
            "¿Cuál es la mejor manera de aprender un idioma?",
            "¿Qué hay que llevar a una excursión por la montaña?",
            "¿Cómo se forma la nieve?",
            "¿Por qué mucha gente tiene un gato en casa?",
        ),
        length=("Responde en dos o tres frases.", "Basta con una respuesta corta de dos frases."),
    ),
    "it": _Language(
        what=(
            "Che cos'è {thing}?",
            "Spiegami che cos'è {thing}.",
            "Vorrei sapere che cos'è {thing}.",
        ),
        things="un vulcano; un arcobaleno; una biblioteca; un faro; una poesia; un museo; un "
        "deserto; un ghiacciaio; una bicicletta; un ponte; una bussola; un'isola; un "
        "pianeta; un ospedale; un castello",
        questions=(
            "Perché le foglie cadono dagli alberi in autunno?",
            "Come si fa un buon pane?",
            "Che cosa si può fare in una domenica di pioggia?",
            "Perché è importante dormire bene?",
            "Qual è il modo migliore per imparare una lingua?",
            "Che cosa bisogna portare per una gita in montagna?",
            "Come si forma la neve?",
            "Perché molte persone hanno un gatto in casa?",
        ),
        length=("Rispondi in due o tre frasi.", "Basta una breve risposta di due frasi."),
    ),
    "pt": _Language(
        what=(
            "O que é {thing}?",
            "Explique o que é {thing}.",
            "Eu gostaria de saber o que é {thing}.",
        ),
        things="um vulcão; um arco-íris; uma biblioteca; um farol; um poema; um museu; um "
        "deserto; uma geleira; uma bicicleta; uma ponte; uma bússola; uma ilha; um "
        "planeta; um hospital; um castelo",
        questions=(
            "Por que as folhas das árvores caem no outono?",
            "Como se faz um bom pão?",
            "O que se pode fazer em um domingo de chuva?",
            "Por que é importante dormir bem?",
            "Qual é a melhor maneira de aprender uma língua?",
            "O que é preciso levar para uma caminhada na montanha?",
            "Como se forma a neve?",
            "Por que muitas pessoas têm um gato em casa?",
        ),
        length=(
            "Responda em duas ou três frases.",
            "Uma resposta curta de duas frases é suficiente.",
        ),
    ),
    "nl": _Language(
        what=(
            "Wat is {thing}?",
            "Leg me uit wat {thing} is.",
            "Ik zou graag willen weten wat {thing} is.",
        ),
        things="een vulkaan; een regenboog; een bibliotheek; een vuurtoren; een gedicht; een "
        "museum; een woestijn; een gletsjer; een fiets; een brug; een kompas; een eiland; "
        "een planeet; een ziekenhuis; een kasteel",
        questions=(
            "Waarom vallen de bladeren in de herfst van de bomen?",
            "Hoe bak je een goed brood?",
            "Wat kun je doen op een regenachtige zondag?",
            "Waarom is slaap belangrijk voor de mens?",
            "Wat is de beste manier om een taal te leren?",
            "Wat moet je meenemen op een wandeling door de bergen?",
            "Hoe ontstaat sneeuw?",
            "Waarom hebben veel mensen een kat in huis?",
        ),
        length=("Antwoord in twee of drie zinnen.", "Een kort antwoord van twee zinnen is genoeg."),
    ),
    "pl": _Language(
        what=(
            "Co to jest {thing}?",
            "Wyjaśnij mi, co to jest {thing}.",
            "Chciałbym wiedzieć, co to jest {thing}.",
        ),
        things="wulkan; tęcza; biblioteka; latarnia morska; wiersz; muzeum; pustynia; lodowiec; "
        "rower; most; kompas; wyspa; planeta; szpital; zamek",
        questions=(
            "Dlaczego jesienią liście spadają z drzew?",
            "Jak upiec dobry chleb?",
            "Co można robić w deszczową niedzielę?",
            "Dlaczego sen jest ważny dla człowieka?",
            "Jak najlepiej uczyć się nowego języka?",
            "Co trzeba zabrać na wycieczkę w góry?",
            "Jak powstaje śnieg?",
            "Dlaczego wielu ludzi ma w domu kota?",
        ),
        length=(
            "Odpowiedz w dwóch lub trzech zdaniach.",
            "Wystarczy krótka odpowiedź w dwóch zdaniach.",
        ),
    ),
    "sv": _Language(
        what=(
            "Vad är {thing}?",
            "Förklara för mig vad {thing} är.",
            "Jag skulle vilja veta vad {thing} är.",
        ),
        things="en vulkan; en regnbåge; ett bibliotek; en fyr; en dikt; ett museum; en öken; en "
        "glaciär; en cykel; en bro; en kompass; en ö; en planet; ett sjukhus; ett slott",
        questions=(
            "Varför faller löven från träden på hösten?",
            "Hur bakar man ett gott bröd?",
            "Vad kan man göra en regnig söndag?",
            "Varför är sömn viktig för människan?",
            "Hur lär man sig bäst ett nytt språk?",
            "Vad ska man ta med sig på en vandring i fjällen?",
            "Hur bildas snö?",
            "Varför har många människor en katt hemma?",
        ),
        length=(
            "Svara med två eller tre meningar.",
            "Det räcker med ett kort svar på två meningar.",
        ),
    ),
    "ru": _Language(
        what=(
            "Что такое {thing}?",
            "Объясни мне, что такое {thing}.",
            "Я хотел бы знать, что такое {thing}.",
        ),
        things="вулкан; радуга; библиотека; маяк; стихотворение; музей; пустыня; ледник; "
        "велосипед; мост; компас; остров; планета; больница; замок",
        questions=(
            "Почему осенью с деревьев падают листья?",
            "Как испечь хороший хлеб?",
            "Что можно делать в дождливое воскресенье?",
            "Почему сон важен для человека?",
            "Как лучше всего учить новый язык?",
            "Что нужно взять с собой в поход в горы?",
            "Как образуется снег?",
            "Почему многие люди держат дома кошку?",
        ),
        length=(
            "Ответь двумя или тремя предложениями.",
            "Достаточно короткого ответа из двух предложений.",
        ),
    ),
}


def _question(rng: Random) -> Row:
    code = rng.choice(tuple(LANGUAGES))
    found = LANGUAGES[code]
    if rng.random() < 0.6:
        thing = rng.choice(found.things.split("; "))
        asked = rng.choice(found.what).format(thing=thing)
    else:
        asked = rng.choice(found.questions)
    constraints = json.dumps([{"kind": "language", "code": code}])
    return {"prompt": f"{asked} {rng.choice(found.length)}", "completion": constraints}


SUITES = {
    "language": Suite(
        name="language",
        what="questions in nine languages, to be answered in the same",
        cannot_say="It says nothing of whether the answers are right: the question itself, said "
        "again, is in its language.",
        score="instructions",
        chance=round(1 / len(LANGUAGES), 2),
        max_tokens=128,
        draw=_question,
    )
}
