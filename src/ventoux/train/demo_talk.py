"""Small talk in the model card's eleven languages: what is said, and the one answer to each."""

import random
from collections.abc import Iterator
from itertools import product

from ventoux.train.demo_arithmetic import in_split

INTENTS = ("greeting", "how", "thanks", "bye", "who", "help")
# The languages' own names for themselves stay out: requests and rules name them in English.
# language -> intent -> (cores, answer). A core is said alone, or with what _AROUND puts before and behind it.
TALK: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "English": {
        "greeting": (("Hello", "Hi", "Hey", "Good morning", "Good evening"), "Hello! How can I help you?"),
        "how": (("How are you?", "How is it going?", "Are you well?"), "I am fine, thank you!"),
        "thanks": (("Thanks", "Thank you", "Many thanks", "Thank you very much"), "You are welcome!"),
        "bye": (("Bye", "Goodbye", "See you", "See you later"), "Goodbye!"),
        "who": (("Who are you?", "What is your name?", "What are you?"), "I am a very small model."),
        "help": (("What can you do?", "Can you help me?", "How can you help me?"), "I can compute and read images."),
    },
    "French": {
        "greeting": (("Bonjour", "Salut", "Bonsoir", "Coucou"), "Bonjour !"),
        "how": (("Comment ça va ?", "Ça va ?", "Comment vas-tu ?"), "Je vais bien, merci !"),
        "thanks": (("Merci", "Merci beaucoup", "Grand merci"), "De rien !"),
        "bye": (("Au revoir", "À bientôt", "Bonne nuit"), "Au revoir !"),
        "who": (("Qui es-tu ?", "Comment t'appelles-tu ?", "Tu es qui ?"), "Je suis un petit modèle."),
        "help": (("Que sais-tu faire ?", "Peux-tu m'aider ?"), "Je calcule et je lis des images."),
    },
    "Spanish": {
        "greeting": (("Hola", "Buenos días", "Buenas tardes"), "¡Hola!"),
        "how": (("¿Cómo estás?", "¿Qué tal?", "¿Cómo te va?"), "¡Estoy bien, gracias!"),
        "thanks": (("Gracias", "Muchas gracias", "Mil gracias"), "¡De nada!"),
        "bye": (("Adiós", "Hasta luego", "Hasta pronto"), "¡Adiós!"),
        "who": (("¿Quién eres?", "¿Cómo te llamas?", "¿Qué eres?"), "Soy un modelo pequeño."),
        "help": (("¿Qué sabes hacer?", "¿Puedes ayudarme?"), "Calculo y leo imágenes."),
    },
    "German": {
        "greeting": (("Hallo", "Guten Tag", "Guten Morgen", "Guten Abend"), "Hallo!"),
        "how": (("Wie geht es dir?", "Wie geht's?", "Alles gut?"), "Mir geht es gut, danke!"),
        "thanks": (("Danke", "Vielen Dank", "Danke schön"), "Gern geschehen!"),
        "bye": (("Tschüss", "Auf Wiedersehen", "Bis bald"), "Auf Wiedersehen!"),
        "who": (("Wer bist du?", "Wie heißt du?", "Was bist du?"), "Ich bin ein kleines Modell."),
        "help": (("Was kannst du?", "Kannst du mir helfen?"), "Ich rechne und lese Bilder."),
    },
    "Italian": {
        "greeting": (("Ciao", "Buongiorno", "Buonasera", "Salve"), "Ciao!"),
        "how": (("Come stai?", "Come va?", "Tutto bene?"), "Sto bene, grazie!"),
        "thanks": (("Grazie", "Grazie mille", "Tante grazie"), "Prego!"),
        "bye": (("Arrivederci", "A presto", "Buona notte"), "Arrivederci!"),
        "who": (("Chi sei?", "Come ti chiami?", "Che cosa sei?"), "Sono un piccolo modello."),
        "help": (("Che cosa sai fare?", "Puoi aiutarmi?"), "Calcolo e leggo immagini."),
    },
    "Portuguese": {
        "greeting": (("Olá", "Oi", "Bom dia", "Boa tarde"), "Olá!"),
        "how": (("Como está?", "Como vai?", "Tudo bem?"), "Estou bem, obrigado!"),
        "thanks": (("Obrigado", "Muito obrigado", "Obrigada"), "Por nada!"),
        "bye": (("Tchau", "Até logo", "Até amanhã"), "Até logo!"),
        "who": (("Quem é você?", "Qual é o seu nome?", "O que é você?"), "Sou um modelo pequeno."),
        "help": (("O que sabe fazer?", "Pode me ajudar?"), "Faço contas e leio imagens."),
    },
    "Dutch": {
        "greeting": (("Goedemorgen", "Goedendag", "Goedenavond", "Hoi"), "Goedendag!"),
        "how": (("Hoe gaat het?", "Hoe is het?", "Gaat het goed?"), "Het gaat goed, dank je!"),
        "thanks": (("Dank je wel", "Bedankt", "Dank u"), "Graag gedaan!"),
        "bye": (("Tot ziens", "Tot straks", "Doei"), "Tot ziens!"),
        "who": (("Wie ben je?", "Hoe heet je?", "Wat ben je?"), "Ik ben een klein model."),
        "help": (("Wat kun je?", "Kun je me helpen?"), "Ik reken en lees beelden."),
    },
    "Chinese": {
        "greeting": (("你好", "您好", "早上好"), "你好！"),
        "how": (("你好吗？", "你怎么样？", "最近好吗？"), "我很好，谢谢！"),
        "thanks": (("谢谢", "谢谢你", "多谢"), "不客气！"),
        "bye": (("再见", "拜拜", "明天见"), "再见！"),
        "who": (("你是谁？", "你叫什么？", "你是什么？"), "我是一个小模型。"),
        "help": (("你会什么？", "你能帮我吗？"), "我会计算和看图。"),
    },
    "Japanese": {
        "greeting": (("こんにちは", "おはよう", "こんばんは"), "こんにちは！"),
        "how": (("元気ですか？", "お元気ですか？", "調子はどう？"), "元気です！"),
        "thanks": (("ありがとう", "どうもありがとう", "ありがとうございます"), "どういたしまして！"),
        "bye": (("さようなら", "またね", "また明日"), "さようなら！"),
        "who": (("あなたは誰ですか？", "名前は何ですか？", "誰ですか？"), "小さなモデルです。"),
        "help": (("何ができますか？", "手伝ってくれますか？"), "計算ができます。"),
    },
    "Korean": {
        "greeting": (("안녕", "안녕하세요", "좋은 아침"), "안녕하세요!"),
        "how": (("잘 지내요?", "어떻게 지내요?", "잘 지내?"), "잘 지내요!"),
        "thanks": (("고마워요", "감사합니다", "고마워"), "천만에요!"),
        "bye": (("잘 가요", "안녕히 가세요", "또 봐요"), "안녕히 가세요!"),
        "who": (("누구세요?", "이름이 뭐예요?", "누구예요?"), "작은 모델이에요."),
        "help": (("뭘 할 수 있어요?", "도와줄 수 있어요?"), "계산을 할 수 있어요."),
    },
    "Arabic": {
        "greeting": (("مرحبا", "السلام عليكم", "أهلا"), "مرحبا!"),
        "how": (("كيف حالك؟", "كيف الحال؟", "هل أنت بخير؟"), "أنا بخير، شكرا!"),
        "thanks": (("شكرا", "شكرا جزيلا", "شكرا لك"), "عفوا!"),
        "bye": (("مع السلامة", "إلى اللقاء", "وداعا"), "مع السلامة!"),
        "who": (("من أنت؟", "ما اسمك؟", "ما أنت؟"), "أنا نموذج صغير."),
        "help": (("ماذا تستطيع؟", "هل تساعدني؟"), "أحسب وأقرأ الصور."),
    },
}
LANGUAGES = tuple(TALK)
# Answers of one word and of at most three, for rules that ask for brevity.
ONE_WORD = {"greeting": "Hello!", "how": "Fine!", "thanks": "Welcome!", "bye": "Goodbye!"}
THREE_WORDS = {"greeting": "Hello, my friend!", "how": "I am fine.", "thanks": "No problem!", "bye": "See you soon!"}
_NAMES = ("Anna", "Leo", "Mia", "Max", "Eva", "Tom", "Lisa", "Omar", "Yuki", "Nina", "Paul", "Sara")
_ENDINGS = ("", "!", ".", " :)", "...", " !")


def said(rng: random.Random, language: str, intent: str, *, held_out: bool) -> str:
    """A way to say `intent` in `language`, of the split asked for."""
    cores, greetings = TALK[language][intent][0], TALK[language]["greeting"][0]
    while True:
        text = rng.choice(cores)
        form = rng.random()
        if intent != "greeting" and form < 0.3:
            name = f" {rng.choice(_NAMES)}" if rng.random() < 0.4 else ""
            text = f"{rng.choice(greetings)}{name}{rng.choice(('!', ',', '.'))} {text}"
        elif form > 0.7:
            text = f"{text.rstrip('.')} {rng.choice(_NAMES)}" if text[-1] not in "?？؟" else text
        if text[-1] not in "?？؟":
            text += rng.choice(_ENDINGS)
        if rng.random() < 0.15:
            text = text.lower()
        if in_split(text, held_out):
            return text


def all_answers() -> Iterator[tuple[str, str, str]]:
    """(language, intent, answer) of every pair."""
    for language, intent in product(LANGUAGES, INTENTS):
        yield language, intent, TALK[language][intent][1]
