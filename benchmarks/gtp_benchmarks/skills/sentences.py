"""Sentences that belong to a label: messages to a desk, sentences from the books of a shelf, reviews.

Parts from word lists are put together, so that a label has hundreds of sentences, none of which names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Sentence:
    """Hold a sentence, the label that it belongs to, and the parts that it is made of."""

    text: str
    label: str
    parts: tuple[str, ...]


def _parts(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split("|"))


_DESKS = {
    "Money": """
    the invoice | my refund | the receipt | a double charge | the bank transfer | the unpaid sum | my
    credit card | the price list | the discount | my deposit
    """,
    "Post": """
    the parcel | the courier | my shipment | the tracking number | the lost package | the mail van | the
    crate | my late order | the doorstep drop | the postman
    """,
    "Building": """
    the dripping tap | a cracked window | the boiler | the broken heater | the leaking pipe | the door
    hinge | the faulty socket | the stuck lift | the loose handrail | the damp ceiling
    """,
    "Travel": """
    my flight | the train ticket | the hotel room | my passport | the visa form | the airport bus | the
    ferry | my suitcase | the tour guide | the cruise
    """,
    "Food": """
    the soup | the lunch menu | the fresh bread | the chef | the oven | the dessert | the salad bar |
    the breakfast | the frying pan | the vegetarian meal
    """,
    "Plants": """
    the roses | the lawn | the hedge | the apple tree | the flower bed | the watering can | the weeds |
    the compost | the tulip bulbs | the greenhouse
    """,
    "Books": """
    the overdue novel | the reading room | the atlas | the poetry book | the borrowed dictionary | the
    bookshelf | the biography | the old manuscript | the quiet corner for readers | the comic book
    """,
    "Health": """
    my headache | the nurse | the fever | the vaccine | my sore throat | the bandage | the blood test |
    the cough | my prescription | the first aid kit
    """,
    "Technology": """
    my password | the laptop | the software update | the email account | the keyboard | the server | the
    website | the computer virus | the backup disk | the wifi
    """,
    "Music": """
    the piano | the choir | my violin | the concert | the guitar strings | the orchestra | the drum kit
    | the song book | the trumpet player | the singer
    """,
    "Sports": """
    the tennis court | the football match | the swimming team | the gym | the coach | the running race |
    the referee | the basketball hoop | the hockey stick | the goalkeeper
    """,
    "Animals": """
    the kitten | the puppy | my parrot | the rabbit cage | the dog food | the goldfish | the hamster |
    the cat basket | the dog walker | my tortoise
    """,
    "Law": """
    the contract | my lawyer | the court date | the witness | the last will | the judge | the patent |
    the divorce papers | the lawsuit | the verdict
    """,
    "School": """
    the homework | the exam | the teacher | the pupils | the classroom | the maths lesson | the spelling
    test | the timetable for class | the blackboard | my term paper
    """,
}
DESKS = {desk: _parts(items) for desk, items in _DESKS.items()}

# What is written about a thing, and the same in formal words.
MESSAGES = (
    ("Can somebody look at {item}?", "I would be grateful if somebody could look at {item}."),
    ("I have a question about {item}.", "I should like to ask a question about {item}."),
    ("Nobody told me about {item}.", "I was not informed about {item}."),
    ("Call me back about {item}.", "Kindly return my call concerning {item}."),
    ("Something is wrong with {item}.", "I have to report a problem with {item}."),
    ("Who is in charge of {item}?", "Could you tell me who is responsible for {item}?"),
    ("Thanks for the help with {item}.", "Please accept my thanks for your help with {item}."),
    ("My neighbour keeps talking about {item}.", "My neighbour has raised the matter of {item}."),
    ("What happens next with {item}?", "May I ask what will be done about {item}?"),
    ("I forgot to mention {item}.", "I regret that I did not mention {item}."),
    ("Is there any news of {item}?", "I am writing to ask for news of {item}."),
    ("I am worried about {item}.", "I must express my concern about {item}."),
    ("Tell me more about {item}.", "I should welcome more information about {item}."),
    ("We talked about {item} yesterday.", "I refer to our conversation about {item}."),
    ("I cannot wait any longer for {item}.", "I am unable to wait any longer for {item}."),
    ("It is {item} again.", "I am obliged to write about {item} once more."),
    ("Did you get my note about {item}?", "May I ask whether my note about {item} arrived?"),
    ("Let me know about {item} soon.", "I look forward to hearing from you about {item}."),
)

# By shelf: who, what they did, and where or when.
_SHELVES = {
    "crime": (
        """
        The detective | A masked man | The police inspector | The bank robber | The only witness | A
        private eye
        """,
        """
        found a fingerprint | hid the stolen diamonds | questioned the suspect | lied about the murder |
        searched for the weapon | followed the blood stains
        """,
        """
        in the locked room | behind the warehouse | before the trial | near the body | in the dark alley
        | on the night train
        """,
    ),
    "space": (
        """
        The astronaut | A small robot | The moon base | The tired pilot of the rocket | The alien crew |
        A lonely satellite
        """,
        """
        landed on the red planet | circled the rings of Saturn | saw a dying star | lost contact with
        Earth | measured the comet | floated without weight
        """,
        """
        beyond the galaxy | after the countdown | among the asteroids | under two suns | in zero gravity
        | at the speed of light
        """,
    ),
    "food": (
        """
        The baker | My grandmother | A careful cook | The young chef | The pastry maid | Every host
        """,
        """
        kneads the dough | chops two onions | melts the butter | whips the cream | stirs the sauce |
        peels the garlic
        """,
        """
        with a pinch of salt | over a low flame | in a deep pan | for twenty minutes | before adding
        flour | with fresh basil
        """,
    ),
    "history": (
        """
        The emperor | The young queen | A Roman general | The last pharaoh | The medieval monks | The
        rebels of 1789
        """,
        """
        signed the treaty | built the great wall | conquered the province | wrote the chronicle | freed
        the serfs | crossed the frontier with an army
        """,
        """
        in the ninth century | after the siege | during the revolution | before the empire fell | under
        the old dynasty | in the year of the plague
        """,
    ),
    "romance": (
        """
        The shy dancer | Her first love | The lonely widow | The handsome duke | The bride | A secret
        admirer
        """,
        """
        kissed him softly | wrote a love letter | dreamt of the wedding | held her hand | blushed at his
        smile | waited with red flowers
        """,
        """
        under the moonlight | at the ball | with a beating heart | on the evening of the proposal | by
        the window seat | until they embraced
        """,
    ),
    "nature": (
        """
        The grey wolf | A pair of otters | The brown bear | The old oak | A flock of geese | The young
        deer
        """,
        """
        sheltered its young | drank from the stream | shed its winter coat | searched for berries |
        rested in the moss | greeted the spring
        """,
        """
        deep in the forest | along the river bank | above the wetlands | beneath the pines | in the wild
        meadow | at the pond
        """,
    ),
    "money": (
        """
        The investor | A wise banker | The stock market | The thrifty couple | The tax adviser | A small
        lender
        """,
        """
        doubled the savings | sold the shares | lowered the interest rate | paid off the loan | bought
        government bonds | balanced the budget
        """,
        """
        before the crash | within a fiscal year | at a large profit | despite inflation | for the
        pension fund | with borrowed capital
        """,
    ),
    "horror": (
        """
        The pale spirit | A headless rider | The haunted doll | The vampire | A chill voice | The dead
        countess
        """,
        """
        rose from the grave | whispered my name | walked through the wall | rattled its chains | left no
        reflection | howled at the living
        """,
        """
        at midnight | in the cursed manor | on the foggy churchyard | beside the coffin | in the empty
        crypt | when the candles died
        """,
    ),
    "sea": (
        """
        The captain | The deck hands | A brave sailor | The cabin boy | The old helmsman | The crew of
        the schooner
        """,
        """
        hoisted the mast flag | steered into the wind | dropped the anchor | mended the torn sail |
        sighted the lighthouse | rowed ashore
        """,
        """
        in rough waves | off the coral reef | during the ocean storm | on the open water | at high tide
        | near the harbour wall
        """,
    ),
    "medicine": (
        """
        The surgeon | A young doctor | The patient | The night nurse | The heart specialist | The
        pharmacist
        """,
        """
        cleaned the wound | checked the pulse | treated the infection | measured the fever | prescribed
        the pills | studied the scan of the lungs
        """,
        """
        in the clinic | after the operation | during the epidemic | with a sterile needle | in the
        emergency ward | before the diagnosis
        """,
    ),
}
SHELVES = {shelf: tuple(map(_parts, parts)) for shelf, parts in _SHELVES.items()}

REVIEWED = _parts(
    """
    soup | hotel | film | haircut | taxi ride | museum | book | pizza | concert | phone | jacket |
    bakery | course | play | sofa | garden tour | camera | cafe | boat trip | show | bicycle | campsite
    | radio | painting class
    """
)
# By verdict: what the thing was, and what else there was to say.
_VERDICTS = {
    "good": (
        """
        lovely | excellent | a real treat | worth every cent | charming | better than I hoped | first
        class | a pure joy | wonderful | just what we needed
        """,
        """
        we will be back | everyone smiled | I told all my friends | the staff were so kind | I could not
        stop praising it | the whole family loved it | nothing went wrong | we laughed all evening
        """,
    ),
    "bad": (
        """
        awful | a waste of money | far too expensive | worse than I feared | dull | a big letdown |
        broken from the start | a disgrace | horrible | not what they promised
        """,
        """
        we will never return | everyone frowned | I warned all my friends | the staff were so rude | I
        want my money back | the whole family hated it | nothing went right | we left early
        """,
    ),
}
VERDICTS = {verdict: tuple(map(_parts, parts)) for verdict, parts in _VERDICTS.items()}


def message(rng: Random) -> Sentence:
    """Draw a message to a desk; its parts are the thing and what is written about it."""
    desk = rng.choice(tuple(DESKS))
    item, (casual, _) = rng.choice(DESKS[desk]), rng.choice(MESSAGES)
    return Sentence(casual.format(item=item), desk, (item, casual))


def book_sentence(rng: Random) -> Sentence:
    """Draw a sentence from a book; its parts are who, what they did, and where or when."""
    shelf = rng.choice(tuple(SHELVES))
    who, did, when = (rng.choice(part) for part in SHELVES[shelf])
    return Sentence(f"{who} {did} {when}.", shelf, (who, did, when))


def review(rng: Random) -> Sentence:
    """Draw a review; its parts are the thing, what it was, and what else there was to say."""
    verdict = rng.choice(tuple(VERDICTS))
    thing, (was, more) = rng.choice(REVIEWED), (rng.choice(part) for part in VERDICTS[verdict])
    return Sentence(f"The {thing} was {was}, and {more}.", verdict, (thing, was, more))
