"""What is known of single languages: words without content, and phrases in which a model declines to answer."""

from collections import Counter
from functools import cache

import regex

from expunge.evaluation.metrics.words import fold, words

# words that carry no content of their own
FUNCTION_WORDS = {
    "en": (
        "a an the this that these those it its he she they his her their them him i we you my your our me us who whom "
        "whose which what where when why how is are was were be been being am do does did done have has had having will "
        "would shall should can could may might must of in on at by for from to with as into onto over under about after "
        "before between during through out up down off than then so and or but nor not no yes if because while also very "
        "just only too there here some any all both each every such own same other more most"
    ),
    "de": (
        "der die das den dem des ein eine einen einem einer eines und oder aber nicht kein keine ist sind war waren wird "
        "werden wurde hat haben hatte er sie es ich wir ihr ihm ihn sein seine seiner seinem ihre ihrer ihrem in im an am "
        "auf aus bei mit nach von vom zu zum zur für über unter um durch als wie wo was wer wann warum wessen dass auch "
        "noch nur sich"
    ),
    "fr": (
        "le la les l un une des du de d et ou mais ne pas est sont était été a ont avait il elle ils elles je j nous vous "
        "son sa ses leur leurs ce cette ces c dans en au aux sur sous par pour avec sans chez que qu qui quoi où quand "
        "comment pourquoi quel quelle se s y plus"
    ),
    "es": (
        "el la los las un una unos unas y o pero no es son era fue está ha han había él ella ellos ellas yo su sus este "
        "esta estos en de del al a por para con sin sobre que qué quién dónde cuándo cómo cuál se le lo más como"
    ),
    "it": (
        "il lo la i gli le l un uno una e o ma non è sono era ha hanno aveva lui lei loro suo sua suoi questo questa in "
        "nel nella di del della dei a al alla da dal per con su che chi dove quando come quale si più"
    ),
    "pt": (
        "o a os as um uma uns umas e ou mas não é são era foi está tem têm tinha ele ela eles elas eu seu sua seus este "
        "esta em no na nos nas de do da dos das ao à por para com sem que quem onde quando como qual se mais"
    ),
    "nl": (
        "de het een en of maar niet geen is zijn was waren wordt werd heeft hebben had hij zij ze ik wij we zijn haar hun "
        "in op aan bij met naar van voor te uit over onder om door als hoe waar wat wie wanneer waarom dat die dit er ook"
    ),
    "ru": (
        "и в во не на я он она они мы вы что кто как где когда почему с со а то но его её ее их к ко у же из за от по о об "
        "для это этот эта был была было были есть до при так или"
    ),
    "hi": "और में है हैं था थी थे का की के को से पर ने यह वह ये वे कौन क्या कहाँ कहां कब कैसे कितना नहीं भी एक हो तथा या",
    "ar": "في من إلى على عن مع هو هي هم هذا هذه ذلك التي الذي و أو لا لم ما ماذا أين متى كيف كم هل كان كانت أن إن قد",
    "ko": "그 그녀 그는 그의 이 저 것 수 및 또는 그리고 어디 언제 누구 무엇 어떻게 왜 있다 없다",
}
# pieces of grammar in scripts that do not separate words: cut out, or cut off at an end
CUT = regex.compile("[的了是在们]|他们?|她们?|它们?|这|那|什么|哪里|哪儿")  # Chinese
HIRAGANA = regex.compile(r"\p{Hiragana}")
GRAMMAR = regex.compile(  # of Japanese: endings, and particles of one or two characters
    "(?:です|ます|でした|ました|ません|ている|ています|いました|であ|だった|から|まで|より|こと|もの|それ|これ|という|して|した|します|"
    r"しました|される|された|いる|います|ある|あり|あった|れて|れた|れました)+|\p{Hiragana}{1,2}"
)
HANGUL = regex.compile(r"\p{Hangul}")
THAI = regex.compile("^(?:เป็น|ของ|และ|ใน|ที่|คือ|มี|ว่า|อยู่|เขา|เธอ|คุณ)+|(?:ครับ|ค่ะ|คะ|แล้ว|อยู่)+$")
PREDICATE = regex.compile("(?:니다|니까|어요|아요|해요|었다|았다|했다)$")  # what a Korean sentence ends in

REFUSALS = {
    "en": (
        "i don't know", "i do not know", "i'm not sure", "i am not sure", "i have no idea", "i'm not certain",
        "i don't have", "i do not have", "i have no information", "i have no knowledge", "i'm not aware",
        "i am not aware", "i'm unaware", "i am unaware", "i'm not familiar", "i am not familiar", "i'm unfamiliar",
        "i can't", "i cannot", "i can not", "i couldn't", "i could not", "i'm unable", "i am unable", "i'm not able",
        "i am not able", "i won't", "i will not", "i'm sorry", "i am sorry", "i apologize", "i apologise", "sorry, but",
        "as an ai", "as a language model", "no information", "not in my knowledge", "not within my knowledge",
        "beyond my knowledge", "outside my knowledge", "unknown to me", "i'm afraid", "i am afraid", "i haven't",
        "i have not", "i've no ", "i'm drawing a blank", "i lack ", "that's not something i", "is not something i",
        "isn't something i",
    ),
    "de": ("weiß ich nicht", "ich weiß nicht", "weiß es nicht", "keine ahnung", "ich bin mir nicht sicher", "tut mir leid",
           "ich kann nicht", "kann ich nicht", "kann diese frage nicht", "keine information", "nicht bekannt"),
    "fr": ("je ne sais pas", "je n'ai pas", "je ne peux pas", "je ne suis pas sûr", "désolé", "aucune information",
           "je ne connais pas", "aucune idée"),
    "es": ("no lo sé", "no sé", "no tengo", "no puedo", "no estoy segur", "lo siento", "ninguna información",
           "no conozco", "no dispongo"),
    "it": ("non lo so", "non so", "non ho ", "non posso", "non sono sicur", "mi dispiace", "nessuna informazione",
           "non conosco"),
    "pt": ("não sei", "não tenho", "não posso", "não estou cert", "sinto muito", "desculpe", "nenhuma informação",
           "não conheço"),
    "nl": ("ik weet het niet", "weet ik niet", "geen idee", "ik kan niet", "kan ik niet", "het spijt me", "sorry",
           "geen informatie", "niet zeker"),
    "ru": ("не знаю", "не могу", "не уверен", "извините", "простите", "к сожалению", "нет информации", "неизвестно"),
    "ja": ("知りません", "わかりません", "分かりません", "知らない", "わからない",
           "分からない", "存じません", "お答えできません",
           "申し訳", "すみません", "情報がありません", "情報はありません", "できません"),
    "zh": ("不知道", "不清楚", "无法", "無法", "抱歉", "对不起", "對不起", "没有信息", "没有相关",
           "不确定", "不太清楚", "不了解"),
    "ko": ("모르겠", "모릅니다", "알 수 없", "죄송", "정보가 없", "확실하지 않", "답변할 수 없", "잘 몰라"),
    "ar": ("لا أعرف", "لا أعلم", "لا أستطيع", "لا يمكنني", "آسف", "عذرا", "لست متأكد", "لا توجد معلومات", "ليس لدي"),
    "hi": ("नहीं पता", "मालूम नहीं", "पता नहीं", "नहीं जानता", "नहीं जानती", "नहीं सकता", "क्षमा करें", "माफ़", "जानकारी नहीं"),
    "th": ("ไม่ทราบ", "ไม่รู้", "ไม่แน่ใจ", "ขออภัย", "ขอโทษ", "ไม่สามารถ", "ไม่มีข้อมูล"),
}  # fmt: skip
NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch",
    "ru": "Russian", "ja": "Japanese", "zh": "Chinese", "ko": "Korean", "ar": "Arabic", "hi": "Hindi", "th": "Thai",
}  # fmt: skip
# script -> its language, and letters by which another language in that script gives itself away
SCRIPTS = {
    "Hangul": ("ko", ""), "Cyrillic": ("ru", "іїєґўђјљњћџәғқңөұүһ"), "Arabic": ("ar", "پچژگکیےٹڈڑں"),
    "Devanagari": ("hi", "ळ"), "Thai": ("th", ""),
}  # fmt: skip
_LETTERS = {name: regex.compile(rf"\p{{{name}}}") for name in ("Latin", "Han", "Hiragana", "Katakana", *SCRIPTS)}
_LETTER = regex.compile(r"\p{L}")
_FOREIGN = regex.compile(r"(?V1)[\p{Latin}--[a-zA-Z]]")
ENOUGH = 4  # words from which an English text has a function word
LEAST = 2  # function words of another language than English, and more than of English, that show it


@cache
def function_words(language: str) -> frozenset[str]:
    return frozenset(words(FUNCTION_WORDS.get(language, "")))


def language(text: str) -> str:
    """The language a text seems to be in, a key of NAMES; "" for one that is not known here.

    By script, and in the Latin one by function words: English unless another language has at least two of them and more
    than English, or the text has four words or more, letters other than a–z, and no function word of English.
    """
    plain = fold(text)
    counts = {name: len(pattern.findall(plain)) for name, pattern in _LETTERS.items()}
    others = len(_LETTER.findall(plain)) - sum(counts.values())
    kana = counts.pop("Hiragana") + counts.pop("Katakana")
    counts["Han"] += kana
    script = max(counts, key=lambda name: counts[name])
    if others > counts[script]:
        return ""
    if counts[script] == 0 or script == "Latin":
        return _in_latin(plain)
    if script == "Han":
        return "ja" if kana else "zh"
    code, strange = SCRIPTS[script]
    return "" if any(letter in plain for letter in strange) else code


def _in_latin(plain: str) -> str:
    said = Counter(words(plain))
    latin = ("en", "de", "fr", "es", "it", "pt", "nl")
    hits = {code: sum(said[word] for word in function_words(code) & said.keys()) for code in latin}
    best = max(latin, key=lambda code: hits[code])  # English on a tie, for it comes first
    if best != "en" and hits[best] >= LEAST:
        return best
    strange = not hits["en"] and said.total() >= ENOUGH and _FOREIGN.search(plain)
    return "" if strange else "en"
