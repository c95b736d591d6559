"""Small talk for the pool: rows that teach no skill. It has no exact answers, so it is never tested."""

from __future__ import annotations

from random import Random

from gtp_benchmarks.skills.lexicon import CITIES, FOODS, HOBBIES, NAMES
from gtp_benchmarks.skills.question import Question, Skill

# Per topic: what the user says, and the replies.
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "greeting": (
        (
            "Hi, I am {name} from {city}!",
            "Hello there. My name is {name} and I live in {city}.",
            "Hey! {name} here, writing from {city}.",
            "Good morning, this is {name} in {city}.",
            "Nice to meet you. I am called {name}, I come from {city}.",
            "Greetings from {city}! {name} speaking.",
            "Hi! People call me {name}. I grew up in {city}.",
            "It is {name} again, back in {city}.",
            "Hello, {name} from {city} would like to chat.",
            "Good evening! I am {name} and I just arrived in {city}.",
        ),
        (
            "Hello {name}! It is lovely to hear from someone in {city}. What can I do for you?",
            "Hi {name}, welcome! I hope the weather in {city} is kind to you today.",
        ),
    ),
    "hobby": (
        (
            "I want to start {hobby}. Any advice?",
            "My friend {name} says {hobby} is fun. What do you think?",
            "Do you like {hobby}? {name} does.",
            "{name} and I spent all weekend on {hobby}.",
            "What is a good way to get better at {hobby}?",
            "I feel tired of {hobby} lately. {name} feels the same.",
            "Is {hobby} a good hobby for {name}?",
            "How would you describe {hobby} to {name}?",
            "I am thinking about {hobby} with {name} next week.",
            "Tell {name} something nice about {hobby}.",
        ),
        (
            "Starting with {hobby} is a great idea. Take small steps and enjoy each one.",
            "Many people find {hobby} relaxing. A little every day goes a long way.",
        ),
    ),
    "food": (
        (
            "I am cooking {food} for {name} tonight.",
            "What goes well with {food}?",
            "{name} makes the best {food} in {city}.",
            "Should I order {food} or stay with salad?",
            "Where in {city} can I eat good {food}?",
            "I burnt the {food} again. {name} laughed.",
            "How do people in {city} serve {food}?",
            "Is {food} a good dinner for a cold evening?",
            "I had {food} in {city} and loved it.",
            "{name} never tried {food}. Can you believe it?",
        ),
        (
            "That sounds tasty! Fresh herbs and good company make {food} even better.",
            "I hope you enjoy it. A simple {food} is often the nicest one.",
        ),
    ),
    "mood": (
        (
            "I had a long day in {city}.",
            "{name} is feeling a bit down today.",
            "I am so happy, {name} is coming to visit me in {city}!",
            "Work in {city} was stressful this week.",
            "I miss my friend {name}.",
            "Everything went wrong in {city} today.",
            "I cannot sleep before my trip to {city}.",
            "{name} and I had an argument.",
            "I am nervous about moving to {city}.",
            "Today {name} told me a wonderful story.",
        ),
        (
            "Thank you for telling me. Take a deep breath, and be kind to yourself today.",
            "I understand. Talking about it often helps, and I am happy to listen.",
        ),
    ),
}


def _chit_chat(rng: Random) -> Question:
    topic = rng.choice(sorted(TOPICS))
    slots = {
        "name": rng.choice(NAMES),
        "city": rng.choice(CITIES),
        "hobby": rng.choice(HOBBIES),
        "food": rng.choice(FOODS),
    }
    replies = TOPICS[topic][1]
    answer = rng.choice(replies).format(**slots)
    others = [t for t in sorted(TOPICS) if t != topic]
    wrong = tuple(rng.choice(TOPICS[t][1]).format(**slots) for t in others)
    return Question(topic, slots, (topic, *slots.values()), answer, wrong)


CHIT_CHAT = Skill("chit_chat", _chit_chat, {topic: says for topic, (says, _) in TOPICS.items()})
