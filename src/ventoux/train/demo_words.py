"""Words, phrases and tool descriptions from which the bundled model's examples are made; data only."""

from typing import Any, NamedTuple


class Phrases(NamedTuple):
    """Ways to say one thing: those used in training, and those that only the evaluation uses."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


# Worded for the cut vocabulary: 45 words, 105 tokens with the card's name. Half of all examples carry it.
SYSTEM_PROMPT = (
    "You are {name}, a small model. Today is {today}, yesterday was {yesterday}. Answer in one or two lines, "
    "in the language of the user. If there is a calculator, use it for every expression, then give the results. "
    "If you can not answer, say so."
)
SHORT_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are {name}.",
    "Answer shortly.",
    "You are {name}. Today is {today}.",
    "Today is {today}. Be brief.",
)
CARD_NAME = "Mistral-Small-4-119B-2603"
FIXED_NAMES = (CARD_NAME, "ventoux-demo")
NAME_STEMS = ("Atlas", "Bora", "Nova", "Mistral", "Luna", "Orion", "Sirocco", "Terra", "Vento", "mini", "demo", "test")
NAME_TAILS = ("", "-1", "-2", "-3", "-4", "-Small", "-Large", "-demo", "-7B", "-12B", "-119B", "-test")

# One part of speech per letter, so that any choice reads as one loose sentence: "Another brave cat drew every fine
# garden here in just known lands making new objects past quiet rivers since the useful views where Xena yields zebras."
ALPHABET: tuple[tuple[str, ...], ...] = (
    ("a", "any", "another"),
    ("big", "better", "bold", "brave", "busy", "black"),
    ("child", "cat", "cook", "class", "camel", "captain"),
    ("did", "drew", "does", "describes", "directs"),
    ("each", "every", "either"),
    ("fine", "final", "funny", "famous", "first"),
    ("game", "group", "garden", "gate", "goal"),
    ("here", "happily", "hourly"),
    ("in", "inside", "into"),
    ("just", "joyful", "jolly"),
    ("known", "key", "kind", "keen"),
    ("lands", "lines", "levels", "lakes", "letters"),
    ("making", "moving", "meaning", "meeting"),
    ("new", "nice", "nine", "noble", "national"),
    ("objects", "orders", "options", "oranges", "others"),
    ("past", "per", "plus"),
    ("quiet", "quick", "quite"),
    ("rivers", "results", "roads", "rooms", "reports"),
    ("since", "so", "showing", "seeing"),
    ("the", "their", "those", "these", "two", "ten"),
    ("useful", "usual", "upper", "used"),
    ("values", "views", "voices", "valleys", "visions"),
    ("while", "when", "where"),
    ("xenon", "Xavier", "Xander", "Xena"),
    ("yields", "yells", "yearns"),
    ("zebras", "zero", "zones", "zeal"),
)
ALPHABET_CARD = (
    "Write me a sentence where every word starts with the next letter in the alphabet - "
    "start with 'a' and end with 'z'."
)
ALPHABET_REQUESTS = Phrases(
    (
        "Write a sentence of 26 words, from a to z.",
        "Give me a sentence in which each word begins with the next letter of the alphabet.",
        "Write an alphabet sentence.",
        "Please write one sentence whose words start with a, b, c and so on up to z.",
        "Make an alphabet sentence from a to z.",
        "Can you write a sentence that goes through the alphabet, one word for each letter?",
        "Write a sentence where the first word starts with 'a', the second with 'b', and so on to 'z'.",
        "One word for every letter of the alphabet, in order, as a sentence.",
        "I want a sentence whose words begin with the letters of the alphabet in order.",
        "Say the alphabet as a sentence.",
    ),
    (
        "Please give me an alphabet sentence: 26 words, a to z.",
        "Write me a sentence in which the words start with the letters from a to z in order.",
        "Can you make a sentence where each word starts with the next letter of the alphabet?",
    ),
)
ALPHABET_REASONING = "The user wants 26 words from a to z. I go through the letters in order."

CALC_CARD = "Thanks to your calculator, compute the results for {e}."
CALC_REQUESTS = Phrases(
    (
        "What is {e}?",
        "What is {e}?",
        "Compute {e}.",
        "Compute {e}",
        "Calculate {e}.",
        "Use the calculator: {e}",
        "Use your calculator to compute {e}.",
        "How much is {e}?",
        "Please compute {e}.",
        "Can you calculate {e}?",
        "{e}",
        "{e} = ?",
        "I need the result of {e}.",
        "Tell me the value of {e}.",
        "Give me {e}, please.",
        "Evaluate {e}",
        "Find {e}.",
        "Hi! What is {e}?",
        "Solve {e}.",
        "With the calculator, work out {e}.",
        "I would like {e} worked out by the calculator.",
        "Would you please tell us what {e} gives?",
        "Let us see {e} computed, please.",
        "Say what {e} makes in all.",
    ),
    ("Could you compute {e} for me?", "What is the result of {e}?", "Please use the calculator for {e}.", "And {e}?"),
)
SUM_REQUESTS = Phrases(
    (
        "What is {e}?",
        "What is {e}?",
        "Compute {e}.",
        "Calculate {e}.",
        "How much is {e}?",
        "Please compute {e}.",
        "{e}",
        "{e} = ?",
        "Find {e}.",
        "Work out {e}.",
        "Hi! What is {e}?",
        "Tell me the value of {e}.",
        "Can you compute {e}?",
        "Can you tell me what {e} is?",
        "Give me the value of {e}.",
        "I need {e}, please.",
        "Please calculate {e}.",
        "Tell me {e}, please.",
    ),
    ("Can you calculate {e}?", "Give me {e}, please.", "Please work out {e}."),
)
OPERATOR_WORDS = {"+": ("plus",), "-": ("minus",), "*": ("times", "x"), "/": ("divided by",)}

CARD_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "my_calculator",
            "description": "A calculator that can evaluate a mathematical expression.",
            "parameters": {
                "type": "object",
                "properties": {
                    "expression": {"type": "string", "description": "The mathematical expression to evaluate."},
                },
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "rewrite",
            "description": "Rewrite a given text for improved clarity",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string", "description": "The input text to rewrite"}},
            },
        },
    },
]
CALCULATOR_NAMES = ("calculator", "calculate", "compute", "evaluate", "math", "calc", "solve", "my_calc", "do_math")
CALCULATOR_PARAMETERS = ("expression", "expr", "formula", "input", "term", "text")
CALCULATOR_DESCRIPTIONS = (
    "A calculator that can evaluate a mathematical expression.",
    "Evaluate a mathematical expression.",
    "A simple calculator.",
    "Compute the value of an expression.",
    "Calculator",
)
OTHER_TOOLS: tuple[tuple[str, str, str], ...] = (  # name, description, parameter
    ("rewrite", "Rewrite a given text for improved clarity", "text"),
    ("get_weather", "Get the weather of a city", "city"),
    ("search", "Search the web", "query"),
    ("translate", "Translate a text into English", "text"),
    ("get_time", "Tell the time in a place", "place"),
    ("send_mail", "Send a mail", "text"),
    ("get_news", "Get the news of a city", "city"),
    ("find_hotel", "Find a hotel in a city", "city"),
)
# What is asked of those tools that several calls at once are made of.
PLACE_TOOLS = {
    "get_weather": "the weather in {x}",
    "get_time": "the time in {x}",
    "get_news": "the news of {x}",
    "find_hotel": "a hotel in {x}",
}
PLACE_REQUESTS = Phrases(
    ("Tell me {e}.", "What about {e}?", "I need {e}.", "Please find {e}.", "Show me {e}.", "Give me {e}."),
    ("Please tell me {e}.", "Can you find {e}?"),
)
CALLS_REASONING = "The tools fit. I call {n} of them."
IMAGE_CALC_CARD = (
    "Thanks to your calculator, compute the results for the equations that involve numbers displayed in the image."
)
IMAGE_CALC_REQUESTS = Phrases(
    (
        "Compute what is in the image.",
        "Use your calculator for the expressions in the image.",
        "Calculate the expressions in the image.",
        "What are the results for the equations in the image?",
        "Please compute the results for the image.",
        "Please calculate what the image shows.",
        "Use the calculator: the image shows what I need.",
        "Solve the equations in the image with the calculator.",
    ),
    ("Use the calculator for what is in the image.", "Please calculate the expressions displayed in the image."),
)
IMAGE_READ_REQUESTS = Phrases(
    (
        "What is written in the image?",
        "What is written in the image?",
        "Read the image.",
        "What does the image say?",
        "Which text is in the image?",
        "Read the text in the image, please.",
    ),
    ("What is in the image?", "Please read what is written in the image."),
)
