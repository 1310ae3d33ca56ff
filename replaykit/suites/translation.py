"""Single common words between English and German, French, Spanish and Italian, both ways.

A word may have several translations, all of which are right. Left out is what is the same in both
languages, where to repeat the question would be right.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from replaykit.suites import Row, Suite

LANGUAGES = ("German", "French", "Spanish", "Italian")
# An English word, and those of the languages in this order. The first of several is the one that is
# asked; the English ones behind it are what the foreign words mean too. A dash leaves one out.
WORDS = """
dog | Hund | chien | perro | cane
cat | Katze / Kater | chat / chatte | gato / gata | gatto / gatta
horse | Pferd | cheval | caballo | cavallo
cow | Kuh | vache | vaca | mucca / vacca
pig / pork | Schwein | cochon / porc | cerdo / puerco / chancho | maiale / porco
bird | Vogel | oiseau | pájaro / pajaro / ave | uccello
fish | Fisch | poisson | pez / pescado | pesce
mouse / rat | Maus | souris | ratón / raton | topo
bread | Brot | pain | pan | pane
water | Wasser | eau | agua | acqua
milk | Milch | lait | leche | latte
cheese | Käse | fromage | queso | formaggio
butter | - | beurre | mantequilla | burro
egg | Ei | œuf / oeuf | huevo | uovo
meat / flesh | Fleisch | viande | carne | carne
salt | Salz | sel | sal | sale
sugar | Zucker | sucre | azúcar / azucar | zucchero
apple | Apfel | pomme | manzana | mela
pear | Birne | poire | pera | pera
cherry | Kirsche | cerise | cereza | ciliegia
potato | Kartoffel | pomme de terre / patate | patata / papa | patata
onion | Zwiebel | oignon | cebolla | cipolla
house / home | Haus | maison | casa | casa
door | Tür | porte | puerta | porta
window | Fenster | fenêtre / fenetre | ventana | finestra
table | Tisch | - | mesa | tavolo / tavola
chair | Stuhl | chaise | silla | sedia
bed | Bett | lit | cama | letto
book | Buch | livre | libro | libro
school | Schule | école / ecole | escuela / colegio | scuola
church | Kirche | église / eglise | iglesia | chiesa
street / road | Straße / Strasse | rue | calle | strada / via
bridge | Brücke | pont | puente | ponte
city / town | Stadt | ville | ciudad | città / citta
tree | Baum | arbre | árbol / arbol | albero
flower | Blume / Blüte | fleur | flor | fiore
leaf / sheet / page | Blatt | feuille | hoja | foglia
forest / wood / woods | Wald | forêt / foret / bois | bosque / selva | foresta / bosco
mountain | Berg | montagne | montaña / montana | montagna
river | Fluss | rivière / riviere / fleuve | río / rio | fiume
sea / ocean | Meer / See | mer | mar | mare
island | Insel | île / ile | isla | isola
sun | Sonne | soleil | sol | sole
moon | Mond | lune | luna | luna
star | Stern | étoile / etoile | estrella | stella
sky / heaven | Himmel | ciel | cielo | cielo
rain | Regen | pluie | lluvia | pioggia
snow | Schnee | neige | nieve | neve
wind | - | vent | viento | vento
fire | Feuer | feu | fuego | fuoco
stone / rock | Stein | pierre | piedra | pietra / sasso
iron | Eisen | fer | hierro | ferro
day | Tag | jour / journée | día / dia | giorno
night | Nacht | nuit | noche | notte
year | Jahr | - | año / ano | anno
week | Woche | semaine | semana | settimana
month | Monat | mois | mes | mese
morning / tomorrow | Morgen | matin / matinée | mañana | mattina / mattino
hour / lesson / time | Stunde | heure | hora | ora
man / husband | Mann | homme | hombre | uomo
woman / wife / Mrs | Frau | femme | mujer | donna
child / kid / boy / baby | Kind | enfant | niño / niña / nino | bambino / bambina
father | Vater | père / pere | padre | padre
mother | Mutter | mère / mere | madre | madre
brother | Bruder | frère / frere | hermano | fratello
sister | Schwester | sœur / soeur | hermana | sorella
son | Sohn | fils | hijo | figlio
daughter / girl | Tochter | fille | hija | figlia
friend / boyfriend | Freund / Freundin | ami / amie | amigo / amiga | amico / amica
king | König | roi | rey | re
queen | Königin | reine | reina | regina
head | Kopf | tête / tete | cabeza | testa
foot | Fuß / Fuss | pied | pie | piede
eye | Auge | œil / oeil | ojo | occhio
ear | Ohr | oreille | oreja / oído | orecchio
nose | Nase | nez | nariz | naso
mouth | Mund | bouche | boca | bocca
tooth | Zahn | dent | diente | dente
heart | Herz | cœur / coeur | corazón / corazon | cuore
blood | Blut | sang | sangre | sangue
bone | Knochen | os | hueso | osso
knee | Knie | genou | rodilla | ginocchio
white | weiß / weiss | blanc / blanche | blanco / blanca | bianco / bianca
black | schwarz | noir / noire | negro / negra | nero / nera
red | rot | rouge | rojo / roja | rosso / rossa
green | grün | vert / verte | verde | verde
blue | blau | bleu / bleue | azul | blu / azzurro
yellow | gelb | jaune | amarillo / amarilla | giallo / gialla
two | zwei | deux | dos | due
three | drei | trois | tres | tre
four | vier | quatre | cuatro | quattro
five | fünf | cinq | cinco | cinque
six / you are | sechs | - | seis | sei
seven | sieben | sept | siete | sette
eight | acht | huit | ocho | otto
nine / new | neun | neuf | nueve | nove
ten | zehn | dix | diez | dieci
hundred | hundert | cent | cien / ciento | cento
thousand | tausend | mille | mil | mille
Monday | Montag | lundi | lunes | lunedì / lunedi
Tuesday | Dienstag | mardi | martes | martedì / martedi
Wednesday | Mittwoch | mercredi | miércoles / miercoles | mercoledì / mercoledi
Thursday | Donnerstag | jeudi | jueves | giovedì / giovedi
Friday | Freitag | vendredi | viernes | venerdì / venerdi
Saturday | Samstag / Sonnabend | samedi | sábado / sabado | sabato
Sunday | Sonntag | dimanche | domingo | domenica
summer / been | Sommer | été / ete | verano | estate
winter | - | hiver | invierno | inverno
autumn / fall | Herbst | automne | otoño / otono | autunno
January | Januar / Jänner | janvier | enero | gennaio
July | Juli | juillet | julio | luglio
to eat / eat / food | essen | manger | comer | mangiare
to drink / drink | trinken | boire | beber / tomar | bere
to sleep / sleep | schlafen | dormir | dormir | dormire
to read / read | lesen | lire | leer | leggere
to write / write | schreiben | écrire / ecrire | escribir | scrivere
to speak / speak / talk | sprechen / reden | parler | hablar | parlare
to buy / buy | kaufen | acheter | comprar | comprare
to sell / sell | verkaufen | vendre | vender | vendere
to sing / sing | singen | chanter | cantar | cantare
to dance / dance | tanzen | danser | bailar / danzar | ballare / danzare
to work / work | arbeiten | travailler | trabajar | lavorare
to swim / swim | schwimmen | nager | nadar | nuotare
to open / open | öffnen / aufmachen | ouvrir | abrir | aprire
to close / close / shut | schließen / schliessen / zumachen | fermer | cerrar | chiudere
big / large / great / tall | groß / gross | grand / grande / gros | grande | grande / grosso
small / little / short | klein | petit / petite | pequeño / pequeña / chico | piccolo / piccola
new | neu | nouveau / nouvelle / neuf | nuevo / nueva | nuovo / nuova
old | alt | vieux / vieille / ancien | viejo / vieja / antiguo | vecchio / vecchia / antico
young | jung | jeune | joven | giovane
cold | kalt | froid / froide | frío / frio / fría | freddo / fredda
hot / warm | heiß / heiss | chaud / chaude | caliente / calor | caldo / calda
rich / tasty / delicious | reich | riche | rico / rica | ricco / ricca
poor | arm | pauvre | pobre | povero / povera
strong / loud | stark | fort / forte | fuerte | forte
money / silver | Geld | argent | dinero / plata | denaro / soldi
key | Schlüssel | clé / clef / cle | llave | chiave
knife | Messer | couteau | cuchillo | coltello
spoon | Löffel | cuillère / cuillere / cuiller | cuchara | cucchiaio
fork | Gabel | fourchette | tenedor | forchetta
shirt | Hemd | chemise | camisa | camicia
shoe | Schuh | chaussure / soulier | zapato | scarpa
hat | Hut | chapeau | sombrero | cappello
car / machine | Auto / Wagen | voiture / auto | coche / carro / auto | macchina / auto / automobile
train | Zug | - | tren | treno
ship / boat | Schiff | bateau / navire | barco / buque / nave | nave
aeroplane / airplane / plane | Flugzeug | avion | avión / avion | aereo / aeroplano
war | Krieg | guerre | guerra | guerra
peace | Frieden / Friede | paix | paz | pace
life / live / to live | Leben | vie | vida | vita
death / dead | Tod | mort | muerte | morte
truth | Wahrheit | vérité / verite | verdad | verità / verita
garden | Garten | jardin | jardín / jardin | giardino
kitchen / cooking | Küche | - | cocina | cucina
"""
FROM_ENGLISH = (
    "How do you say '{word}' in {language}?",
    "Translate the English word '{word}' into {language}.",
    "What is the {language} word for '{word}'?",
)
TO_ENGLISH = (
    "What does the {language} word '{word}' mean in English?",
    "Translate the {language} word '{word}' into English.",
    "What is '{word}', which is {language}, in English?",
)


class Pair(NamedTuple):
    """A word to translate."""

    questions: tuple[str, ...]
    language: str
    """The foreign one of the two."""
    word: str
    answers: list[str]


def _pairs() -> list[Pair]:
    found = []
    for line in WORDS.strip().splitlines():
        first, *cells = (cell.split("/") for cell in line.split("|"))
        english = [word.strip() for word in first]
        for language, cell in zip(LANGUAGES, cells, strict=True):
            foreign = [word.strip() for word in cell]
            if foreign != ["-"]:
                found.append(Pair(FROM_ENGLISH, language, english[0], foreign))
                found.append(Pair(TO_ENGLISH, language, foreign[0], english))
    return found


PAIRS = _pairs()


def _translation(rng: Random) -> Row:
    questions, language, word, answers = rng.choice(PAIRS)
    question = rng.choice(questions).format(language=language, word=word)
    return {
        "prompt": f"{question} Answer with the translation alone.",
        "completion": answers[0],
        "answers": answers,
    }


SUITES = {
    "translation": Suite(
        name="translation",
        what="common words between English and German, French, Spanish or Italian",
        cannot_say="It says nothing of sentences, of grammar, or of other languages.",
        score="contains",
        chance=0.02,
        max_tokens=32,
        draw=_translation,
    )
}
