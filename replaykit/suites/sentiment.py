"""Short reviews, positive or negative, made of what people review and what they say of it.

    I had high hopes for this hotel, but the room was filthy. I want my money back.  ->  negative

Half of them are plain. In the others the mood turns at a "but", or a word is negated; then it is
the last sentence that says what the whole comes to.
"""

from __future__ import annotations

from random import Random

from replaykit.suites import Row, Suite
from replaykit.suites.tables import words

POSITIVE = "positive"
NEGATIVE = "negative"

# What is reviewed: its aspects, each with what may be said of it, good and bad.
REVIEWED = {
    "hotel": (
        ("the room", words("spotless; quiet; cosy"), words("filthy; noisy; freezing")),
        ("the breakfast", words("delicious; generous; fresh"), words("stale; meagre; inedible")),
        ("the staff", words("friendly; helpful; charming"), words("rude; unhelpful; hostile")),
    ),
    "restaurant": (
        ("the soup", words("delicious; wonderful; superb"), words("cold; tasteless; disgusting")),
        ("the waiter", words("polite; attentive; charming"), words("rude; careless; unfriendly")),
        ("the dessert", words("heavenly; perfect; excellent"), words("awful; soggy; inedible")),
    ),
    "film": (
        ("the story", words("gripping; moving; brilliant"), words("dull; predictable; stupid")),
        ("the acting", words("superb; convincing; excellent"), words("wooden; terrible; awful")),
        (
            "the music",
            words("beautiful; wonderful; perfect"),
            words("annoying; horrible; dreadful"),
        ),
    ),
    "phone": (
        ("the screen", words("brilliant; sharp; gorgeous"), words("blurry; defective; dreadful")),
        ("the battery", words("excellent; reliable; superb"), words("useless; faulty; pathetic")),
        ("the camera", words("fantastic; superb; excellent"), words("terrible; useless; awful")),
    ),
    "novel": (
        ("the plot", words("thrilling; clever; gripping"), words("boring; confusing; ridiculous")),
        ("the hero", words("lovable; fascinating; believable"), words("annoying; flat; tedious")),
        ("the ending", words("perfect; moving; brilliant"), words("disappointing; silly; awful")),
    ),
    "vacuum cleaner": (
        ("the motor", words("powerful; quiet; excellent"), words("weak; deafening; faulty")),
        ("the hose", words("sturdy; excellent; practical"), words("flimsy; leaky; useless")),
        ("the design", words("clever; handy; brilliant"), words("clumsy; awful; impractical")),
    ),
    "language course": (
        ("the teacher", words("inspiring; patient; brilliant"), words("boring; rude; unprepared")),
        ("the textbook", words("excellent; clear; helpful"), words("useless; confusing; outdated")),
        ("the atmosphere", words("great; friendly; relaxed"), words("hostile; depressing; awful")),
    ),
}
LAST = {
    POSITIVE: words("""
    I would recommend it to everyone.; I loved every minute of it.; It was worth every penny.; I
    could not be happier.; I will gladly choose it again.; Five stars from me.; What a pleasant
    surprise.; I am delighted.
    """),
    NEGATIVE: words("""
    I would not recommend it to anyone.; I regretted every minute of it.; It was a waste of money.;
    I want my money back.; Never again.; One star is still too much.; What a disappointment.; I am
    very unhappy with it.
    """),
}
PLAIN = (
    "In this {thing}, {first} was {said} and {second} was {too}.",
    "I tried this {thing} last week: {first} was {said}, and {second} was {too}.",
    "With this {thing}, {first} was really {said}. Also, {second} was {too}.",
)
TURNED = {
    POSITIVE: (
        "I expected little of this {thing}, but {first} was {said} and {second} was {too}.",
        "A friend had warned me about this {thing}, yet {first} was {said} and {second} was {too}.",
        "In this {thing}, {first} was not {bad} at all, and {second} was {too}.",
    ),
    NEGATIVE: (
        "I had high hopes for this {thing}, but {first} was {said} and {second} was {too}.",
        "A friend had praised this {thing}, yet {first} was {said} and {second} was {too}.",
        "In this {thing}, {first} was not {bad} at all, and {second} was {too}.",
    ),
}
ASKED = (
    "Is this review positive or negative?",
    "Classify the sentiment of the review as positive or negative.",
    "Does the writer of this review think well of it? Say positive or negative.",
)


def _sentiment(rng: Random) -> Row:
    mood = rng.choice((POSITIVE, NEGATIVE))
    thing = rng.choice(list(REVIEWED))
    (first, *of_first), (second, *of_second) = rng.sample(REVIEWED[thing], 2)
    own = 0 if mood == POSITIVE else 1
    template = rng.choice(rng.choice((PLAIN, TURNED[mood])))
    review = template.format(
        thing=thing,
        first=first,
        second=second,
        said=rng.choice(of_first[own]),
        too=rng.choice(of_second[own]),
        bad=rng.choice(of_first[1 - own]),
    )
    review = f"{review} {rng.choice(LAST[mood])}"
    prompt = f"{rng.choice(ASKED)}\n\n{review}\n\nAnswer with one word."
    return {"prompt": prompt, "completion": mood}


SUITES = {
    "sentiment": Suite(
        name="sentiment",
        what="short reviews, positive or negative in one word",
        cannot_say="It says nothing of irony, of mixed feelings, or of other kinds of text.",
        score="exact",
        chance=0.5,
        max_tokens=16,
        draw=_sentiment,
    )
}
