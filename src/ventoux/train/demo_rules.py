"""Words and phrases of the bundled model's rules, long inputs, charts, receipts and games; data only."""

from ventoux.train.demo_words import Phrases

KEY_REQUESTS = ("What is the key of {x}?", "Tell me the key of {x}.", "Which key has {x}?")
LANGUAGE_RULES = ("Always answer in {x}.", "Answer in {x}.", "Speak {x} only.", "You are {name}. Answer in {x}.")
ONE_WORD_RULES = ("Answer with one word.", "You are {name}. Answer with one word only.", "Use one word only.")
THREE_WORDS_RULES = (
    "Answer with at most three words.",
    "You are {name}. Use at most three words.",
    "Three words at most.",
)
PERSONA_RULES = (
    "You are {name}.",
    "Your name is {name}.",
    "You are {name}, a small model. Be brief.",
    "I call you {name}.",
)
PERSONA_NAMES = (
    "Luna",
    "Bob",
    "Clara",
    "Hugo",
    "Iris",
    "Karl",
    "Lena",
    "Nora",
    "Otto",
    "Rosa",
    "Theo",
    "Vera",
    "Ben",
    "Jack",
)
PERSONA_TAILS = ("", " Brown", " Green", " the Cat", " the Cook", " the First", " Stone", " King", " Fox", " Lake")
JSON_RULES = (
    'Answer with JSON only: {{"{key}": "..."}}.',
    'You are {name}. All your answers are JSON with the key "{key}".',
    'Write JSON with one key, "{key}".',
)
JSON_KEYS = ("answer", "text", "reply", "message", "content", "output", "result", "response")
LOOKUP_WORDS = (
    "Tea", "Milk", "Rice", "Bread", "Fish", "Cake", "Soup", "Eggs", "Salt", "Juice", "Honey", "Corn", "Oil", "Wine",
    "Pasta", "Sugar", "Beans", "Coffee", "Apple", "Lemon", "Plum", "Ham", "Nuts", "Jam",
)  # fmt: skip
SHOPS = ("Market", "Corner Shop", "City Store", "Bakery", "Food Hall", "Green Shop")
LARGEST_REQUESTS = Phrases(
    (
        "Which bar is the largest?",
        "What is the largest bar?",
        "Which one is the largest?",
        "Name the largest bar.",
        "The largest bar?",
        "Please say which bar is the largest.",
    ),
    ("Please name the largest bar.", "Which is the largest bar?"),
)
TOTAL_REQUESTS = Phrases(
    (
        "What is the total?",
        "How much is the total?",
        "Tell me the total.",
        "What is the sum of the receipt?",
        "Please say what I have to pay.",
        "How much does it cost in all?",
    ),
    ("Please tell me the total.", "What does it cost in total?"),
)
VALUE_REQUESTS = Phrases(
    (
        "What is the value of {x}?",
        "Which value has {x}?",
        "Tell me the value of {x}.",
        "How much is {x}?",
        "I need the value of {x}.",
        "Please say how much {x} is.",
        "{x}?",
    ),
    ("Please tell me the value of {x}.", "Give me the value of {x}."),
)
JSON_REQUESTS = Phrases(
    (
        "Give the {key} as JSON.",
        "Answer with the {key} as JSON.",
        "JSON with the {key}, please.",
        "Please write the {key} as JSON.",
        "Return the {key} as JSON.",
    ),
    ("Please give the {key} as JSON.", "I need the {key} as JSON."),
)
GAME_CARD = (
    "What action do you think I should take in this situation? "
    "List all the possible actions and explain why you think they are good or bad."
)
GAME_REQUESTS = Phrases(
    (
        "What should I do in this game?",
        "Which action is best here?",
        "List the possible actions and say which are good or bad.",
        "Which action should I take?",
    ),
    ("Which action should I take here, and why?",),
)
GAME_ACTIONS = ("FIGHT", "BAG", "SWITCH", "RUN")
GAME_NAMES = ("Fox", "Owl", "Bear", "Wolf", "Crab", "Frog", "Hare", "Lynx", "Toad", "Swan", "Bat", "Cat")
GAME_ADVICE = {
    "high": (
        "FIGHT: good, {name} has high health.",
        "BAG: bad, {name} needs no potion.",
        "SWITCH: bad, {name} can go on.",
        "RUN: bad, we can win.",
        "I recommend FIGHT.",
    ),
    "low": (
        "FIGHT: bad, {name} has low health.",
        "BAG: good, a potion helps {name}.",
        "SWITCH: good, {name} can rest.",
        "RUN: good, it is safe.",
        "I recommend BAG.",
    ),
}
